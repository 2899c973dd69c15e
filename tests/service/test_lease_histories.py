"""Leases against a model of them, through whatever history: a group is with one at a time, and nothing done is lost."""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from curation.records import Action, Decision, Visit
from service.engines.room import EngineRoom
from service.jobs import JobBoard
from service.leasing import Handed, LeaseRequest, Leasing
from service.parts import Store
from service.run_config import Retain, RunConfig
from service.stages import Conflict
from service.store.groups import PlannedVisit, StoredGroup
from service.store.leases import LeaseState
from service.store.policies import PolicyVersion
from tests.builders import a_group, a_prompt

T = TypeVar("T")
NOW = datetime(2026, 1, 1)  # noqa: DTZ001 - as the store has them
SECONDS = 60.0
CONSUMERS = ("one", "other")
RUN = RunConfig(name="run", policy="policy", prompt_set="s")


@dataclass
class Modelled:
    consumer: str
    groups: list[str]
    state: LeaseState
    ends: float


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.loop = asyncio.new_event_loop()
        self.clock = 0.0
        self.groups: list[str] = []
        """In the order in which their prompts were chosen."""
        self.leases: dict[str, Modelled] = {}
        """By key."""
        self.ids: dict[str, str] = {}
        self.rows: dict[str, Any] = {}
        self.open()
        self.do(self.store.policies.add(PolicyVersion("policy", 1, "", None, NOW)))
        self.do(self.store.runs.add(RUN, NOW))

    def do(self, what: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(what)

    def open(self) -> None:
        self.store = Store.open(self.folder / "data")
        self.leasing = Leasing(
            leases=self.store.leases,
            judged=self.store.judged,
            runs=self.store.runs,
            policies=self.store.policies,
            prompts=self.store.prompts,
            duck=self.store.duck,
            jobs=JobBoard(self.store.jobs, {}, lambda: NOW),
            engines=EngineRoom(lambda _: None),  # type: ignore[arg-type, return-value]
            now=lambda: NOW,
            clock=lambda: self.clock,
        )
        self.do(self.leasing.resume())

    def teardown(self) -> None:
        try:
            self.everything_is_handed_out()
        finally:
            self.store.close()
            self.loop.close()
            shutil.rmtree(self.folder)

    def everything_is_handed_out(self) -> None:
        """Once nobody has anything left, every group has been with somebody who was done with it."""
        self.clock += 2 * SECONDS
        for consumer in CONSUMERS:
            if free := self.free(consumer):
                self.take(f"last-{consumer}", consumer, len(free))
                self.acknowledge(f"last-{consumer}")
            done = [x.groups for x in self.leases.values() if (x.consumer, x.state) == (consumer, "acknowledged")]
            assert sorted(sum(done, [])) == sorted(self.groups)  # noqa: RUF017 - a few

    def is_live(self, lease: Modelled) -> bool:
        return lease.state is LeaseState.OPEN and lease.ends > self.clock

    def free(self, consumer: str) -> list[str]:
        held = [x for x in self.leases.values() if x.consumer == consumer]
        taken = {g for x in held if self.is_live(x) or x.state is LeaseState.ACKNOWLEDGED for g in x.groups}
        return [group for group in self.groups if group not in taken]

    def refusal(self, what: Coroutine[Any, Any, Any]) -> tuple[Any, str]:
        """The answer, or the code of the refusal."""
        try:
            return self.do(what), ""
        except Conflict as refused:
            return None, refused.code

    @initialize(count=st.integers(3, 6))
    def some_groups(self, count: int) -> None:
        for _ in range(count):
            self.another_group()

    @rule()
    def another_group(self) -> None:
        prompt = a_prompt(f"{len(self.groups)} + 1?")
        group = a_group(1.0, 0.0, prompt=prompt, run="run", policy_version=1)
        visit = Visit(prompt.id, 0, 0, Decision(Action.SAMPLED, 1.0, ""))
        self.do(self.store.prompts.add([prompt], "s", NOW))
        self.do(self.store.groups.plan([PlannedVisit("run", "j", 0, 0, visit, 2)], NOW))
        self.do(self.store.groups.append(StoredGroup(group, "j", "policy", 1.0, 0.0, 0.0), Retain.ALL, NOW))
        self.groups.append(group.id)

    @rule(consumer=st.sampled_from(CONSUMERS), count=st.integers(1, 3))
    def lease(self, consumer: str, count: int) -> None:
        self.take(f"key-{len(self.leases)}", consumer, count)

    def take(self, key: str, consumer: str, count: int) -> None:
        free = self.free(consumer)
        request = LeaseRequest(groups=count, consumer=consumer, seconds=SECONDS)

        handed, refused = self.refusal(self.leasing.take("run", request, key))

        if len(free) < count:
            assert refused == "too_few_groups"
            return
        assert isinstance(handed, Handed)
        assert list(handed.lease.group_ids) == free[:count]
        assert (handed.is_new, handed.available) == (True, len(free) - count)
        for lease in self.leases.values():
            if lease.consumer == consumer and set(lease.groups) & set(free[:count]):
                lease.state = LeaseState.EXPIRED
        self.leases[key] = Modelled(consumer, free[:count], LeaseState.OPEN, self.clock + SECONDS)
        self.ids[key], self.rows[key] = handed.lease.id, handed.rows

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        key = self.any_key(data)
        lease = self.leases[key]
        request = LeaseRequest(groups=len(lease.groups), consumer=lease.consumer, seconds=SECONDS)

        handed, refused = self.refusal(self.leasing.take("run", request, key))

        if lease.state is LeaseState.EXPIRED:
            assert refused == "lease_lost"
            return
        assert (list(handed.rows), handed.is_new) == (list(self.rows[key]), False)
        if lease.state is not LeaseState.ACKNOWLEDGED:
            lease.state, lease.ends = LeaseState.OPEN, self.clock + SECONDS
        assert handed.lease.state is lease.state

    def any_key(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.leases)))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def acknowledge_one(self, data: st.DataObject) -> None:
        self.acknowledge(self.any_key(data))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release_one(self, data: st.DataObject) -> None:
        self.release(self.any_key(data))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def renew_one(self, data: st.DataObject) -> None:
        self.renew(self.any_key(data))

    def acknowledge(self, key: str) -> None:
        lease = self.leases[key]
        refused = self.refusal(self.leasing.acknowledge(self.ids[key]))[1]
        expected = {LeaseState.EXPIRED: "lease_lost", LeaseState.RELEASED: "lease_released"}
        assert refused == expected.get(lease.state, "")
        lease.state = lease.state if refused else LeaseState.ACKNOWLEDGED

    def release(self, key: str) -> None:
        lease = self.leases[key]
        refused = self.refusal(self.leasing.release(self.ids[key]))[1]
        assert refused == {LeaseState.ACKNOWLEDGED: "lease_acknowledged"}.get(lease.state, "")
        lease.state = LeaseState.RELEASED if lease.state is LeaseState.OPEN else lease.state

    def renew(self, key: str) -> None:
        lease = self.leases[key]
        refused = self.refusal(self.leasing.renew(self.ids[key]))[1]
        expected = {
            LeaseState.EXPIRED: "lease_lost",
            LeaseState.RELEASED: "lease_released",
            LeaseState.ACKNOWLEDGED: "lease_acknowledged",
        }
        assert refused == expected.get(lease.state, "")
        lease.ends = lease.ends if refused else self.clock + SECONDS

    @rule(seconds=st.sampled_from([1.0, 30.0, SECONDS]))
    def time_passes(self, seconds: float) -> None:
        self.clock += seconds

    @rule(sealed=st.booleans())
    def restart(self, sealed: bool) -> None:
        if sealed:
            self.store.sealer.seal()
        self.store.close()
        self.clock /= 2  # another machine, another clock
        self.open()
        for lease in self.leases.values():
            lease.ends = self.clock + SECONDS

    @invariant()
    def no_group_is_with_two(self) -> None:
        told = self.do(self.leasing.page("run", 0, 1000))
        by_id = {lease.id: lease for lease in told}
        for key, lease in self.leases.items():
            is_over = lease.state is LeaseState.OPEN and not self.is_live(lease)
            assert by_id[self.ids[key]].state is (LeaseState.EXPIRED if is_over else lease.state)
        for consumer in CONSUMERS:
            live = [x for x in told if x.consumer == consumer and x.state in ("open", "acknowledged")]
            held = [group_id for lease in live for group_id in lease.group_ids]
            assert len(held) == len(set(held))


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    phases=[Phase.generate],  # a shorter history would take minutes
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
