"""Long work: accepted at once, done in the background, told as events, resumed after a restart.

- A job's state is its newest stored event; a final state is never left.
- Every job that was accepted comes to a final state, if need be after a restart.
- Cancelling stops *asking*: what is already sampling is finished and stored.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum, auto
from typing import Any, Protocol

from service.stages import Conflict, NotFound, Refused, StageError

Json = dict[str, Any]
logger = logging.getLogger(__name__)


class JobState(StrEnum):
    QUEUED = auto()
    RUNNING = auto()
    DONE = auto()
    FAILED = auto()
    CANCELLED = auto()

    @property
    def is_final(self) -> bool:
        return not _MOVES[self]

    def to(self, other: "JobState") -> "JobState":
        """The next state, if the move is legal."""
        if other not in _MOVES[self]:
            raise ValueError(f"a {self} job cannot become {other}")
        return other


_MOVES = {
    JobState.QUEUED: {JobState.RUNNING, JobState.CANCELLED, JobState.FAILED},
    JobState.RUNNING: {JobState.RUNNING, JobState.DONE, JobState.FAILED, JobState.CANCELLED},
    JobState.DONE: set(),
    JobState.FAILED: set(),
    JobState.CANCELLED: set(),
}


class JobKind(StrEnum):
    ROLLOUTS = auto()
    PUBLISH = auto()
    RESCORE = auto()
    PUSH = auto()


@dataclass(frozen=True, slots=True)
class JobEvent:
    seq: int
    """Counted from 1 within the job."""
    state: JobState
    data: Json
    at: datetime


@dataclass(slots=True)
class Job:
    id: str
    kind: JobKind
    run: str
    """The run, the policy or the dataset that the job works on; jobs on the same one take turns."""
    request: Json
    created_at: datetime
    events: list[JobEvent] = field(default_factory=list)
    cancel_requested: bool = False
    progress: Json = field(default_factory=dict)
    """Newer than the last event, and only in memory."""

    @property
    def state(self) -> JobState:
        return self.events[-1].state

    @property
    def result(self) -> Json | None:
        return self.events[-1].data if self.state.is_final else None


class JobLog(Protocol):
    """Where jobs and their events are kept."""

    async def add(self, job: Job) -> None:
        """Stores a new job with its first event."""

    async def append(self, job_id: str, event: JobEvent) -> None: ...

    async def all(self) -> list[Job]: ...


Work = Callable[[Job, Callable[[Json], Awaitable[None]]], Awaitable[Json]]
"""Does a job. Gets a function that reports progress as an event; returns the result."""


class Cancelled(Exception):
    """The work noticed ``job.cancel_requested`` and stopped; carries the result so far."""

    def __init__(self, result: Json) -> None:
        super().__init__("cancelled")
        self.result = result


def no_job(job_id: str) -> NotFound:
    return NotFound("job_not_found", f"there is no job {job_id!r}")


class JobBoard:
    """Runs jobs, one at a time per run."""

    def __init__(self, log: JobLog, work: dict[JobKind, Work], now: Callable[[], datetime]) -> None:
        self._log = log
        self._work = work
        self._now = now
        self._jobs: dict[str, Job] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()

    async def resume(self) -> list[str]:
        """Takes up the jobs that an earlier process left unfinished, oldest first; returns their ids."""
        self._jobs = {job.id: job for job in await self._log.all()}
        unfinished = [job for job in self._jobs.values() if not job.state.is_final]
        for job in unfinished:
            self._start(job)
        return [job.id for job in unfinished]

    async def submit(self, job_id: str, kind: JobKind, run: str, request: Json) -> Job:
        """A job is accepted once it is stored. The same id with the same request gives the same job."""
        now = self._now()
        job = Job(job_id, kind, run, request, now, [JobEvent(1, JobState.QUEUED, {}, now)])
        if known := self._jobs.get(job_id):
            if (known.kind, known.run, known.request) != (kind, run, request):
                raise Conflict("idempotency_conflict", f"job {job_id} was made by a different request")
            return known
        self._jobs[job_id] = job
        try:
            await self._log.add(job)
        except BaseException:
            del self._jobs[job_id]
            raise
        self._start(job)
        return job

    def get(self, job_id: str) -> Job:
        if job_id not in self._jobs:
            raise no_job(job_id)
        return self._jobs[job_id]

    def find(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def unfinished(self, kind: JobKind, run: str) -> Job | None:
        """The oldest of this kind that works on the run, or waits for its turn."""
        wanted = (job for job in self._jobs.values() if (job.kind, job.run) == (kind, run) and not job.state.is_final)
        return min(wanted, key=lambda job: (job.created_at, job.id), default=None)

    def all(self) -> list[Job]:
        """Newest first."""
        return sorted(self._jobs.values(), key=lambda job: (job.created_at, job.id), reverse=True)

    async def cancel(self, job_id: str) -> Job:
        """Asks a job to stop; harmless on one that has ended."""
        job = self.get(job_id)
        job.cancel_requested = True
        return job

    async def wait(self, job: Job, *, seconds: float, beyond: int | None = None) -> None:
        """Returns when the job is final, has an event after number `beyond`, or the time is up."""

        def arrived() -> bool:
            return job.state.is_final or (beyond is not None and job.events[-1].seq > beyond)

        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(arrived)
        except TimeoutError:
            pass

    async def close(self) -> None:
        """Stops working; what is unfinished goes on at the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, job: Job) -> None:
        task = asyncio.create_task(self._do(job), name=job.id)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _do(self, job: Job) -> None:
        async with self._turns.setdefault(job.run, asyncio.Lock()):
            if job.cancel_requested:
                await self._tell(job, JobState.CANCELLED, {})
                return

            async def report(data: Json) -> None:
                await self._tell(job, JobState.RUNNING, data)

            try:
                await report({})
                result = await self._work[job.kind](job, report)
            except Cancelled as stopped:
                await self._tell(job, JobState.CANCELLED, stopped.result)
            except Refused as refused:
                await self._tell(job, JobState.FAILED, {"error": refused.code, "detail": str(refused)})
            except StageError as failure:
                await self._tell(job, JobState.FAILED, {"error": type(failure).__name__, "detail": str(failure)})
            except Exception as surprise:
                logger.exception("job %s failed in a way nobody foresaw", job.id)
                await self._tell(job, JobState.FAILED, {"error": "internal", "detail": repr(surprise)})
            else:
                await self._tell(job, JobState.DONE, result)

    async def _tell(self, job: Job, state: JobState, data: Json) -> None:
        event = JobEvent(job.events[-1].seq + 1, job.state.to(state), data, self._now())
        await self._log.append(job.id, event)
        job.events.append(event)
        async with self._changed:
            self._changed.notify_all()
