"""Killable worker processes for verification.

- Every completion handed in comes back as exactly one verdict, in its place.
- A check that passes a limit, or takes its worker down, costs one worker restart and its own verdict; the checks
  behind it go on in the fresh worker.
- A worker that somebody else kills says nothing about its check, which is tried once more.
- Equal completions of one prompt are checked once.
"""

import asyncio
import json
import multiprocessing
import queue
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

from curation.records import Outcome, Verdict
from service.shares import Shares
from service.stages import VerifierFailed, stage
from service.verifiers import worker
from service.verifiers.base import Question
from service.verifiers.worker import OUT_OF_MEMORY, Limits

END_SECONDS = 120.0
"""Until a process that is ending has ended, on a busy machine too."""
TEXTS_PER_TURN = 8
"""Of one run, while others wait."""
CHECKS_PER_WORKER = 2000
"""Then it is replaced: whatever leaks has an end."""
PRELOADED = (worker.__name__, "service.verifiers.math_rule")
"""Imported once, before the workers are forked: a restart then costs milliseconds."""
KILLED = {-signal.SIGKILL, 255}
"""Exit statuses of workers that somebody else ended; the second is of one whose fork server is gone, too."""
TRIES, MOST_STARTS = 2, 6
"""Of a check whose worker is killed, and of workers that are to begin with it: a machine without memory, say, kills the
one that is loading most easily."""


@dataclass(frozen=True, slots=True)
class Check:
    """What to do with a completion, but for the completion itself."""

    label: str
    """Of the verdicts."""
    rule: str
    """``package.module:function``, imported by the worker."""
    question: Question
    wall_seconds: float | None = None
    """Where a rule needs more than the pool gives."""
    operator: Mapping[str, Any] | None = None
    """With it, the function at `rule` makes the rule from it."""


