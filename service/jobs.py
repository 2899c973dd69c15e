"""Long work: accepted at once, done in the background, told as events, resumed after a restart.

- A job's state is its newest stored event; a final state is never left.
- Jobs are in the order in which they were asked for, whatever the clock did meanwhile.
- Every job that was accepted comes to a final state, if need be after a restart; while the store fails it waits, and
  goes on as after a restart.
- Cancelling stops *asking*: what is already sampling is finished and stored. A job that was told to stop stops after a
  restart, too.
- Memory has what is unfinished, and the last that ended; the others are read when somebody asks.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum, auto
from typing import Any, Protocol
from weakref import WeakValueDictionary

from service.logs import about
from service.stages import Busy, Conflict, NotFound, Overloaded, Refused, StageError, StoreFailed

Json = dict[str, Any]
logger = logging.getLogger(__name__)
MOST_UNFINISHED_OF_ONE, MOST_UNFINISHED = 100, 1000
"""Jobs on one run, policy or dataset, and on all; more are told to come again."""
STORE_PATIENCE, STORE_RETRY = 3600.0, 2.0
"""Seconds that a job waits for a store that fails, a full disk say, and between two tries."""
CANCEL_REQUESTED = "cancel_requested"
"""Part of the data of an event."""
MOST_ENDED = 1000
"""That are kept in memory."""


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
    JobState.QUEUED: {JobState.QUEUED, JobState.RUNNING, JobState.CANCELLED, JobState.FAILED},
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

    @property
    def thing(self) -> str:
        """What is meant by the name of what such a job works on."""
        return {JobKind.PUBLISH: "policy", JobKind.PUSH: "dataset"}.get(self, "run")


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
    """The name of the run, the policy or the dataset that the job works on."""
    request: Json
    created_at: datetime
    events: list[JobEvent] = field(default_factory=list)
    cancel_requested: bool = False
    progress: Json = field(default_factory=dict)
    """Newer than the last event, and only in memory."""
    telling: asyncio.Lock = field(default_factory=asyncio.Lock, compare=False, repr=False)
    """One event after the other."""

    @property
    def on(self) -> tuple[str, str]:
        """What the job works on; jobs on the same one take turns. A run may be called like its policy."""
        return self.kind.thing, self.run

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

    async def find(self, job_id: str) -> Job | None: ...

    async def unfinished(self) -> list[Job]:
        """Oldest first."""

    async def newest(self, limit: int, runs: Sequence[str] | None) -> list[Job]:
        """Of these runs, policies and datasets, or of all."""

    async def runs(self) -> list[str]:
        """What jobs work or worked on."""


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
    """Runs jobs, one at a time on each thing."""

    def __init__(self, log: JobLog, work: dict[JobKind, Work], now: Callable[[], datetime]) -> None:
        self._log = log
        self._work = work
        self._now = now
        self._jobs: dict[str, Job] = {}
        self._storing: dict[str, asyncio.Task[None]] = {}
        """For each job of which nobody knows yet whether it is accepted."""
        self._ended: deque[str] = deque()
        """The last that ended, which somebody may be about to ask for."""
        self._newest: datetime | None = None
        """When the last job was made."""
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()

    async def resume(self) -> list[str]:
        """Takes up the jobs that an earlier process left unfinished, oldest first; returns their ids."""
        self._newest = max((job.created_at for job in await self._log.newest(1, None)), default=None)
        self._jobs = {job.id: job for job in await self._log.unfinished()}
        for job in self._jobs.values():
            job.cancel_requested = any(event.data.get(CANCEL_REQUESTED) for event in job.events)
            self._start(job)
        return list(self._jobs)

    async def submit(self, job_id: str, kind: JobKind, run: str, request: Json) -> Job:
        """A job is accepted once it is stored. The same id with the same request gives the same job. Raises Busy, or
        Overloaded, when too many wait already."""
        # Once more after the look on disk: meanwhile somebody may have submitted the same.
        known = await self.find(job_id) or self._jobs.get(job_id)
        if storing := self._storing.get(job_id):
            await asyncio.shield(storing)  # or it fails for both
        if known:
            if (known.kind, known.run, known.request) != (kind, run, request):
                raise Conflict("idempotency_conflict", f"job {job_id} was made by a different request")
            if not known.state.is_final and known.id not in self._jobs:  # nobody knew whether it was stored
                self._jobs[known.id] = known
                self._start(known)
            return known
        self._newest = now = self._later_than_all()
        job = Job(job_id, kind, run, request, now, [JobEvent(1, JobState.QUEUED, {}, now)])
        self._refuse_too_many(job.on)
        self._jobs[job_id] = job
        self._storing[job_id] = storing = self._task(self._accept(job))
        await asyncio.shield(storing)  # whoever stops waiting does not stop what is half done
        return job

    async def _accept(self, job: Job) -> None:
        try:
            await self._log.add(job)
        except BaseException:
            del self._jobs[job.id]
            raise
        finally:
            del self._storing[job.id]
        self._start(job)

    async def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        if job := await self.find(job_id):
            return job
        raise no_job(job_id)

    async def find(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id) or await self._log.find(job_id)

    def at_work(self) -> list[Job]:
        """All that have not ended."""
        return [job for job in self._jobs.values() if not job.state.is_final]

    def unfinished(self, kind: JobKind, run: str) -> Job | None:
        """The oldest of this kind that works on the run, or waits for its turn."""
        wanted = (job for job in self.at_work() if (job.kind, job.run) == (kind, run))
        return min(wanted, key=lambda job: (job.created_at, job.id), default=None)

    async def newest(self, limit: int, reaches: Callable[[str], bool] | None = None) -> list[Job]:
        """Newest first; those that work on what is reached, if not all are."""
        runs = None if reaches is None else [run for run in await self._log.runs() if reaches(run)]
        return [self._jobs.get(job.id, job) for job in await self._log.newest(limit, runs)]

    async def cancel(self, job: Job) -> None:
        """Asks it to stop, and returns once that is stored; harmless on one that has ended."""
        job.cancel_requested = True
        await asyncio.shield(self._task(self._tell(job, None, {CANCEL_REQUESTED: True})))

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

    def _refuse_too_many(self, on: tuple[str, str]) -> None:
        waiting = Counter(job.on for job in self.at_work())
        if waiting[on] >= MOST_UNFINISHED_OF_ONE:
            detail = f"{waiting[on]} jobs on {' '.join(on)} wait already: cancel some, or come again"
            raise Busy("too_many_jobs", detail, unfinished=waiting[on], retry_after=30)
        if waiting.total() >= MOST_UNFINISHED:
            detail = f"{waiting.total()} jobs wait already: come again"
            raise Overloaded("too_many_jobs", detail, unfinished=waiting.total(), retry_after=30)

    def _later_than_all(self) -> datetime:
        """Now, or just after the last job where the clock was set back: by that time jobs are taken up."""
        now = self._now()
        return now if self._newest is None else max(now, self._newest + timedelta(microseconds=1))

    def _start(self, job: Job) -> None:
        self._task(self._do(job))

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """It ends before the board is closed."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _do(self, job: Job) -> None:
        turns = self._turns.setdefault(job.on, asyncio.Lock())
        async with turns:
            with about(job=job.id, on=job.run):
                await self._do_in_turn(job)

    async def _do_in_turn(self, job: Job) -> None:
        """To its end; over again, as after a restart, while the store fails."""
        give_up = time.monotonic() + STORE_PATIENCE
        while True:
            try:
                await self._tell(job, *await self._outcome(job))
            except StoreFailed as failure:
                if time.monotonic() > give_up:
                    logger.error("waits for a restart of the service: %s", failure)
                    return
                logger.warning("goes on once the store works again: %s", failure)
                await asyncio.sleep(STORE_RETRY)
            else:
                return

    async def _outcome(self, job: Job) -> tuple[JobState, Json]:
        """Raises StoreFailed."""
        if job.cancel_requested and job.state is JobState.QUEUED:
            return JobState.CANCELLED, {}

        async def report(data: Json) -> None:
            await self._tell(job, JobState.RUNNING, data)

        try:
            await report({})
            return JobState.DONE, await self._work[job.kind](job, report)
        except Cancelled as stopped:
            return JobState.CANCELLED, stopped.result
        except StoreFailed:
            raise
        except Refused as refused:
            return JobState.FAILED, {"error": refused.code, "detail": str(refused)}
        except StageError as failure:
            return JobState.FAILED, {"error": type(failure).__name__, "detail": str(failure)}
        except Exception as surprise:
            logger.exception("failed in a way nobody foresaw")
            return JobState.FAILED, {"error": "internal", "detail": repr(surprise)}

    async def _tell(self, job: Job, state: JobState | None, data: Json) -> None:
        """Without a state the data are added to those of the last event, unless that was the final one or they were
        told before."""
        async with job.telling:
            last = job.events[-1]
            if state is None:
                if last.state.is_final or any(data.items() <= event.data.items() for event in job.events):
                    return
                state, data = last.state, last.data | data
            event = JobEvent(last.seq + 1, last.state.to(state), data, self._now())
            await self._log.append(job.id, event)
            job.events.append(event)
        if state.is_final:
            logger.info("%s job ended as %s", job.kind, state)
            self._ended.append(job.id)
            if len(self._ended) > MOST_ENDED:
                self._jobs.pop(self._ended.popleft(), None)
        async with self._changed:
            self._changed.notify_all()
