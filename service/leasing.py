"""Leases: groups of a run are handed to a trainer until it acknowledges them or its time is over.

- Each consumer has a queue of its own over the run and is given every group once: no group is in two leases that live.
- Groups come in the order in which their prompts were chosen, not in that in which the answers came in: one waits until
  every visit that was planned before its own has ended. So the same run gives the same batches, and a short answer has
  no head start.
- A lease is on disk before it is handed out. Whoever asks for it again, by its key, gets the same groups and the same
  rows, whatever was rescored since.
- Time is that of the monotonic clock. It begins anew when the service does: nobody gets less than was promised.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import uuid4
from weakref import WeakValueDictionary

from pydantic import Field, model_validator

from curation.choice import Choice
from curation.curate import rows_alone
from curation.judged import JudgedGroup
from curation.keys import digest
from curation.recipe import GroupRule, Shape
from service.engines.room import EngineRoom
from service.harvest import admit
from service.jobs import Job, JobBoard
from service.refilling import Refilling, request_for
from service.run_config import NAME, Retain, RunConfig
from service.shapes import tables_of
from service.stages import Conflict, Invalid, StoreFailed, stage
from service.store.duck import Duck
from service.store.judged import Judged
from service.store.leases import Candidates, Lease, Leases, LeaseState
from service.store.policies import Policies
from service.store.prompts import Prompts
from service.store.runs import Runs

POLL_SECONDS = 0.05
"""Between two glances at whether there is anything new."""
LEAST_PER_LOOK = 64
"""Groups whose verdicts are read at once; twice as many each time, where the recipe takes few."""
ANY_VERSION = -(2**31)


class LeaseRequest(Choice):
    """Which groups of a run, and for how long."""

    groups: int = Field(ge=1, le=100_000)
    """Exactly so many."""
    consumer: str = Field("trainer", pattern=NAME)
    """Whose queue to take them from: a group is given to each consumer once."""
    max_staleness: int | None = Field(None, ge=0, lt=2**31)
    """By how many versions the live policy may be ahead of the one that sampled a group; None takes any."""
    recipe: GroupRule = GroupRule(shape=Shape.GROUPS)
    """What the rows are, and which groups give some."""
    seconds: float = Field(600, gt=0, le=86_400)
    """Until they are handed out again, unless they are acknowledged or the lease is renewed."""
    wait: float = Field(0, ge=0, le=300)
    """Seconds to wait until there are enough."""
    sample: bool = False
    """True samples what is lacking."""
    ahead: int = Field(0, ge=0, le=1_000_000)
    """With `sample`: groups to have ready beyond this lease."""

    @model_validator(mode="after")
    def _rows_of_groups(self) -> "LeaseRequest":
        if self.recipe.shape is Shape.PROMPTS:
            raise ValueError("a row of shape prompts stands for all groups of a prompt: no lease has them")
        if self.ahead and not self.sample:
            raise ValueError("ahead is what to sample ahead: it goes with sample")
        return self

    @property
    def decisive(self) -> dict[str, Any]:
        """What decides on the rows. The rest may differ when the same lease is asked for again."""
        return self.model_dump(mode="json", include={"groups", "consumer", "max_staleness", "recipe"})


class Handed(NamedTuple):
    """A lease as its consumer gets it."""

    lease: Lease
    is_new: bool
    policy_version: int | None
    """That is live; None where the rollouts were recorded elsewhere."""
    stale: int
    """Groups that would have been there if they were not too old."""
    available: int
    """Groups that are left; those that were not looked at count as if the recipe took them."""
    rows: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class _Look:
    """What there was for a consumer at one moment."""

    found: list[str]
    """Groups that give rows; not more than were looked for."""
    unseen: int
    """Candidates that were not looked at."""
    stale: int
    policy_version: int | None
    watermark: int
    commits: int
    """Of the store, when it was looked at."""
    seconds: float
    """That it took."""


class Deadlines:
    """When the time of each open lease is over."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ends: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def start(self, lease_id: str, seconds: float) -> None:
        self._ends[lease_id] = self._clock() + seconds

    def forget(self, lease_ids: Iterable[str]) -> None:
        for lease_id in lease_ids:
            self._ends.pop(lease_id, None)

    def left(self, lease_id: str) -> float | None:
        """Seconds, 0 or less once it is over; None for a lease that is not open."""
        end = self._ends.get(lease_id)
        return None if end is None else end - self._clock()

    def over(self) -> list[str]:
        now = self._clock()
        return [lease_id for lease_id, end in self._ends.items() if end <= now]

    def next(self) -> float:
        """Seconds until another one is over."""
        now = self._clock()
        return min((end - now for end in self._ends.values() if end > now), default=float("inf"))


