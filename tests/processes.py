"""A ``refinery serve`` as a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trainers.client import Refinery, RefineryError

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


class Service:
    """A ``refinery serve`` process, on any port unless one is named; settings by name."""

    def __init__(
        self,
        data: Path,
        port: int = 0,
        *,
        under: Sequence[str] = (),
        environment: Mapping[str, str] = MappingProxyType({}),
        **settings: object,
    ) -> None:
        """`under` is a command that becomes the one behind it; `environment` is what its own has besides."""
        command = [*under, sys.executable, "-m", "refinery", "serve", "--data", str(data), "--port", str(port)]
        chosen = {f"REFINERY_{name.upper()}": str(value) for name, value in settings.items()}
        environment = ENVIRONMENT | dict(environment) | chosen
        self.log = data.parent / "service.log"
        self._log = self.log.open("a")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()
        return code


@contextmanager
def serving(data: Path, **settings: Any) -> Iterator[Service]:
    service = Service(data, **settings)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.end(signal.SIGTERM)


def until_unready(client: Refinery) -> str:
    """What it says then."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        try:
            client.get("/readyz")
        except RefineryError as unready:
            return str(unready)
        time.sleep(0.05)
    raise AssertionError("it is ready for ever")
