"""A rollouts job: round after round of visits, until enough informative groups are stored.

- The decisions of a round are stored before its first prompt is sampled, and a round ends before the next is
  planned. So an interrupted job first finishes its open visits and then decides as if nothing had happened.
- Every sampled visit ends as one stored group or one stored failure.
- Cancelling and budgets act between rounds: a group that is sampling is never thrown away.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum, auto
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from curation.choice import Choice, Several
from curation.records import Action, Decision, Prompt, Visit
from curation.selection import Inherited, RunState, by_name, group_sizes, next_epoch, plan_round, round_size
from curation.selectors.base import Seen
from service.collect import Verify, collect
from service.engines.base import Engine
from service.engines.room import EngineRoom
from service.jobs import Cancelled, Job
from service.run_config import RunConfig
from service.shares import Shares
from service.stages import Invalid, StageError, StoreFailed
from service.store.groups import Groups, PlannedVisit, StoredGroup
from service.store.prompts import Prompts

BARREN_ROUNDS = 32
"""Rounds in a row in which the selector let nothing through, until the job gives up."""
PROMPTS_PER_GROUP = 100
"""Without a budget, a job samples at most so many prompts per informative group it was asked for."""


class Budget(Choice):
    """What the job may spend; it stops between rounds once one of them is spent."""

    prompts: int | None = Field(None, ge=1)
    """Prompts rolled out."""
    tokens: int | None = Field(None, ge=1)
    """Tokens sampled."""
    seconds: float | None = Field(None, gt=0)


class RolloutsRequest(Choice):
    """What to sample: exactly one of the three."""

    groups: int | None = Field(None, ge=1, le=10_000_000)
    """Sample until so many informative groups are stored."""
    prompts: Several[str] | None = Field(None, min_length=1, max_length=100_000)
    """Sample these prompts once, whatever the selector thinks of them."""
    passes: int | None = Field(None, ge=1, le=10_000)
    """Consider every prompt of the set so many times."""
    budget: Budget = Budget()

    @model_validator(mode="after")
    def _exactly_one(self) -> "RolloutsRequest":
        if sum(value is not None for value in (self.groups, self.prompts, self.passes)) != 1:
            raise ValueError("ask for exactly one of groups, prompts and passes")
        if self.prompts and len(set(self.prompts)) < len(self.prompts):
            raise ValueError("a prompt is named twice")
        return self


class Stop(StrEnum):
    """Why a job ended."""

    ENOUGH = auto()
    """Everything that was asked for is stored."""
    BUDGET = auto()
    EXHAUSTED = auto()
    """The selector let nothing through, round after round."""


Report = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(slots=True)
class Spent:
    """What this job has used so far."""

    prompts: int
    tokens: int
    seconds: float
    informative: int

    def exceeds(self, budget: Budget) -> bool:
        limits = (
            (self.prompts, budget.prompts),
            (self.tokens, budget.tokens),
            (self.seconds, budget.seconds),
        )
        return any(limit is not None and used >= limit for used, limit in limits)


class Learned(NamedTuple):
    """What is left of a group once it is stored: its texts are no longer in memory."""

    rewards_G: tuple[float, ...]
    policy_version: int


class Failed(NamedTuple):
    """The visit has ended without a group."""

    why: StageError


class Harvest:
    """One rollouts job at work."""

    def __init__(
        self,
        job: Job,
        run: RunConfig,
        prompts: dict[str, Prompt],
        *,
        engine: Engine,
        verify: Verify,
        groups: Groups,
        at_work: Shares,
        now: Callable[[], datetime],
        report: Report,
    ) -> None:
        """`at_work` is for the completions that are being sampled, judged or stored."""
        self._job = job
        self._run = run
        self._prompts = prompts
        self._request = RolloutsRequest.model_validate(job.request)
        self._engine = engine
        self._verify = verify
        self._groups = groups
        self._at_work = at_work
        self._now = now
        self._report = report
        self._sampling: set[str] = set()
        """Prompts of the current round whose answers are not here yet."""

    async def work(self) -> dict[str, Any]:
        """Samples until the request is met; returns the job's result, the funnel."""
        began = time.monotonic()
        # Seconds are counted over restarts: the job's own events tell how many it used before.
        earlier = max((e.data["funnel"]["seconds"] for e in self._job.events if "funnel" in e.data), default=0.0)
        state = await self._take_up()
        last_epoch = await self._last_epoch(state)
        barren = 0

        while True:
            funnel = await self._groups.funnel(job=self._job.id)
            spent = Spent(
                funnel["sampled"], funnel["tokens"], earlier + time.monotonic() - began, funnel["informative"]
            )
            result = {"funnel": funnel | {"seconds": round(spent.seconds, 3)}, "selector": state.selector.knobs()}
            await self._report(result)
            if self._job.cancel_requested:
                raise Cancelled(result)
            if self._is_met(spent, seen_any=funnel["considered"] > 0, state=state, last_epoch=last_epoch):
                return result | {"stop": Stop.ENOUGH}
            if spent.exceeds(self._budget):
                return result | {"stop": Stop.BUDGET}
            if barren == BARREN_ROUNDS:
                return result | {"stop": Stop.EXHAUSTED}
            visits = self._plan(state, spent, last_epoch)
            barren = 0 if any(not v.decision.action.is_skip for v in visits) else barren + 1
            await self._round(visits, state)

    async def _take_up(self) -> RunState:
        """Finishes what an earlier process began, then derives where the run stands."""
        interrupted = await self._groups.open_visits(self._job.id)
        if interrupted:
            await self._collect_all([_planned_of(row) for row in interrupted])
        continues = await self._groups.last_job(self._run.name) == self._job.id
        seen = await self._groups.seen(self._run.name)
        state = RunState.replay(
            self._run.selector,
            seen,
            seed=self._run.seed,
            group_size=self._run.decided_by,
            allocation=self._run.allocation,
            inherited=await self._inherited(),
        )
        if seen and not continues:
            state.close_step()  # a job begins a training step of its own
        return state

    async def _inherited(self) -> Inherited:
        inherit = self._run.inherit
        if inherit is None:
            return []
        known = await self._groups.known_before(self._run.name, inherit.runs)
        return [(prompt_id, rewards_G, inherit.weight) for prompt_id, rewards_G in known if prompt_id in self._prompts]

    @property
    def _budget(self) -> Budget:
        budget = self._request.budget
        if self._request.groups and budget == Budget():
            return Budget(prompts=PROMPTS_PER_GROUP * self._request.groups)
        return budget

    async def _last_epoch(self, state: RunState) -> int | None:
        """The pass with which a `passes` request ends."""
        if self._request.passes is None:
            return None
        began_in = await self._groups.first_epoch(self._job.id)
        first = next_epoch(self._prompts, state) if began_in is None else began_in
        return first + self._request.passes - 1

    def _is_met(self, spent: Spent, *, seen_any: bool, state: RunState, last_epoch: int | None) -> bool:
        if self._request.groups is not None:
            return spent.informative >= self._request.groups
        if last_epoch is not None:
            return next_epoch(self._prompts, state) > last_epoch
        return seen_any

    def _plan(self, state: RunState, spent: Spent, last_epoch: int | None) -> list[Visit]:
        if self._request.prompts is not None:
            return by_name(self._request.prompts, state)
        wanted = self._run.batch.groups
        if state.informative >= wanted:
            state.close_step()
        if self._request.groups is not None:
            wanted = min(wanted, state.informative + self._request.groups - spent.informative)
        size = round_size(self._run.batch, state, wanted=wanted, group_size=self._run.sampling.n)
        if self._budget.prompts is not None:
            size = min(size, self._budget.prompts - spent.prompts)
        return plan_round(self._prompts, state, size=size, through_epoch=last_epoch)

    async def _round(self, visits: list[Visit], state: RunState) -> None:
        number = state.round + 1
        sizes = group_sizes(visits, state, self._run.sampling.n)
        planned = [
            PlannedVisit(self._run.name, self._job.id, state.step, number, visit, sizes.get(visit.prompt_id))
            for visit in visits
        ]
        await self._groups.plan(planned, self._now())
        collected = await self._collect_all([p for p in planned if not p.visit.decision.action.is_skip])
        for visit in visits:
            group = collected.get(visit.prompt_id)
            state.observe(
                Seen(
                    visit.prompt_id,
                    visit.epoch,
                    state.step,
                    number,
                    visit.decision.action,
                    group.rewards_G if group else None,
                    group.policy_version if group else None,
                )
            )

    async def _collect_all(self, planned: list[PlannedVisit]) -> dict[str, Learned]:
        """What the stored groups tell, by prompt. Raises the last StageError when not a single one could be stored."""
        self._job.progress = {"round": {"sampling": len(planned), "done": 0}}
        self._sampling = {p.visit.prompt_id for p in planned}
        outcomes = await asyncio.gather(*(self._collect_one(p) for p in planned), return_exceptions=True)
        for outcome in outcomes:  # only now: whatever goes on behind a job's back may store a group twice
            if isinstance(outcome, BaseException):
                raise outcome
        stored = {p.visit.prompt_id: one for p, one in zip(planned, outcomes, strict=True) if isinstance(one, Learned)}
        failures = [outcome.why for outcome in outcomes if isinstance(outcome, Failed)]
        if failures and not stored:
            raise failures[-1]
        return stored

    async def _collect_one(self, planned: PlannedVisit) -> Learned | Failed:
        """Raises StoreFailed: then nobody knows what became of the visit, and it is still open."""
        prompt = self._prompts[planned.visit.prompt_id]

        async def append(stored: StoredGroup) -> None:
            self._sampling.discard(prompt.id)
            await self._groups.append(stored, self._run.retain, self._now(), patient=bool(self._sampling))

        try:
            async with self._at_work.hold(self._run.name, planned.rollouts or self._run.sampling.n):
                group = await collect(
                    planned, prompt, self._run, engine=self._engine, verify=self._verify, append=append
                )
        except StoreFailed:
            raise
        except StageError as failure:
            await self._groups.fail(planned, type(failure).__name__, str(failure), self._now())
            return Failed(failure)
        finally:
            self._sampling.discard(prompt.id)
            self._job.progress["round"]["done"] += 1
        return Learned(group.group.rewards_G, group.group.policy_version)


