"""Killable worker processes for verification.

- Every completion handed in comes back as exactly one verdict, in its place.
- A check that passes its wall clock, or takes its worker down, costs one worker restart and its own verdict; the
  checks behind it go on in the fresh worker.
"""

import asyncio
import json
import multiprocessing
import queue
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from curation.records import Outcome, Prompt, Verdict
from service.stages import VerifierFailed, stage
from service.verifiers import worker
from service.verifiers.base import REVISIONS, full_name

STARTUP_SECONDS = 120.0
"""A fresh worker imports its verifier's libraries within this time, on a busy machine too."""


class VerifierPool:
    """`verify` may be called from any number of tasks; at most `workers` checks run at a time."""

    def __init__(self, *, workers: int, seconds: float, memory_bytes: int) -> None:
        # Never a plain fork: this process has threads. The fork server has none.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([worker.__name__])
        self._workers = [_Worker(context, seconds, memory_bytes) for _ in range(workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for idle in self._workers:
            self._idle.put(idle)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="verifier")

    @property
    def pids(self) -> list[int]:
        """Of the worker processes that run now."""
        return [pid for one in self._workers if (pid := one.pid) is not None]

    async def verify(self, prompt: Prompt, texts: Sequence[str]) -> list[Verdict]:
        """One verdict per text, in their order."""
        if prompt.verifier not in REVISIONS:
            raise VerifierFailed(f"prompt {prompt.id} names the verifier {prompt.verifier!r}, which does not exist")
        loop = asyncio.get_running_loop()
        with stage(VerifierFailed, f"verifying prompt {prompt.id}"):
            return await loop.run_in_executor(self._threads, self._verify, prompt, list(texts))

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for stopping in self._workers:
            stopping.stop()

    def _verify(self, prompt: Prompt, texts: list[str]) -> list[Verdict]:
        borrowed = self._idle.get()
        try:
            return borrowed.verify(prompt, texts)
        finally:
            self._idle.put(borrowed)


class _Worker:
    """One child process and its pipe; started when first needed."""

    def __init__(self, context: multiprocessing.context.ForkServerContext, seconds: float, memory_bytes: int) -> None:
        self._context = context
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._child: tuple[BaseProcess, Connection] | None = None

    @property
    def pid(self) -> int | None:
        return self._child[0].pid if self._child else None

    def verify(self, prompt: Prompt, texts: list[str]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        while len(verdicts) < len(texts):
            verdicts += self._verify_until_killed(prompt, texts[len(verdicts) :])
        return verdicts

    def stop(self) -> None:
        if self._child is None:
            return
        process, connection = self._child
        self._child = None
        process.kill()
        process.join()
        connection.close()

    def _verify_until_killed(self, prompt: Prompt, texts: list[str]) -> list[Verdict]:
        """Verdicts for all texts, or for those up to and including the one that cost the worker."""
        _, connection = self._child = self._child or self._start()
        name = full_name(prompt.verifier)
        message = {
            "verifier": prompt.verifier,
            "reference": prompt.reference,
            "metadata": prompt.metadata,
            "texts": texts,
        }
        try:
            connection.send_bytes(json.dumps(message).encode())
            if not connection.poll(STARTUP_SECONDS):
                raise VerifierFailed(f"a worker for {name} did not start within {STARTUP_SECONDS:.0f} s")
            connection.recv_bytes()
        except BaseException:
            self.stop()
            raise
        verdicts: list[Verdict] = []
        for _ in texts:
            started = time.monotonic()
            try:
                if not connection.poll(self._seconds):
                    self.stop()
                    detail = f"killed after {self._seconds:g} s"
                    return [*verdicts, Verdict(Outcome.TIMEOUT, None, name, time.monotonic() - started, detail)]
                reply = json.loads(connection.recv_bytes())
            except (EOFError, ConnectionError):
                self.stop()
                detail = "the check took its worker process down"
                return [*verdicts, Verdict(Outcome.ERROR, None, name, time.monotonic() - started, detail)]
            verdicts.append(
                Verdict(Outcome(reply["outcome"]), reply["reward"], name, reply["elapsed"], reply["detail"])
            )
        return verdicts

    def _start(self) -> tuple[BaseProcess, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=worker.work, args=(theirs, self._memory_bytes), daemon=True)
        process.start()
        theirs.close()
        return process, ours
