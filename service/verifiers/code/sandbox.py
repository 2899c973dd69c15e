"""Where code that nobody trusts runs: a bubblewrap container of its own, or nowhere.

- No network, no home directory, a read-only file system, nobody's user id, no environment, a few system calls less.
- Time, memory, processes, file sizes and output have limits; at the end the whole container is gone.
- Without bubblewrap, or where the kernel refuses it, `find` raises; only an operator who says so gets `Bare`.

Sources: bubblewrap 0.8 (``--disable-userns``); seccomp_rule_add(3).
"""

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol, Self

from service.bubblewrap import NOBODY, nameless, path_of, seccomp_program

SYSTEM_PYTHON = Path("/usr/bin/python3")
MOST_OUTPUT = 1 << 20
"""Bytes that one answer may have."""


class NoSandbox(Exception):
    """Nothing here can hold code that nobody trusts."""


class TooMuch(Exception):
    """The answer is longer than allowed."""


@dataclass(frozen=True, slots=True)
class BoxLimits:
    cpu_seconds: int = 5
    memory_bytes: int = 512 << 20
    """Of one process."""
    file_bytes: int = 8 << 20
    processes: int = 32


LIMITS = BoxLimits()
"""Of a program under test."""


class Sandbox(Hashable, Protocol):
    def start(self, source: str, arguments: Sequence[str] = (), limits: BoxLimits = LIMITS) -> "Box":
        """Runs Python source text."""


class Box:
    """A running program: what is written to it, and what it says."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._read = b""
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def send(self, data: bytes, deadline: float) -> None:
        """Raises TimeoutError, and BrokenPipeError when nobody reads any more."""
        os.set_blocking(self._in.fileno(), False)
        while data:
            if not select.select([], [self._in], [], max(0.0, deadline - time.monotonic()))[1]:
                raise TimeoutError
            data = data[os.write(self._in.fileno(), data[: 1 << 16]) :]

    def line(self, deadline: float) -> bytes:
        """The next line; empty when there is none any more. Raises TimeoutError and TooMuch."""
        while b"\n" not in self._read:
            if not self._more(deadline):
                return b""
        line, _, self._read = self._read.partition(b"\n")
        return line

    def rest(self, data: bytes, deadline: float) -> bytes:
        """Writes the data and reads until the end. Raises TimeoutError and TooMuch."""
        with contextlib.suppress(BrokenPipeError):  # a program need not read its input
            self.send(data, deadline)
        with contextlib.suppress(BrokenPipeError):
            self._in.close()
        while self._more(deadline):
            pass
        return self._read

    def end(self, seconds: float = 0.0) -> int:
        """Ends it after so many seconds if it has not; returns the exit status, 128 + n after signal n."""
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            status = self._process.wait()
        for pipe in (self._in, self._out):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        return status if status >= 0 else 128 - status

    def _more(self, deadline: float) -> bool:
        if not select.select([self._out], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        chunk = os.read(self._out.fileno(), 1 << 16)
        self._read += chunk
        if len(self._read) > MOST_OUTPUT:
            raise TooMuch(f"more than {MOST_OUTPUT >> 20} MiB of output")
        return bool(chunk)


class Bubblewrap:
    def __init__(self, python: Path) -> None:
        self._python = python
        self._filter = seccomp_program()

    def start(self, source: str, arguments: Sequence[str] = (), limits: BoxLimits = LIMITS) -> Box:
        # The source and the filter go in through files that have no name.
        program, syscalls = nameless(source.encode()), nameless(self._filter)
        command = [*self._command(program, syscalls, limits), *arguments]
        is_root = os.geteuid() == 0
        try:
            return Box(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={},  # bubblewrap's own environment can be read inside
                    cwd="/",
                    pass_fds=(program, syscalls),
                    start_new_session=True,
                    # Root has no limit of processes, in whatever container.
                    user=NOBODY if is_root else None,
                    group=NOBODY if is_root else None,
                    extra_groups=[] if is_root else None,
                )
            )
        finally:
            os.close(program)
            os.close(syscalls)

    def _command(self, program: int, syscalls: int, limits: BoxLimits) -> list[str]:
        return [
            *(path_of("bwrap"), "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"),
            *("--new-session", "--clearenv", "--setenv", "PATH", "/usr/bin", "--setenv", "HOME", "/tmp"),
            *("--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib"),
            *("--symlink", "usr/lib64", "/lib64", *_binds(self._python), "--proc", "/proc", "--dev", "/dev"),
            *("--size", str(4 * limits.file_bytes), "--tmpfs", "/tmp", "--size", str(limits.file_bytes)),
            *("--tmpfs", "/dev/shm", "--ro-bind-data", str(program), "/program.py", "--remount-ro", "/"),
            *("--chdir", "/tmp", "--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "box", "--cap-drop", "ALL"),
            *("--seccomp", str(syscalls), "/usr/bin/prlimit", f"--as={limits.memory_bytes}"),
            *(f"--cpu={limits.cpu_seconds}:{limits.cpu_seconds + 1}", f"--fsize={limits.file_bytes}"),
            *(f"--nproc={limits.processes}", "--nofile=64", "--core=0", "--"),
            *(str(self._python), "-I", "-S", "/program.py"),
        ]


class Bare:
    """No sandbox: limits, and nothing between the code and this machine."""

    def __init__(self, python: Path) -> None:
        self._python = python

    def start(self, source: str, arguments: Sequence[str] = (), limits: BoxLimits = LIMITS) -> Box:
        program = nameless(source.encode())
        try:
            return Box(
                subprocess.Popen(
                    [str(self._python), "-I", "-S", f"/proc/self/fd/{program}", *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={},
                    cwd="/tmp",
                    pass_fds=(program,),
                    start_new_session=True,
                    preexec_fn=partial(_limit, limits),
                )
            )
        finally:
            os.close(program)


def _limit(limits: BoxLimits) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))


@lru_cache(maxsize=8)
def find(python: Path | None, *, unsafe: bool) -> Sandbox:
    """The sandbox that works here. Raises NoSandbox, saying what to do, where none does and `unsafe` is not set."""
    chosen = python or (SYSTEM_PYTHON if SYSTEM_PYTHON.exists() else Path(sys.executable).resolve())
    if unsafe:
        return Bare(chosen)
    try:
        sandbox = Bubblewrap(chosen)
        box = sandbox.start("print(6 * 7)")
        said = box.rest(b"", time.monotonic() + 20)
        status = box.end(1.0)
    except (OSError, TimeoutError) as error:
        raise NoSandbox(f"no sandbox for code: {error}; {ADVICE}") from error
    if (said, status) != (b"42\n", 0):
        raise NoSandbox(f"bubblewrap does not work here with {chosen} (exit status {status}); {ADVICE}")
    return sandbox


ADVICE = (
    "install bubblewrap 0.8 or newer and libseccomp, allow user namespaces, and give a Python that every user can read "
    "with --code-python; or accept the risk with --unsafe-local-code"
)


def _binds(python: Path) -> list[str]:
    """Read-only folders of a Python that is not the system's."""
    if python.is_relative_to("/usr"):
        return []
    real = python.resolve()
    folders = {python.parent.parent, real.parent.parent}
    return [part for folder in sorted(folders) for part in ("--ro-bind", str(folder), str(folder))]
