"""Room is shared evenly: nobody holds more than there is, nobody is forgotten, and a flood keeps nobody waiting."""

import asyncio
from collections import Counter

from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.shares import Shares
from tests.service.conftest import OpenService
from tests.service.steps import GRESO_RUN, finish, prepare

CAPACITY = 4


class Holding(RuleBasedStateMachine):
    """Wishes come, are given up and are given back in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.shares = Shares(lambda: CAPACITY)
        self.wishes: list[tuple[str, int, asyncio.Task[None]]] = []

    def teardown(self) -> None:
        for _, _, task in self.wishes:
            task.cancel()
        self.settle()
        self.loop.close()

    def settle(self) -> None:
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.run_until_complete(asyncio.sleep(0))

    @property
    def granted(self) -> list[tuple[str, int, asyncio.Task[None]]]:
        return [wish for wish in self.wishes if wish[2].done()]

    @rule(owner=st.sampled_from("abc"), size=st.integers(1, CAPACITY + 2))
    def wish(self, owner: str, size: int) -> None:
        self.wishes.append((owner, size, self.loop.create_task(self.shares.take(owner, size))))
        self.settle()

    @precondition(lambda self: self.granted)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        wish = data.draw(st.sampled_from(self.granted))
        self.wishes.remove(wish)
        self.shares.give(*wish[:2])
        self.settle()

    @precondition(lambda self: len(self.granted) < len(self.wishes))
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        wish = data.draw(st.sampled_from([wish for wish in self.wishes if not wish[2].done()]))
        self.wishes.remove(wish)
        wish[2].cancel()
        self.settle()

    @invariant()
    def no_more_is_held_than_there_is(self) -> None:
        sizes = [size for _, size, _ in self.granted]
        assert self.shares.held == sum(sizes)
        assert sum(sizes) <= CAPACITY or len(sizes) == 1

    @invariant()
    def nobody_waits_while_everything_is_free(self) -> None:
        assert self.granted or not self.wishes

    @invariant()
    def each_ones_wishes_keep_their_order(self) -> None:
        for one in "abc":
            done = [task.done() for owner, _, task in self.wishes if owner == one]
            assert done == sorted(done, reverse=True)


TestHolding = Holding.TestCase


@given(st.integers(1, 20), st.integers(1, 8))
def test_who_comes_late_gets_half_while_a_flood_waits(flood: int, capacity: int) -> None:
    async def scenario() -> list[str]:
        shares = Shares(lambda: capacity)
        order: list[str] = []

        async def one(owner: str) -> None:
            async with shares.hold(owner):
                order.append(owner)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(one("flood")) for _ in range(capacity + 10 * flood)]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(one("late")) for _ in range(flood)]
        await asyncio.gather(*tasks)
        return order

    order = asyncio.run(scenario())

    before_the_last = order[: len(order) - order[::-1].index("late")]
    assert Counter(before_the_last)["flood"] <= 3 * capacity + flood


def test_a_run_that_floods_the_verifiers_does_not_starve_another(open_service: OpenService) -> None:
    def slow_ones(prompt: str, seed: int, version: int) -> str:
        return f"<answer>{seed % 2 + 4}</answer>"

    with open_service(slow_ones) as client:
        prepare(client, 30, name="flood", sampling={"n": 64, "max_tokens": 32}, batch={"groups": 90, "prompts": 90})
        assert (
            client.post("/v1/runs", json=GRESO_RUN | {"name": "late", "selector": {"kind": "all"}}).status_code == 201
        )
        flood = client.post("/v1/runs/flood/rollouts", json={"passes": 30}).json()
        stored = until_some_are_stored(client, "flood")

        late = finish(client, client.post("/v1/runs/late/rollouts", json={"groups": 4}).json())

        assert late["state"] == "done"
        assert client.get(f"/v1/jobs/{flood['id']}").json()["state"] == "running"
        assert len(client.get("/v1/groups?run=flood&limit=1000").json()["items"]) < stored + 250
        client.delete(f"/v1/jobs/{flood['id']}")


def until_some_are_stored(client: TestClient, run: str) -> int:
    while not (groups := client.get(f"/v1/groups?run={run}&limit=1000").json()["items"]):
        pass
    return len(groups)


def test_who_keeps_what_it_has_for_long_leaves_the_rest_to_others() -> None:
    async def scenario() -> tuple[int, int]:
        shares = Shares(lambda: 8, most_of_one=lambda: 4)
        hoard = [asyncio.create_task(shares.take("hoarder", 2)) for _ in range(5)]
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await shares.take("late", 3)
            await shares.take("later", 1)
        while_others_work = shares.held
        for task in hoard:
            task.cancel()
        await asyncio.gather(*hoard, return_exceptions=True)
        for owner, size in (("late", 3), ("later", 1), ("hoarder", 2)):
            shares.give(owner, size)
        return while_others_work, shares.held

    assert asyncio.run(scenario()) == (8, 2)


def test_one_alone_may_have_something_that_is_more_than_its_share() -> None:
    async def scenario() -> None:
        shares = Shares(lambda: 8, most_of_one=lambda: 4)
        async with asyncio.timeout(5), shares.hold("a", 6), shares.hold("b", 2):
            pass

    asyncio.run(scenario())


def test_who_gives_up_just_when_it_is_granted_holds_nothing() -> None:
    async def scenario() -> int:
        shares = Shares(lambda: 2)
        await shares.take("b", 2)
        waiting = asyncio.create_task(shares.take("a", 1))
        await asyncio.sleep(0)
        shares.give("b", 2)  # which grants the other's
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return shares.held

    assert asyncio.run(scenario()) == 0
