"""Jobs against a model of them, through whatever history: one at a time on each run, each to its end."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from service.jobs import CANCEL_REQUESTED, Cancelled, Job, JobBoard, JobKind, JobState
from service.stages import Conflict, EngineFailed, Invalid
from tests.service.histories import NOW, SETTINGS, History

RUNS = ("one", "other")
PATIENCE = 20.0
ENDS: dict[str, tuple[Callable[[], Exception], JobState, str]] = {
    "refused": (lambda: Invalid("no_rows", "none"), JobState.FAILED, "no_rows"),
    "failed": (lambda: EngineFailed("silent"), JobState.FAILED, "EngineFailed"),
    "surprised": (ZeroDivisionError, JobState.FAILED, "internal"),
    "stopped": (lambda: Cancelled({"error": "stopped"}), JobState.CANCELLED, "stopped"),
}
"""By what is said to a work: what it raises, and what the job is then."""


@dataclass
class Modelled:
    run: str
    request: dict[str, Any]
    state: JobState = JobState.QUEUED
    is_to_stop: bool = False
    error: str | None = None
    said: list[int] = field(default_factory=list)
    """What it reported."""


def reports(job: Job) -> list[int]:
    """What it reported; that it is to stop is told beside its last report."""
    return [event.data["said"] for event in job.events if "said" in event.data and CANCEL_REQUESTED not in event.data]


class Histories(History):
    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0
        self.jobs: dict[str, Modelled] = {}
        """In the order in which they were accepted."""
        self.open()

    def now(self) -> datetime:
        self.seconds += 1
        return NOW + timedelta(seconds=self.seconds)

    def open(self) -> None:
        self.orders: dict[str, asyncio.Queue[str | int]] = {name: asyncio.Queue() for name in self.jobs}
        self.at_work: list[str] = []
        self.board = JobBoard(self.store.jobs, {JobKind.ROLLOUTS: self.work}, self.now)
        taken_up = self.do(self.board.resume())
        assert taken_up == [name for name, job in self.jobs.items() if not job.state.is_final]

    def teardown(self) -> None:
        try:
            self.every_job_comes_to_its_end()
        finally:
            self.do(self.board.close())
            super().teardown()

    def every_job_comes_to_its_end(self) -> None:
        while working := [name for name, job in self.jobs.items() if job.state is JobState.RUNNING]:
            self.end(working[0], "done")

    async def work(self, job: Job, report: Callable[[dict[str, Any]], Awaitable[None]]) -> dict[str, Any]:
        """Does what it is told to by the history."""
        assert not [name for name in self.at_work if self.jobs[name].run == job.run]
        self.at_work.append(job.id)
        try:
            while True:
                order = await self.orders[job.id].get()
                if order == "done":
                    return {"error": None}
                if isinstance(order, str):
                    raise ENDS[order][0]()
                await report({"said": order})
        finally:
            self.at_work.remove(job.id)

    # ---- the model

    def first_of_each_run_works(self) -> None:
        """Whatever was told to stop before its turn came does not begin."""
        for run in RUNS:
            waiting = [job for job in self.jobs.values() if job.run == run and not job.state.is_final]
            for job in waiting:
                if job.state is JobState.QUEUED and job.is_to_stop:
                    job.state = JobState.CANCELLED
                    continue
                job.state = JobState.RUNNING
                break

    def any_job(self, data: st.DataObject, *states: JobState) -> str:
        return data.draw(st.sampled_from([name for name, job in self.jobs.items() if job.state in states]))

    def has(self, *states: JobState) -> bool:
        return any(job.state in states for job in self.jobs.values())

    # ---- what happens

    @rule(run=st.sampled_from(RUNS))
    def submit(self, run: str) -> None:
        name = f"j_{len(self.jobs)}"
        self.jobs[name] = Modelled(run, {"groups": len(self.jobs)})
        self.orders[name] = asyncio.Queue()
        job = self.do(self.board.submit(name, JobKind.ROLLOUTS, run, self.jobs[name].request))
        assert job.id == name
        self.first_of_each_run_works()

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def submit_again(self, data: st.DataObject) -> None:
        name = self.any_job(data, *JobState)
        known = self.jobs[name]
        assert self.do(self.board.submit(name, JobKind.ROLLOUTS, known.run, known.request)).id == name

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def submit_another_under_the_name(self, data: st.DataObject) -> None:
        name = self.any_job(data, *JobState)
        with pytest.raises(Conflict, match="different request"):
            self.do(self.board.submit(name, JobKind.ROLLOUTS, self.jobs[name].run, {"groups": -1}))

    @precondition(lambda self: self.has(JobState.RUNNING))
    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        name = self.any_job(data, JobState.RUNNING)
        self.jobs[name].said.append(self.seconds)
        self.orders[name].put_nowait(self.seconds)

    @precondition(lambda self: self.has(JobState.RUNNING))
    @rule(data=st.data(), how=st.sampled_from(["done", *ENDS]))
    def end_one(self, data: st.DataObject, how: str) -> None:
        self.end(self.any_job(data, JobState.RUNNING), how)

    def end(self, name: str, how: str) -> None:
        job = self.jobs[name]
        _, job.state, job.error = ENDS.get(how, (None, JobState.DONE, None))
        self.orders[name].put_nowait(how)
        self.first_of_each_run_works()
        self.what_is_told_is_so()

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = self.any_job(data, *JobState)
        self.do(self.board.cancel(self.do(self.board.get(name))))
        self.jobs[name].is_to_stop = True

    @rule(sealed=st.booleans())
    def restart(self, sealed: bool) -> None:
        self.do(self.board.close())
        self.reopen(sealed=sealed)
        self.open()

    # ---- what is so at any time

    @invariant()
    def what_is_told_is_so(self) -> None:
        self.do(self.until_the_model_is_reached())
        for name, job in self.jobs.items():
            found = self.do(self.board.get(name))
            assert (found.run, found.request, found.state) == (job.run, job.request, job.state)
            stored = self.do(self.store.jobs.find(name))
            assert stored is not None
            assert stored.events == found.events
            assert [event.seq for event in found.events] == list(range(1, len(found.events) + 1))
            assert all(before.state.to(after.state) for before, after in pairwise(found.events))
            assert reports(found) == job.said
            assert (found.result or {}).get("error") == job.error
            if not job.state.is_final:
                assert found.cancel_requested == job.is_to_stop
        newest = self.do(self.board.newest(1000))
        assert [job.id for job in newest] == list(reversed(self.jobs))

    async def until_the_model_is_reached(self) -> None:
        """Work goes on in the background."""
        give_up = time.monotonic() + PATIENCE
        while not await self.is_reached():
            assert time.monotonic() < give_up, (self.jobs, self.at_work)
            await asyncio.sleep(0.001)

    async def is_reached(self) -> bool:
        working = {name for name, job in self.jobs.items() if job.state is JobState.RUNNING}
        if set(self.at_work) != working or any(not orders.empty() for orders in self.orders.values()):
            return False
        found = {name: await self.board.get(name) for name in self.jobs}
        return all(
            job.state is self.jobs[name].state and len(reports(job)) == len(self.jobs[name].said)
            for name, job in found.items()
        )


TestHistories = Histories.TestCase
TestHistories.settings = SETTINGS
