"""Leases against a model of them, through whatever history: a group is with one at a time, and nothing done is lost."""

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from service.engines.room import EngineRoom
from service.jobs import JobBoard
from service.leasing import Handed, LeaseRequest, Leasing
from service.stages import Conflict
from service.store.leases import LeaseState
from tests.service.histories import NOW, SETTINGS, History

SECONDS = 60.0
CONSUMERS = ("one", "other")
RUN = "run"


@dataclass
class Modelled:
    consumer: str
    groups: list[str]
    state: LeaseState
    ends: float


class Histories(History):
    def __init__(self) -> None:
        super().__init__()
        self.clock = 0.0
        self.groups: list[str] = []
        """In the order in which their prompts were chosen."""
        self.leases: dict[str, Modelled] = {}
        """By key."""
        self.ids: dict[str, str] = {}
        self.rows: dict[str, Any] = {}
        self.add_runs(RUN)
        self.open()

    def open(self) -> None:
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
            super().teardown()

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
        self.groups.append(self.add_group(RUN, len(self.groups), 1.0, 0.0).id)

    @rule(consumer=st.sampled_from(CONSUMERS), count=st.integers(1, 3))
    def lease(self, consumer: str, count: int) -> None:
        self.take(f"key-{len(self.leases)}", consumer, count)

    def take(self, key: str, consumer: str, count: int) -> None:
        free = self.free(consumer)
        request = LeaseRequest(groups=count, consumer=consumer, seconds=SECONDS)

        handed, refused = self.refusal(self.leasing.take(RUN, request, key))

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

        handed, refused = self.refusal(self.leasing.take(RUN, request, key))

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
        self.reopen(sealed=sealed)
        self.clock /= 2  # another machine, another clock
        self.open()
        for lease in self.leases.values():
            lease.ends = self.clock + SECONDS

    @invariant()
    def no_group_is_with_two(self) -> None:
        told = self.do(self.leasing.page(RUN, 0, 1000))
        by_id = {lease.id: lease for lease in told}
        for key, lease in self.leases.items():
            is_over = lease.state is LeaseState.OPEN and not self.is_live(lease)
            assert by_id[self.ids[key]].state is (LeaseState.EXPIRED if is_over else lease.state)
        for consumer in CONSUMERS:
            live = [x for x in told if x.consumer == consumer and x.state in ("open", "acknowledged")]
            held = [group_id for lease in live for group_id in lease.group_ids]
            assert len(held) == len(set(held))


TestHistories = Histories.TestCase
TestHistories.settings = SETTINGS
