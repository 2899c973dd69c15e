"""Questions of users in SQL, answered by processes in containers that can do nothing else.

- No question runs in the service's own process; none sees the database, another question, the network or a secret.
- A deadline is kept by killing; the process is replaced, and nobody else notices but for a moment's wait.
- A process that somebody else kills says nothing about its question, which is asked once more.
- An answer is of one moment of the store, at most two seconds old, and stays readable while the store goes on.
"""

import asyncio
import contextlib
import json
import os
import signal
import struct
import sys
import sysconfig
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum, auto
from pathlib import Path
from typing import Any, TypeVar

from service.bubblewrap import NOBODY, nameless, path_of, seccomp_program
from service.shares import Shares
from service.sql.views import DATASETS, SEGMENTS, Names, definitions
from service.stages import Busy, Invalid, Refused, StageError
from service.store.datasets import Datasets, DatasetVersion
from service.store.duck import Duck
from service.store.layout import tables_of
from service.store.policies import Policies
from service.store.runs import Runs
from service.store.sealing import Sealer

T = TypeVar("T")
INSIDE = Path(__file__).parent / "inside"
FRAME = struct.Struct(">cI")
FRESH_SECONDS = 2.0
"""Rows that are older are in every answer."""
MOST_WAITING = 64
"""Questions of one asker; more are told to come again."""
READY_SECONDS = 30.0
CLOSE_SECONDS = 5.0
KILLED = {-signal.SIGKILL, 128 + signal.SIGKILL}
"""Exit statuses of a container that was killed, and of one in which the process was."""
HEADROOM = 2 << 30
"""Address space of a process beside what DuckDB may use."""


class SqlFailed(StageError):
    """Questions cannot be answered here."""


class TimedOut(Refused):
    """The question took longer than it may."""


class _Killed(Exception):
    """Somebody ended the process of a question."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds
        """That the question took by then."""


class Format(StrEnum):
    JSON = auto()
    CSV = auto()
    NDJSON = auto()
    ARROW = auto()
    PARQUET = auto()


@dataclass(frozen=True, slots=True)
class Question:
    sql: str
    params: Sequence[Any] | dict[str, Any] = ()
    format: Format = Format.JSON
    limit: int | None = None
    """Rows; None for all of them."""
    offset: int = 0
    """Rows to leave away at the beginning."""
    seconds: float = 10.0
    reaches: Callable[[str], bool] | None = None
    """Whether a run, a policy or a dataset of this name may be seen; None if all may."""
    asker: str = ""
    """Whose turn it takes."""


@dataclass(frozen=True, slots=True)
class Limits:
    processes: int = 2
    memory_mib: int = 1024
    """That one question may use."""
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Of one question."""
    answer_bytes: int = 32 << 20
    """Of a JSON answer."""