class VerifierPool:
    """`verify` may be called from any number of tasks; at most `workers` checks run at a time."""

    def __init__(self, *, workers: int, limits: Limits) -> None:
        # Never a plain fork: this process has threads. The fork server has none.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*PRELOADED, *_imported_by_main()])
        self._workers = [_Worker(context, limits) for _ in range(workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for idle in self._workers:
            self._idle.put(idle)
        self._turns = Shares(lambda: workers)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="verifier")
        self._first = ThreadPoolExecutor(1, thread_name_prefix="verifier-first")

    @property
    def pids(self) -> list[int]:
        """Of the worker processes that run now."""
        return [pid for one in self._workers if (pid := one.pid) is not None]

    @property
    def restarts(self) -> int:
        """Workers that a check cost."""
        return sum(one.lost for one in self._workers)

    async def verify(self, check: Check, texts: Sequence[str], run: str = "", *, first: bool = False) -> list[Verdict]:
        """One verdict per text, in their order. Runs take turns of a few texts; `first` waits for the next free worker
        only."""
        different = list(dict.fromkeys(texts))
        verdicts: list[Verdict] = []
        loop = asyncio.get_running_loop()
        with stage(VerifierFailed, f"verifying with {check.label}"):
            if first:
                verdicts = await loop.run_in_executor(self._first, self._verify, check, different)
            while len(verdicts) < len(different):
                part = different[len(verdicts) : len(verdicts) + TEXTS_PER_TURN]
                async with self._turns.hold(run):
                    verdicts += await loop.run_in_executor(self._threads, self._verify, check, part)
        verdict_of = dict(zip(different, verdicts, strict=True))
        return [verdict_of[text] for text in texts]

    def close(self) -> None:
        for threads in (self._threads, self._first):
            threads.shutdown(cancel_futures=True)
        for stopping in self._workers:
            stopping.stop()

    def _verify(self, check: Check, texts: list[str]) -> list[Verdict]:
        borrowed = self._idle.get()
        try:
            return borrowed.verify(check, texts)
        finally:
            self._idle.put(borrowed)


class _Killed(Exception):
    """Somebody else ended the worker, as it seems."""

    def __init__(self, detail: str, started: float | None = None) -> None:
        super().__init__(detail)
        self.started = started
        """When the check was begun; None where it was not."""


class _Worker:
    """One child process and its pipe; started when first needed."""

    def __init__(self, context: multiprocessing.context.ForkServerContext, limits: Limits) -> None:
        self._context = context
        self._limits = limits
        self._child: tuple[BaseProcess, Connection] | None = None
        self._checks = 0
        """Of the child."""
        self.lost = 0
        """Children that a check ended."""

    @property
    def pid(self) -> int | None:
        return self._child[0].pid if self._child else None

    def verify(self, check: Check, texts: list[str]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        killed: list[_Killed] = []
        while len(verdicts) < len(texts):
            try:
                for verdict in self._verify_until_lost(check, texts[len(verdicts) :]):
                    verdicts.append(verdict)
                    killed = []
            except _Killed as another:
                self.lost += 1
                killed.append(another)
                if verdict_of_it := _no_coincidence(killed, check):
                    verdicts.append(verdict_of_it)
                    killed = []
        if self._checks >= CHECKS_PER_WORKER:
            self.stop()
        return verdicts

    def stop(self) -> int | None:
        """Ends the child; returns what it had ended with already, if it had."""
        if self._child is None:
            return None
        process, connection = self._child
        self._child = None
        exitcode = process.exitcode
        process.kill()
        process.join()
        process.close()
        connection.close()
        return exitcode

    def _verify_until_lost(self, check: Check, texts: list[str]) -> Iterator[Verdict]:
        """Verdicts for all texts, or for those up to and including the one that cost the worker. Raises _Killed where
        somebody else ended it."""
        connection = self._hand_over(check, texts)
        for _ in texts:
            yield self._next_verdict(connection, check)
            if self._child is None:
                self.lost += 1
                break

    def _hand_over(self, check: Check, texts: list[str]) -> Connection:
        """Returns once the worker has begun with the first text."""
        if self._child and not self._child[0].is_alive():
            self.stop()  # somebody ended it while it was idle
        rule = {"path": check.rule, "operator": None if check.operator is None else json.dumps(dict(check.operator))}
        message = {"rule": rule, "question": asdict(check.question), "texts": texts}
        try:
            _, connection = self._child = self._child or self._start()
            connection.send_bytes(json.dumps(message).encode())
            if not connection.poll(self._limits.load_seconds):
                seconds = self._limits.load_seconds
                raise VerifierFailed(f"a worker did not load what {check.label} needs within {seconds:g} s")
            connection.recv_bytes()
        except (EOFError, OSError) as error:
            self.stop()
            raise _Killed(f"a worker ended while it loaded what {check.label} needs: {error!r}") from error
        except BaseException:
            self.stop()
            raise
        return connection

    def _next_verdict(self, connection: Connection, check: Check) -> Verdict:
        """Of the text that the worker is at; afterwards there is no child if that text cost it."""
        started = time.monotonic()
        seconds = check.wall_seconds or self._limits.wall_seconds
        self._checks += 1
        try:
            if not connection.poll(seconds):
                self.stop()
                return _unscored(check, Outcome.TIMEOUT, f"killed after {seconds:g} s", started)
            reply = json.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):
            return self._post_mortem(check, started)
        if reply["detail"] == OUT_OF_MEMORY:  # it lives, but who knows how well
            self.stop()
        return Verdict(Outcome(reply["outcome"]), reply["reward"], check.label, reply["elapsed"], reply["detail"])

    def _post_mortem(self, check: Check, started: float) -> Verdict:
        assert self._child is not None
        self._child[0].join(END_SECONDS)
        exitcode = self.stop()
        if exitcode == -signal.SIGPROF:
            return _unscored(check, Outcome.TIMEOUT, f"killed after {self._limits.cpu_seconds:g} s of CPU", started)
        detail = f"the check took its worker process down (exit status {exitcode})"
        if exitcode in KILLED:
            raise _Killed(detail, started)
        return _unscored(check, Outcome.ERROR, detail, started)

    def _start(self) -> tuple[BaseProcess, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=worker.work, args=(theirs, self._limits), daemon=True)
        process.start()
        theirs.close()
        self._checks = 0
        return process, ours


def _imported_by_main() -> list[str]:
    """A worker imports the program's main module when it starts, and with it whatever that imports: cheap, once the
    fork server has it."""
    things = vars(sys.modules["__main__"]).values()
    names = {
        thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None) for thing in things
    }
    return sorted(name for name in names if isinstance(name, str) and name != "__main__")


def _unscored(check: Check, outcome: Outcome, detail: str, started: float) -> Verdict:
    return Verdict(outcome, None, check.label, time.monotonic() - started, detail)


def _no_coincidence(killed: Sequence[_Killed], check: Check) -> Verdict | None:
    """Of a check that took down two workers, one after the other; None while it is to be tried again. Raises
    VerifierFailed where worker after worker is gone before it begins."""
    begun = [one for one in killed if one.started is not None]
    if len(begun) == TRIES and (last := begun[-1].started):
        return _unscored(check, Outcome.ERROR, str(begun[-1]), last)
    if len(killed) == MOST_STARTS:
        raise VerifierFailed(str(killed[-1])) from killed[-1]
    return None