class Leasing:
    def __init__(
        self,
        *,
        leases: Leases,
        judged: Judged,
        runs: Runs,
        policies: Policies,
        prompts: Prompts,
        duck: Duck,
        jobs: JobBoard,
        engines: EngineRoom,
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        self._leases = leases
        self._judged = judged
        self._runs = runs
        self._policies = policies
        self._prompts = prompts
        self._duck = duck
        self._engines = engines
        self._now = now
        self._refilling = Refilling(jobs)
        self._deadlines = Deadlines(clock)
        self._queues: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    @property
    def open(self) -> int:
        """Leases that a consumer has, or whose time is over and whose groups nobody took."""
        return len(self._deadlines)

    async def resume(self) -> None:
        """Gives every lease that an earlier process left open its whole time anew."""
        for lease_id, seconds in (await self._leases.open()).items():
            self._deadlines.start(lease_id, seconds)

    async def take(self, run_name: str, request: LeaseRequest, key: str | None) -> Handed:
        """Leases groups, or gives the lease that belongs to the client's key again.

        Raises Conflict when there are too few after the wait, when the run can give none, when the lease of this key
        was for another request or has lost its groups; Invalid for what the run can never give.
        """
        run = await self._runs.get(run_name)
        await self._check(run, request)
        lease_id = "l_" + (uuid4().hex if key is None else digest(run_name, request.consumer, key))
        if request.sample and await self._leases.find(lease_id) is None:
            asked = request_for(request.groups, request.recipe)
            await admit(asked, run, prompts=self._prompts, engines=self._engines)
        loop = asyncio.get_running_loop()
        give_up = loop.time() + request.wait
        while True:
            # Before the look: of a job that has ended by now the look sees everything.
            job = self._refilling.at_work(run_name)
            # Whoever stops waiting does not stop what is half done.
            outcome = await asyncio.shield(self._take_or_look(run, request, lease_id))
            if isinstance(outcome, Handed):
                return outcome._replace(rows=await asyncio.to_thread(self._rows, outcome.lease))
            if request.sample and job is None:
                lacking = request.groups + request.ahead - len(outcome.found)
                job = await asyncio.shield(self._refilling.fill(lease_id, run_name, lacking, request.recipe))
            if loop.time() >= give_up:
                raise _too_few(request, outcome, job)
            await self._wait_for_news(outcome, job, give_up)

    async def get(self, lease_id: str) -> Lease:
        """Raises NotFound."""
        return self._shown(await self._leases.get(lease_id))

    async def page(self, run: str, after: int, limit: int) -> list[Lease]:
        """Of a run, oldest first."""
        await self._runs.get(run)
        return [self._shown(lease) for lease in await self._leases.page(run, after, limit)]

    async def acknowledge(self, lease_id: str) -> Lease:
        """The consumer has done with the groups. Its time may be over, as long as nobody else has any of them."""
        return await asyncio.shield(self._tell(lease_id, LeaseState.ACKNOWLEDGED))

    async def release(self, lease_id: str) -> Lease:
        """The consumer gives the groups back; harmless where it has lost them."""
        return await asyncio.shield(self._tell(lease_id, LeaseState.RELEASED))

    async def renew(self, lease_id: str) -> Lease:
        """Its time begins anew."""
        return await asyncio.shield(self._tell(lease_id, LeaseState.OPEN))

    def expires_at(self, lease: Lease) -> datetime | None:
        """By the clock on the wall, as it goes now; None for one that is not open."""
        left = self._deadlines.left(lease.id)
        return None if left is None else self._now() + timedelta(seconds=left)

    async def _check(self, run: RunConfig, request: LeaseRequest) -> None:
        if request.max_staleness is not None and run.imported:
            raise Invalid(
                "no_live_policy", f"run {run.name!r} holds recorded rollouts: nothing tells how stale they are"
            )
        if request.recipe.zero_variance and run.retain is not Retain.ALL:
            detail = f"run {run.name!r} keeps no texts of groups whose rewards agree: make one with retain = all"
            raise Invalid("texts_not_kept", detail)

    async def _take_or_look(self, run: RunConfig, request: LeaseRequest, lease_id: str) -> Handed | _Look:
        async with self._queue(run.name, request.consumer):
            while True:
                if known := await self._leases.find(lease_id):
                    return await self._again(known, run, request)
                look = await self._look(run, request)
                if len(look.found) < request.groups:
                    return look
                if lease := await self._leased(run, request, lease_id, look):
                    break
        ready = look.found[request.groups :]
        if len(ready) < request.ahead:
            with suppress(Conflict):  # there may be none for the next lease: that is told to who asks for it
                await self._refilling.fill(lease_id, run.name, request.ahead - len(ready), request.recipe)
        return Handed(lease, True, look.policy_version, look.stale, len(ready) + look.unseen)

    async def _leased(self, run: RunConfig, request: LeaseRequest, lease_id: str, look: _Look) -> Lease | None:
        """None if a policy was published meanwhile: then what was found may be too old."""
        now = self._now()
        group_ids = tuple(look.found[: request.groups])
        lease = Lease(
            lease_id,
            run.name,
            request.consumer,
            request.decisive,
            group_ids,
            look.watermark,
            now,
            LeaseState.OPEN,
            request.seconds,
            now,
        )
        # Before it is stored: one of which nobody knows whether it was is over some day, too.
        self._deadlines.start(lease_id, request.seconds)
        taken_from = await self._leases.add(lease, run.policy, look.policy_version)
        self._deadlines.forget([lease_id] if taken_from is None else taken_from)
        return None if taken_from is None else lease

    async def _again(self, lease: Lease, run: RunConfig, request: LeaseRequest) -> Handed:
        """The lease of this key once more: as good as new, unless it is acknowledged."""
        if LeaseRequest.model_validate(lease.request).decisive != request.decisive:
            raise Conflict("idempotency_conflict", f"lease {lease.id} was made by a different request")
        if lease.state is LeaseState.EXPIRED:
            raise _lost(lease)
        if lease.state is not LeaseState.ACKNOWLEDGED:
            lease = await self._opened(lease, request.seconds)
        version, candidates = await self._candidates(run, request)
        return Handed(lease, False, version, candidates.stale, len(candidates.fresh))

    async def _opened(self, lease: Lease, seconds: float) -> Lease:
        self._deadlines.start(lease.id, seconds)
        if lease.state is LeaseState.OPEN and lease.seconds == seconds:
            return lease
        return await self._leases.tell(lease, LeaseState.OPEN, seconds, self._now())

    async def _tell(self, lease_id: str, state: LeaseState) -> Lease:
        known = await self._leases.get(lease_id)
        async with self._queue(known.run, known.consumer):
            lease = await self._leases.get(lease_id)
            if lease.state is LeaseState.EXPIRED and state is not LeaseState.RELEASED:
                raise _lost(lease)
            if lease.state is not state and lease.state in {LeaseState.ACKNOWLEDGED, LeaseState.RELEASED}:
                raise Conflict(f"lease_{lease.state}", f"lease {lease.id} is {lease.state}")
            if state is LeaseState.OPEN:
                return await self._opened(lease, lease.seconds)
            if lease.state is LeaseState.OPEN:
                lease = await self._leases.tell(lease, state, lease.seconds, self._now())
                self._deadlines.forget([lease.id])
            return lease

    async def _look(self, run: RunConfig, request: LeaseRequest) -> _Look:
        """Goes through the candidates until enough of them give rows."""
        began, commits = asyncio.get_running_loop().time(), self._duck.commits
        version, (fresh, stale, watermark) = await self._candidates(run, request)
        wanted = request.groups + request.ahead
        found: list[str] = []
        seen = 0
        while len(found) < wanted and seen < len(fresh):
            part = fresh[seen : seen + max(LEAST_PER_LOOK, wanted - len(found), seen)]
            found += await asyncio.to_thread(self._giving, run.name, watermark, request.recipe, part)
            seen += len(part)
        seconds = asyncio.get_running_loop().time() - began
        return _Look(
            found[:wanted], len(fresh) - seen + len(found[wanted:]), stale, version, watermark, commits, seconds
        )

    async def _candidates(self, run: RunConfig, request: LeaseRequest) -> tuple[int | None, Candidates]:
        """The live version, and what there is as seen from it."""
        version = None if run.imported else (await self._policies.versions(run.policy))[-1].version
        oldest = ANY_VERSION
        if version is not None and request.max_staleness is not None:
            oldest = version - request.max_staleness
        recipe = request.recipe
        # Of the verdicts that count, those that agree give no contrast; a named verifier may have found others.
        contrasting = recipe.shape in {Shape.PAIRS, Shape.GROUPS} and not recipe.zero_variance and not recipe.verifier
        over = self._deadlines.over()
        return version, await self._leases.candidates(
            run.name, request.consumer, over=over, oldest=oldest, contrasting=contrasting
        )

    def _giving(self, run: str, watermark: int, recipe: GroupRule, group_ids: list[str]) -> list[str]:
        """Those of the groups that give rows, in their order."""
        judged = self._judged_groups(run, watermark, recipe, group_ids)
        return [group_id for group_id in group_ids if rows_alone(judged[group_id], recipe)]

    def _rows(self, lease: Lease) -> list[dict[str, Any]]:
        """What a dataset would hold of its groups, as of its watermark, in their order."""
        recipe = LeaseRequest.model_validate(lease.request).recipe
        with stage(StoreFailed, f"reading the rows of lease {lease.id}"):
            judged = self._judged_groups(lease.run, lease.watermark, recipe, lease.group_ids)
            rows = [row for group_id in lease.group_ids for row in rows_alone(judged[group_id], recipe)]
            return [row for table in tables_of(rows, recipe, self._judged) for row in table.to_pylist()]

    def _judged_groups(
        self, run: str, watermark: int, recipe: GroupRule, group_ids: Iterable[str]
    ) -> dict[str, JudgedGroup]:
        groups = self._judged.groups([run], watermark, recipe.verifier, group_ids=list(group_ids))
        return {group.origin.group_id: group for group in groups}

    async def _wait_for_news(self, look: _Look, job: Job | None, give_up: float) -> None:
        """Until something was committed, the job has ended, another lease has expired, or it is time to give up."""
        loop = asyncio.get_running_loop()
        until = min(give_up, loop.time() + self._deadlines.next())
        await asyncio.sleep(look.seconds)  # as long as a look takes: whoever waits is not all that the service does
        while self._duck.commits == look.commits and loop.time() < until:
            if job is not None and job.state.is_final:
                return
            await asyncio.sleep(POLL_SECONDS)

    def _queue(self, run: str, consumer: str) -> asyncio.Lock:
        """Whoever gives groups to this consumer, or takes them back, has it."""
        return self._queues.setdefault((run, consumer), asyncio.Lock())

    def _shown(self, lease: Lease) -> Lease:
        """As expired once its time is over, also while nobody has taken its groups."""
        left = self._deadlines.left(lease.id)
        is_over = lease.state is LeaseState.OPEN and left is not None and left <= 0
        return replace(lease, state=LeaseState.EXPIRED) if is_over else lease


def _too_few(request: LeaseRequest, look: _Look, job: Job | None) -> Conflict:
    available = len(look.found)
    detail = f"{available} groups can be leased, {request.groups} are wanted"
    if look.stale:
        detail += f"; {look.stale} more are too stale"
    return Conflict(
        "too_few_groups",
        detail,
        available=available,
        stale=look.stale,
        wanted=request.groups,
        job=job.id if job else None,
    )


def _lost(lease: Lease) -> Conflict:
    return Conflict("lease_lost", f"lease {lease.id} had expired, and another one has some of its groups")