class Console:
    def __init__(self, duck: Duck, sealer: Sealer, dataset_root: Path, limits: Limits) -> None:
        self._duck = duck
        self._sealer = sealer
        self._runs, self._policies, self._datasets = Runs(duck), Policies(duck), Datasets(duck)
        self._limits = limits
        self._dataset_root = dataset_root
        self._idle: list[_Child] = []
        self._turns = Shares(lambda: limits.processes)
        self._settling: set[asyncio.Task[Any]] = set()
        self._living: set[_Child] = set()
        self._closed = False

    async def ask(self, question: Question) -> AsyncGenerator[bytes]:
        """The answer, bit by bit; closing the generator early ends the question.

        Raises Invalid for a question that is none, TimedOut, Busy, and SqlFailed where no container can be had. Once
        the first bytes are there, an answer that cannot be finished ends in SqlFailed.
        """
        seconds = question.seconds
        for is_last in (False, True):
            try:
                async with aclosing(self._answer(question, seconds)) as answer:
                    async for chunk in answer:
                        yield chunk
                return
            except _Killed as killed:
                if is_last:  # twice: that is no coincidence
                    detail = "the question ended its process: it needs too much"
                    raise Invalid("sql_out_of_memory", detail) from None
                seconds -= killed.seconds

    async def _answer(self, question: Question, seconds: float) -> AsyncGenerator[bytes]:
        """As `ask`. Raises _Killed where somebody ended the process before it answered."""
        async with self._child(question.asker) as child:
            await asyncio.to_thread(self._sealer.seal, younger_than=FRESH_SECONDS)
            with self._duck.pinned() as layout:
                datasets = await self._datasets.versions()
                seen = question.reaches and await self._names(question.reaches, datasets)
                views = await asyncio.to_thread(definitions, layout, datasets, self._dataset_root, seen)
                began = asyncio.get_running_loop().time()
                with child.until(seconds):
                    try:
                        told = await child.begin(self._request(question, views))
                    except (asyncio.IncompleteReadError, ConnectionError):
                        if child.is_over_time:
                            detail = f"not answered within {question.seconds:g} seconds"
                            raise TimedOut("sql_timeout", detail) from None
                        if await child.was_killed():
                            raise _Killed(asyncio.get_running_loop().time() - began) from None
                        detail = "the question ended its process: it needs too much"
                        raise Invalid("sql_out_of_memory", detail) from None
                    if told is not None:
                        raise Invalid(told["code"], told["detail"])
                    async for chunk in child.rest():
                        yield chunk

    async def _names(self, reaches: Callable[[str], bool], datasets: Sequence[DatasetVersion]) -> Names:
        frozen = dict.fromkeys(dataset.name for dataset in datasets)
        every = (await self._runs.names(), await self._policies.names(), frozen)
        return Names(*([name for name in names if reaches(name)] for names in every))

    async def close(self) -> None:
        """Ends all questions and their processes."""
        self._closed = True
        for child in self._living:
            child.kill()
        # Whoever still asks sees the end of its process, and lets go of it.
        give_up = asyncio.get_running_loop().time() + CLOSE_SECONDS
        while self._living - set(self._idle) and asyncio.get_running_loop().time() < give_up:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await asyncio.gather(*self._settling, return_exceptions=True)
        for child in list(self._living):
            await self._ended(child)

    def _request(self, question: Question, views: Mapping[str, Any]) -> bytes:
        config = {
            "threads": str(self._limits.threads),
            "memory_limit": f"{self._limits.memory_mib}MiB",
            "temp_directory": "",
            "max_temp_directory_size": "0GB",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
            "python_enable_replacements": "false",
        }
        told = {
            "config": config,
            "folders": [str(SEGMENTS), str(DATASETS)],
            "tables": tables_of(0),
            "views": views,
            "sql": question.sql,
            "params": question.params,
            "format": question.format.value,
            "limit": question.limit,
            "offset": question.offset,
            "bytes": self._limits.answer_bytes,
        }
        return json.dumps(told).encode() + b"\n"

    @asynccontextmanager
    async def _child(self, asker: str) -> AsyncIterator["_Child"]:
        """A process that waits for a question; afterwards it is the next one's, or there is a new one in its place."""
        if self._turns.waiting(asker) >= MOST_WAITING:
            raise Busy("sql_busy", f"{MOST_WAITING} questions wait already: ask again in a moment", retry_after=1)
        await self._turns.take(asker, 1)
        # A start that is cut short leaves half a container behind: it goes on when whoever asked is gone.
        start = self._task(self._next())
        try:
            child = await asyncio.shield(start)
        except asyncio.CancelledError:
            self._task(self._kept(start, asker))
            raise
        except BaseException:
            self._turns.give(asker, 1)
            raise
        try:
            yield child
        finally:
            self._task(self._settle(child, asker))

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """It ends before the console is closed."""
        task = asyncio.create_task(work)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        return task

    async def _kept(self, start: "asyncio.Task[_Child]", asker: str) -> None:
        """What nobody waits for any more is the next one's."""
        try:
            self._idle.append(await start)
        except SqlFailed:
            pass  # the next question will say so
        finally:
            self._turns.give(asker, 1)

    async def _next(self) -> "_Child":
        while self._idle:
            child = self._idle.pop(0)
            if child.is_alive:
                return child
            await self._ended(child)
        return await self._started()

    async def _settle(self, child: "_Child", asker: str) -> None:
        try:
            if not await child.is_ready():
                await self._ended(child)  # whatever it still does, it must not go on
                child = await self._started()
            self._idle.append(child)
        except SqlFailed:
            pass  # the next question will say so
        finally:
            self._turns.give(asker, 1)

    async def _ended(self, child: "_Child") -> None:
        await child.end()
        self._living.discard(child)

    async def _started(self) -> "_Child":
        if self._closed:
            raise SqlFailed("the service is being closed")
        descriptors: list[int] = []
        try:
            self._dataset_root.mkdir(parents=True, exist_ok=True)
            descriptors.append(nameless(seccomp_program()))
            process = await asyncio.create_subprocess_exec(
                *self._command(*descriptors),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={},  # bubblewrap's own environment can be read inside
                cwd="/",
                pass_fds=descriptors,
                start_new_session=True,
                limit=1 << 22,
            )
        except OSError as error:
            raise SqlFailed(f"no sandbox for SQL: {error}; {ADVICE}") from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        child = _Child(process)
        self._living.add(child)
        if self._closed:
            child.kill()
        if not await child.is_ready():
            await self._ended(child)
            raise SqlFailed(f"no sandbox for SQL: bubblewrap does not work with {sys.executable}; {ADVICE}")
        return child

    def _command(self, syscalls: int) -> list[str]:
        address_space = (self._limits.memory_mib << 20) + HEADROOM
        read_only = {Path(folder).resolve() for folder in (sys.prefix, sys.base_prefix, *_libraries())} | {
            Path(sys.prefix).absolute()
        }
        binds = [part for folder in sorted(read_only) for part in ("--ro-bind", str(folder), str(folder))]
        return [
            *(path_of("bwrap"), "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"),
            *("--new-session", "--clearenv", "--setenv", "PATH", "/usr/bin", "--setenv", "HOME", "/tmp"),
            *("--tmpfs", "/tmp", "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin"),
            *("--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", *binds),
            *("--proc", "/proc", "--dev", "/dev"),
            *("--ro-bind", str(self._duck.segments.root.absolute()), str(SEGMENTS)),
            *("--ro-bind", str(self._dataset_root.absolute()), str(DATASETS)),
            *("--ro-bind", str(INSIDE), "/program", "--remount-ro", "/", "--chdir", "/tmp"),
            *("--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "box", "--cap-drop", "ALL"),
            *("--seccomp", str(syscalls), sys.executable, "-I", "/program", str(address_space)),
        ]


ADVICE = "install bubblewrap 0.8 or newer and libseccomp, and allow user namespaces"


class _Child:
    """One process, for one question after another."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout
        self._is_done = True
        self._has_started = False
        self.is_over_time = False
        """It was killed because its time was over."""

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    @contextmanager
    def until(self, seconds: float) -> Iterator[None]:
        """Kills it when its time is over, whoever waits for what by then."""
        timer = asyncio.get_running_loop().call_later(seconds, self._end_in_time)
        try:
            yield
        finally:
            timer.cancel()

    async def was_killed(self) -> bool:
        """By somebody else. Waits until it has ended."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                return await self._process.wait() in KILLED and not self.is_over_time
        except TimeoutError:
            return False

    async def is_ready(self) -> bool:
        """Waits until it can take a question; False if it has not finished the last one, or never will be ready."""
        if not self._is_done or self.is_over_time:
            return False
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._frame()
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            self._has_started = True
            return False
        return True

    async def begin(self, request: bytes) -> dict[str, str] | None:
        """Asks; what is wrong with the question, or None. Raises IncompleteReadError when the process ended."""
        self._is_done = False
        self._in.write(request)
        await self._in.drain()
        kind, payload = await self._frame()
        told: dict[str, str] | None = json.loads(payload) if kind == b"e" else None
        return told

    async def rest(self) -> AsyncIterator[bytes]:
        """The data of the answer. Raises SqlFailed where it breaks off."""
        while not self._is_done:
            try:
                kind, payload = await self._frame()
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                raise SqlFailed("the answer could not be finished in time") from error
            if kind == b"e":
                raise SqlFailed(json.loads(payload)["detail"])
            if self.is_over_time:
                raise SqlFailed("the answer could not be finished in time")
            yield payload

    async def end(self) -> None:
        self.kill()
        self._in.close()
        with contextlib.suppress(TimeoutError, ConnectionError, RuntimeError):  # the last: somebody else reads already
            async with asyncio.timeout(CLOSE_SECONDS):
                # While unread output is held back, its end is not seen, and nobody is told that the process is gone.
                while await self._out.read(1 << 20):
                    pass
                await self._process.wait()

    async def _frame(self) -> tuple[bytes, bytes]:
        kind, size = FRAME.unpack(await self._out.readexactly(FRAME.size))
        payload = await self._out.readexactly(size)
        self._has_started = True
        self._is_done = kind in (b"e", b"z")
        return kind, payload

    def _end_in_time(self) -> None:
        if not self._is_done:
            self.is_over_time = True
            self.kill()

    def kill(self) -> None:
        """At once; while it starts, as soon as it has started and finds nothing to read. Bubblewrap that is killed
        before it is ready leaves its inner half behind."""
        if not self._has_started:
            self._in.close()
        elif self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _libraries() -> list[str]:
    """Folders of what the program imports, wherever they are installed."""
    import duckdb
    import pyarrow

    paths = sysconfig.get_paths()
    packages = {str(Path(str(module.__file__)).parents[1]) for module in (duckdb, pyarrow)}
    return sorted(packages | {paths["stdlib"]})
