"""The service that is killed: always at the same address, and started again at once."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from benchmarks.faults.processes import Process, descendants, look
from service.engines.process import LEASH

PORTS = range(20_000, 32_768)
"""Below those that the kernel gives away: while the service is down, nobody else is given its port."""
END_SECONDS = 60.0
"""From SIGTERM until it has ended; the requests that it answers have ten of them."""
LONGEST_START = 180.0
LONGEST_START_OF_AN_ENGINE = 1200.0
GONE_SECONDS = 15.0
"""Until the processes of a service that has ended have, too."""
MOST_FAILURES = 3
LEASHED = (sys.executable, str(LEASH), "0")
"""What is behind it ends with this process, however that ends."""
UNFORESEEN = ("nobody foresaw", "Exception in ASGI application")
"""In the log of the service."""


class NotServed(Exception):
    """It does not come back."""


class Served:
    """`tend` it often: that starts the service where it has ended, and sees when it is ready."""

    def __init__(self, folder: Path, arguments: Sequence[str] = (), *, name: str = "data") -> None:
        """On a folder `name` in the folder."""
        self.data = folder / name
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self._log = folder / f"{name}.log"
        self._longest_start = LONGEST_START_OF_AN_ENGINE if arguments else LONGEST_START
        self._command = [
            *(*LEASHED, sys.executable, "-m", "refinery", "serve"),
            *("--data", str(self.data), "--port", str(port), *arguments),
        ]
        self._process: subprocess.Popen[bytes]
        self._started = 0.0
        self._killed_at: float | None = None
        self._told_to_end_at: float | None = None
        self._was_ready = False
        """When it was told to end."""
        self._was_killed = False
        self._failures = 0
        """Starts in a row that led to nothing."""
        self._family: set[Process] = set()
        """Processes of every service so far."""
        self.is_ready = False
        self.recoveries: list[float] = []
        """Seconds from a kill to the first answer that its successor is ready."""
        self.endings: list[float] = []
        """Seconds from SIGTERM to the exit of a service that was ready."""
        self.broken: list[str] = []
        self.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=environment(), start_new_session=True
            )
        self._started = time.monotonic()
        self.is_ready = self._was_killed = False

    def tend(self) -> None:
        """Raises NotServed when it does not come back."""
        code = self._process.poll()
        if code is not None:
            self._look_at(code)
            self.start()
        elif self._told_to_end_at is not None:
            if time.monotonic() > self._told_to_end_at + END_SECONDS:
                self.broken.append(f"the service did not end within {END_SECONDS:g} s of SIGTERM")
                self.send(signal.SIGKILL)
        elif not self.is_ready:
            self._look_whether_ready()

    def send(self, number: signal.Signals) -> bool:
        """SIGKILL, SIGSTOP or SIGCONT."""
        if self._process.poll() is not None:
            return False
        self._remember()
        self._process.send_signal(number)
        if number is signal.SIGKILL:
            self._process.wait()
            self._killed_at, self._told_to_end_at = time.monotonic(), None
            self.is_ready, self._was_killed = False, True
        return True

    def end(self, _: object = None) -> bool:
        """SIGTERM."""
        if self._process.poll() is not None:
            return False
        self._remember()
        self._process.terminate()
        self._killed_at, self._told_to_end_at = None, time.monotonic()
        self._was_ready, self.is_ready = self.is_ready, False
        return True

    def close(self) -> None:
        """For good."""
        if self._process.poll() is None:
            self._remember()
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def orphans(self) -> list[str]:
        """Processes of services that have ended, which go on; they are ended."""
        own = set(descendants(self.pid)) if self._process.poll() is None else set()
        give_up = time.monotonic() + GONE_SECONDS
        while (left := [one for one in self._family - own if one.is_there]) and time.monotonic() < give_up:
            time.sleep(0.2)
        for orphan in left:
            orphan.send(signal.SIGKILL)
        return [orphan.title for orphan in left]

    def corpses(self) -> list[str]:
        """Processes of the service that have ended, and that it does not look after."""
        found = [one for one in descendants(self.pid) if one.is_dead]
        time.sleep(GONE_SECONDS if found else 0)
        return [one.title for one in found if (now := look(one.pid)) and now.is_dead and now.started == one.started]

    def unforeseen(self) -> list[str]:
        """Lines of its log that should not be there."""
        lines = self._log.read_text(errors="replace").splitlines()
        return [line for line in lines if any(part in line for part in UNFORESEEN)]

    def _remember(self) -> None:
        self._family = {one for one in self._family if one.is_there} | set(descendants(self.pid))

    def _look_at(self, code: int) -> None:
        if self._told_to_end_at is not None:
            if self._was_ready:
                self.endings.append(time.monotonic() - self._told_to_end_at)
                if code:
                    self.broken.append(f"the service ended with status {code} after SIGTERM")
            self._told_to_end_at = None
        elif not self._was_killed:
            self.broken.append(f"the service ended by itself with status {code}: {self._last_lines(3)}")
            self._failures += 1
            if self._failures == MOST_FAILURES:
                raise NotServed(f"the service does not start: {self._last_lines(8)}")

    def _look_whether_ready(self) -> None:
        if answers(f"{self.url}/readyz"):
            self.is_ready, self._failures = True, 0
            if self._killed_at is not None:
                self.recoveries.append(time.monotonic() - self._killed_at)
                self._killed_at = None
        elif time.monotonic() > self._started + self._longest_start:
            raise NotServed(f"the service was not ready in {self._longest_start:g} s: {self._last_lines(8)}")

    def _last_lines(self, count: int) -> str:
        return " | ".join(self._log.read_text(errors="replace").splitlines()[-count:])


def until_ready(served: Served) -> None:
    """Raises NotServed."""
    while not served.is_ready:
        served.tend()
        time.sleep(0.05)


def answers(url: str) -> bool:
    """Whether it is good."""
    try:
        with urllib.request.urlopen(url, timeout=1.0) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