async def admit(request: RolloutsRequest, run: RunConfig, *, prompts: Prompts, engines: EngineRoom) -> None:
    """Raises Invalid for a request that can never be met, NotFound for prompts that do not exist, and EngineFailed when
    the policy is not loaded: before there is a job."""
    if run.imported:
        raise Invalid("imported_run", f"run {run.name!r} holds recorded rollouts; sample into a run of its own")
    named = await prompts.get(request.prompts) if request.prompts else {}
    if not named and not await prompts.page(run.prompt_set, "", 1):
        raise Invalid("empty_prompt_set", f"prompt set {run.prompt_set!r} holds no prompts; POST /v1/prompts first")
    if request.groups is not None and run.sampling.n < 2:
        raise Invalid("group_too_small", "a group of n = 1 is never informative: ask for prompts or passes instead")
    if request.groups is not None and run.sampling.temperature == 0:
        raise Invalid("greedy_group", "at temperature 0 all rollouts of a group are equal: none is informative")
    if unjudged := await prompts.judged_elsewhere(run.prompt_set):
        detail = f"{unjudged} prompts of {run.prompt_set!r} came with labels and no verifier; add them with one"
        raise Invalid("recorded_prompts", detail)
    engines.engine_of(run.policy)


def _planned_of(row: dict[str, Any]) -> PlannedVisit:
    decision = Decision(Action(row["action"]), row["keep_probability"], row["reason"])
    visit = Visit(row["prompt_id"], row["visit"], row["epoch"], decision)
    return PlannedVisit(row["run"], row["job"], row["step"], row["round"], visit, row["rollouts"])
