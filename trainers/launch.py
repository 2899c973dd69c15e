"""Starting the service as a process of its own, for programs that need one for a while."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

STOP_SECONDS = 30.0


class NotStarted(Exception):
    """The service ended before it listened."""


@contextmanager
def running_service(data: Path, *arguments: str, log: Path, leash: Sequence[str] = ()) -> Iterator[str]:
    """The URL of a service on a free loopback port; it is stopped by its pid at the end. `leash` is a program that
    becomes the command behind it."""
    command = [*leash, sys.executable, "-m", "refinery", "serve", "--data", str(data), "--port", "0", *arguments]
    with log.open("a") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            yield _url(process, log)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()


def _url(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("listening on "):
            return line.split()[-1]
    tail = "\n".join(log.read_text().splitlines()[-5:])
    raise NotStarted(f"the service ended before it listened; the end of {log}:\n{tail}")
