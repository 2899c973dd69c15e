"""The processes of the service, as the kernel knows them: who descends from it, and what each is for."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.faults.schedule import Target

PROC = Path("/proc")
FORK_SERVER, SQL, ENGINES = b"multiprocessing.forkserver", b"/program", (b"vllm.entrypoints", b"VLLM::", b"sglang")
"""Parts of their command lines."""


class Process(NamedTuple):
    pid: int
    parent: int
    started: int
    """In ticks since the machine was: a number that is used again is another process."""
    is_dead: bool
    """It has ended, and its parent has not looked."""
    command: bytes

    @property
    def is_there(self) -> bool:
        return (now := look(self.pid)) is not None and now.started == self.started and not now.is_dead

    @property
    def title(self) -> str:
        return f"process {self.pid}, {self.command.replace(bytes(1), b' ').decode(errors='replace')[:80]}"

    def send(self, number: signal.Signals) -> bool:
        """Whether it was there to get it."""
        try:
            if not self.is_there:
                return False
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def look(pid: int) -> Process | None:
    try:
        fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        command = (PROC / str(pid) / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Process(pid, int(fields[1]), int(fields[19]), fields[0] in b"ZX", command)


def descendants(pid: int) -> list[Process]:
    """Parents before their children."""
    children: dict[int, list[Process]] = {}
    for process in _all():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    waiting = [pid]
    for parent in waiting:
        born = children.get(parent, [])
        found += born
        waiting += [child.pid for child in born]
    return found


def _all() -> Iterator[Process]:
    for name in os.listdir(PROC):
        if name.isdecimal() and (process := look(int(name))):
            yield process


def of_service(pid: int, target: Target) -> list[Process]:
    """Those of its processes that are for this."""
    below = [process for process in descendants(pid) if not process.is_dead]
    servers = {one.pid for one in below if one.parent == pid and FORK_SERVER in one.command}
    match target:
        case Target.FORK_SERVER:
            return [one for one in below if one.pid in servers]
        case Target.VERIFIER:
            return [one for one in below if one.parent in servers]
        case Target.SQL:
            return [one for one in below if SQL in one.command]
        case Target.ENGINE:
            return [one for one in below if any(name in one.command for name in ENGINES)]
        case _:
            raise ValueError(f"{target} is no process of the service")
