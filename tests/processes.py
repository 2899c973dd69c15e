"""A ``refinery serve`` as a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


class Service:
    """A ``refinery serve`` process, on any port unless one is named; settings by name."""

    def __init__(self, data: Path, port: int = 0, **settings: object) -> None:
        command = [sys.executable, "-m", "refinery", "serve", "--data", str(data), "--port", str(port)]
        environment = ENVIRONMENT | {f"REFINERY_{name.upper()}": str(value) for name, value in settings.items()}
        self._log = (data.parent / "service.log").open("a")
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
def serving(data: Path, **settings: object) -> Iterator[Service]:
    service = Service(data, **settings)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.end(signal.SIGTERM)
