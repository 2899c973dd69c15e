"""Jobs: legal moves only, one at a time per run, each to its end."""

import asyncio
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from service.jobs import Cancelled, Job, JobBoard, JobEvent, JobKind, JobState
from service.stages import Conflict, EngineFailed, Invalid


class Log:
    """A job log in memory."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.events: list[tuple[str, JobEvent]] = []

    async def add(self, job: Job) -> None:
        self.jobs[job.id] = Job(job.id, job.kind, job.run, job.request, job.created_at, list(job.events))

    async def append(self, job_id: str, event: JobEvent) -> None:
        self.jobs[job_id].events.append(event)
        self.events.append((job_id, event))

    async def all(self) -> list[Job]:
        return list(self.jobs.values())


def now() -> datetime:
    return datetime.now(UTC)


def outcome_of(work: Any, *, log: Log | None = None) -> Job:
    """The job that this work made of itself."""

    async def run() -> Job:
        board = JobBoard(log or Log(), {JobKind.ROLLOUTS: work}, now)
        job = await board.submit("j", JobKind.ROLLOUTS, "r", {})
        await board.wait(job, seconds=5)
        await board.close()
        return job

    return asyncio.run(run())


def ending(error: Exception) -> Any:
    async def work(job: Job, report: Any) -> dict[str, Any]:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "state", "says"),
    [
        (EngineFailed("no answer"), JobState.FAILED, "EngineFailed"),
        (Invalid("no_pairs", "none"), JobState.FAILED, "no_pairs"),
        (ZeroDivisionError(), JobState.FAILED, "internal"),
        (Cancelled({"so": "far"}), JobState.CANCELLED, "far"),
    ],
)
def test_a_job_ends_as_what_happened_to_it(error: Exception, state: JobState, says: str) -> None:
    job = outcome_of(ending(error))

    assert job.state is state
    assert says in str(job.result)


def test_events_count_up_and_every_move_is_legal() -> None:
    async def work(job: Job, report: Any) -> dict[str, Any]:
        await report({"half": True})
        return {"whole": True}

    job = outcome_of(work)

    assert [event.seq for event in job.events] == [1, 2, 3, 4]
    assert all(before.state.to(after.state) is after.state for before, after in pairwise(job.events))
    assert job.result == {"whole": True}


@pytest.mark.parametrize("final", [state for state in JobState if state.is_final])
def test_a_final_state_is_never_left(final: JobState) -> None:
    for other in JobState:
        with pytest.raises(ValueError, match="cannot become"):
            final.to(other)


def test_jobs_on_one_run_take_turns_and_jobs_on_others_do_not_wait() -> None:
    busy: list[str] = []
    overlaps: set[frozenset[str]] = set()

    async def work(job: Job, report: Any) -> dict[str, Any]:
        busy.append(job.run)
        overlaps.add(frozenset({job.run}) if busy.count(job.run) > 1 else frozenset(busy))
        assert busy.count(job.run) == 1
        await asyncio.sleep(0.01)
        busy.remove(job.run)
        return {}

    async def run() -> list[Job]:
        board = JobBoard(Log(), {JobKind.ROLLOUTS: work}, now)
        jobs = [await board.submit(f"j{i}", JobKind.ROLLOUTS, "ab"[i % 2], {}) for i in range(6)]
        for job in jobs:
            await board.wait(job, seconds=5)
        return jobs

    jobs = asyncio.run(run())

    assert {job.state for job in jobs} == {JobState.DONE}
    assert frozenset("ab") in overlaps


def test_what_a_dead_process_left_is_taken_up_again() -> None:
    log = Log()

    async def never_ends(job: Job, report: Any) -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    async def ends(job: Job, report: Any) -> dict[str, Any]:
        return {"resumed": True}

    async def run() -> Job:
        first = JobBoard(log, {JobKind.ROLLOUTS: never_ends}, now)
        await first.submit("j", JobKind.ROLLOUTS, "r", {})
        await asyncio.sleep(0.01)
        await first.close()
        second = JobBoard(log, {JobKind.ROLLOUTS: ends}, now)
        assert await second.resume() == ["j"]
        await second.wait(second.get("j"), seconds=5)
        return second.get("j")

    assert asyncio.run(run()).result == {"resumed": True}


def test_the_same_id_for_another_request_is_a_conflict() -> None:
    async def work(job: Job, report: Any) -> dict[str, Any]:
        return {}

    async def run() -> None:
        board = JobBoard(Log(), {JobKind.ROLLOUTS: work}, now)
        await board.submit("j", JobKind.ROLLOUTS, "r", {"groups": 1})
        await board.submit("j", JobKind.ROLLOUTS, "r", {"groups": 1})
        with pytest.raises(Conflict):
            await board.submit("j", JobKind.ROLLOUTS, "r", {"groups": 2})
        await board.close()

    asyncio.run(run())
