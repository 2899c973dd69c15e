"""Jobs: legal moves only, one at a time per run, each to its end."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from service.jobs import (
    MOST_ENDED,
    MOST_UNFINISHED,
    MOST_UNFINISHED_OF_ONE,
    Cancelled,
    Job,
    JobBoard,
    JobEvent,
    JobKind,
    JobState,
)
from service.stages import Busy, Conflict, EngineFailed, Invalid, Overloaded, StoreFailed


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

    async def find(self, job_id: str) -> Job | None:
        return self.jobs.get(job_id)

    async def unfinished(self) -> list[Job]:
        return [replace(job, events=list(job.events)) for job in self.jobs.values() if not job.state.is_final]

    async def newest(self, limit: int, runs: Sequence[str] | None) -> list[Job]:
        wanted = [job for job in reversed(self.jobs.values()) if runs is None or job.run in runs]
        return wanted[:limit]

    async def runs(self) -> list[str]:
        return list({job.run for job in self.jobs.values()})


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


def test_a_job_that_was_told_to_stop_does_not_go_on_after_a_restart() -> None:
    log, done = Log(), []

    async def work(job: Job, report: Any) -> dict[str, Any]:
        await report({"so": "far"})
        for _ in range(200):
            if job.cancel_requested:
                raise Cancelled({})
            await asyncio.sleep(0.01)
        done.append(job.id)
        return {}

    async def hang(job: Job, report: Any) -> dict[str, Any]:
        await report({"so": "far"})
        await asyncio.sleep(60)
        return {}

    async def run() -> list[Job]:
        board = JobBoard(log, {JobKind.ROLLOUTS: hang}, now)
        jobs = [await board.submit(name, JobKind.ROLLOUTS, "r", {}) for name in ("working", "waiting", "not told")]
        await asyncio.sleep(0.05)
        for job in jobs[:2]:
            await board.cancel(job)
            await board.cancel(job)
        assert [job.state for job in jobs] == [JobState.RUNNING, JobState.QUEUED, JobState.QUEUED]
        assert jobs[0].events[-1].data == {"so": "far", "cancel_requested": True}
        await board.close()
        again = JobBoard(log, {JobKind.ROLLOUTS: work}, now)
        await again.resume()
        found = [await again.get(job.id) for job in jobs]
        for job in found:
            await again.wait(job, seconds=10)
        await again.cancel(found[2])
        await again.close()
        return found

    jobs = asyncio.run(run())

    assert [job.state for job in jobs] == [JobState.CANCELLED, JobState.CANCELLED, JobState.DONE]
    assert done == ["not told"]
    assert all([event.seq for event in job.events] == list(range(1, len(job.events) + 1)) for job in jobs)


def test_a_job_is_told_to_stop_once_more_if_that_could_not_be_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()

    async def hang(job: Job, report: Any) -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    async def full(_: Log, job_id: str, event: JobEvent) -> None:
        raise StoreFailed("full")

    async def run() -> None:
        board = JobBoard(log, {JobKind.ROLLOUTS: hang}, now)
        job = await board.submit("j", JobKind.ROLLOUTS, "r", {})
        await asyncio.sleep(0.05)
        with monkeypatch.context() as broken:
            broken.setattr(Log, "append", full)
            with pytest.raises(StoreFailed):
                await board.cancel(job)
        await asyncio.gather(board.cancel(job), board.cancel(job))
        await board.close()

    asyncio.run(run())

    assert [event.data for event in log.jobs["j"].events] == [{}, {}, {"cancel_requested": True}]


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


def test_a_policy_is_published_while_the_run_of_its_name_samples() -> None:
    async def work(job: Job, report: Any) -> dict[str, Any]:
        if job.kind is JobKind.ROLLOUTS:
            await asyncio.sleep(60)
        return {}

    async def run() -> list[JobState]:
        board = JobBoard(Log(), {JobKind.ROLLOUTS: work, JobKind.PUBLISH: work}, now)
        kinds = [JobKind.ROLLOUTS, JobKind.ROLLOUTS, JobKind.PUBLISH]
        jobs = [await board.submit(f"j{i}", kind, "same-name", {}) for i, kind in enumerate(kinds)]
        await board.wait(jobs[-1], seconds=5)
        states = [job.state for job in jobs]
        await board.close()
        return states

    assert asyncio.run(run()) == [JobState.RUNNING, JobState.QUEUED, JobState.DONE]


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
        job = await second.get("j")
        await second.wait(job, seconds=5)
        return job

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


def test_too_many_jobs_on_one_run_are_refused_and_those_on_others_are_not() -> None:
    async def never_ends(job: Job, report: Any) -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    async def run() -> None:
        board = JobBoard(Log(), {JobKind.ROLLOUTS: never_ends}, now)
        for number in range(MOST_UNFINISHED_OF_ONE):
            await board.submit(f"j{number}", JobKind.ROLLOUTS, "flood", {})
        with pytest.raises(Busy) as refused:
            await board.submit("one more", JobKind.ROLLOUTS, "flood", {})
        assert refused.value.extra["retry_after"] > 0
        await board.submit("j0", JobKind.ROLLOUTS, "flood", {})  # which is there
        await board.submit("another's", JobKind.ROLLOUTS, "r", {})
        for number in range(MOST_UNFINISHED - MOST_UNFINISHED_OF_ONE - 1):
            await board.submit(f"k{number}", JobKind.ROLLOUTS, f"r{number}", {})
        with pytest.raises(Overloaded):
            await board.submit("k", JobKind.ROLLOUTS, "last", {})
        await board.close()

    asyncio.run(run())


@pytest.mark.parametrize("is_full", [False, True])
def test_nobody_is_told_of_a_job_before_it_is_stored(is_full: bool) -> None:
    class Slow(Log):
        async def add(self, job: Job) -> None:
            await asyncio.sleep(0.05)
            if is_full:
                raise StoreFailed("the disk is full")
            await super().add(job)

    async def work(job: Job, report: Any) -> dict[str, Any]:
        return {}

    async def run() -> None:
        log = Slow()
        board = JobBoard(log, {JobKind.ROLLOUTS: work}, now)

        async def submit() -> bool:
            await board.submit("j", JobKind.ROLLOUTS, "r", {})
            return "j" in log.jobs

        told = await asyncio.gather(submit(), submit(), submit(), return_exceptions=True)
        await board.close()
        assert [isinstance(one, StoreFailed) if is_full else one is True for one in told] == [True] * 3

    asyncio.run(run())


def test_jobs_that_ended_long_ago_are_not_in_memory_and_can_be_asked_for() -> None:
    log = Log()

    async def work(job: Job, report: Any) -> dict[str, Any]:
        return {"of": job.id}

    async def run() -> tuple[Job, int]:
        board = JobBoard(log, {JobKind.ROLLOUTS: work}, now)
        for number in range(MOST_ENDED + 5):
            job = await board.submit(f"j{number}", JobKind.ROLLOUTS, "r", {})
            await board.wait(job, seconds=5)
        first = await board.get("j0")
        again = await board.submit("j0", JobKind.ROLLOUTS, "r", {})
        await board.close()
        assert again.result == first.result
        return first, len(board._jobs)

    first, in_memory = asyncio.run(run())

    assert (first.result, in_memory) == ({"of": "j0"}, MOST_ENDED)


def test_a_job_that_may_have_been_stored_is_taken_up_when_it_is_asked_for_again() -> None:
    class Unsure(Log):
        async def add(self, job: Job) -> None:
            known = bool(self.jobs)
            await super().add(job)
            if not known:
                raise StoreFailed("it is there, but nobody knows")

    async def work(job: Job, report: Any) -> dict[str, Any]:
        return {"done": True}

    async def run() -> Job:
        board = JobBoard(Unsure(), {JobKind.ROLLOUTS: work}, now)
        with pytest.raises(StoreFailed):
            await board.submit("j", JobKind.ROLLOUTS, "r", {})
        job = await board.submit("j", JobKind.ROLLOUTS, "r", {})
        await board.wait(job, seconds=5)
        await board.close()
        return job

    assert asyncio.run(run()).result == {"done": True}


def test_who_stops_waiting_for_a_job_to_be_accepted_does_not_stop_it() -> None:
    class Slow(Log):
        async def add(self, job: Job) -> None:
            await asyncio.sleep(0.05)
            await super().add(job)

    async def work(job: Job, report: Any) -> dict[str, Any]:
        return {"done": True}

    async def run() -> Job:
        board = JobBoard(Slow(), {JobKind.ROLLOUTS: work}, now)
        submitting = asyncio.create_task(board.submit("j", JobKind.ROLLOUTS, "r", {}))
        await asyncio.sleep(0.01)
        submitting.cancel()
        job = await board.get("j")
        await board.wait(job, seconds=5)
        await board.close()
        return job

    assert asyncio.run(run()).result == {"done": True}


def test_a_job_goes_on_when_the_store_works_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.jobs.STORE_RETRY", 0.01)

    class Failing(Log):
        left = 3

        async def append(self, job_id: str, event: JobEvent) -> None:
            if event.state.is_final and self.left:
                self.left -= 1
                raise StoreFailed("the disk is full")
            await super().append(job_id, event)

    tries = 0

    async def work(job: Job, report: Any) -> dict[str, Any]:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise StoreFailed("the disk is full")
        return {"tries": tries}

    log = Failing()

    assert outcome_of(work, log=log).result == {"tries": 6}
    assert [event.state for _, event in log.events].count(JobState.DONE) == 1
