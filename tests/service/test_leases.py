"""Leases: every group to each consumer once, in the order of the visits; again only where nobody was done with it."""

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fastapi.testclient import TestClient

from service.engines.base import Sampled
from service.engines.scripted import ScriptedEngine
from service.leasing import LeaseRequest
from service.parts import open_parts
from service.run_config import Sampling
from service.settings import Settings
from tests.service.conftest import OpenService, by_first_word
from tests.service.steps import GRESO_RUN, finish, freeze, groups_of, lease, leased, prepare, sample
from trainers.client import Refinery, RefineryError

ALL = {"selector": {"kind": "all"}}
ROW = {"prompt": "What is 9 * 2?", "reference": "18", "verifier": "numeric"}


class Clock:
    """Stands still until it is told how much time has passed."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def tell(client: TestClient, of: dict[str, Any], what: str) -> tuple[int, str]:
    """Status, and the state or the code."""
    answer = client.post(f"/v1/leases/{of['lease']}/{what}")
    body = answer.json()
    return answer.status_code, body["state"] if answer.status_code == 200 else body["code"]


def state(client: TestClient, of: dict[str, Any]) -> str:
    return str(client.get(f"/v1/leases/{of['lease']}").json()["state"])


def informative(client: TestClient, run: str = "r") -> list[str]:
    """In the order in which their prompts were chosen."""
    groups = client.get(f"/v1/groups?run={run}&informative=true&limit=1000").json()["items"]
    parts = client.app_state["parts"]  # type: ignore[attr-defined]
    visits = asyncio.run(parts.store.duck.read("select prompt_id, visit from visits where run = ? order by seq", [run]))
    place = {(visit["prompt_id"], visit["visit"]): i for i, visit in enumerate(visits)}
    return [g["id"] for g in sorted(groups, key=lambda g: place[g["prompt_id"], g["visit"]])]


def rollouts_jobs(client: TestClient) -> list[dict[str, Any]]:
    return [job for job in client.get("/v1/jobs").json() if job["kind"] == "rollouts"]


def publish(client: TestClient, checkpoint: Path) -> None:
    job = client.post("/v1/policies/policy/versions", json={"checkpoint": str(checkpoint)}).json()
    assert finish(client, job)["state"] == "done"


@pytest.fixture
def filled(client: TestClient) -> TestClient:
    """With the run `r` and at least a dozen groups to lease."""
    prepare(client)
    sample(client, groups=12)
    return client


@pytest.mark.parametrize(
    "recipe",
    [
        {"shape": "groups"},
        {"shape": "groups", "down_sampling": {"kind": "max_variance", "keep": 2}, "format": "conversational"},
        {"shape": "pairs", "pairs": {"kind": "k_random_pairs", "k": 2}, "seed": 3},
        {"shape": "pairs", "pairs": {"kind": "all_right_with_wrong"}, "max_length_ratio": 1.5},
        {"shape": "labelled"},
        {"shape": "right", "max_tokens": 100},
    ],
    ids=str,
)
def test_the_rows_are_those_that_a_dataset_would_hold_of_the_groups(filled: TestClient, recipe: dict[str, Any]) -> None:
    frozen = freeze(filled, **recipe)["urls"]["train.parquet"]
    expected = pl.read_parquet(filled.get(frozen).content).to_dicts()

    found = leased(filled, 5, recipe=recipe)
    rest = leased(filled, len(informative(filled)) - 5, recipe=recipe)

    ids = groups_of(found) + groups_of(rest)
    assert ids == informative(filled)
    by_group = {group_id: [row for row in expected if row["group_id"] == group_id] for group_id in ids}
    assert found["rows"] + rest["rows"] == [row for group_id in ids for row in by_group[group_id]]
    assert (found["available"], rest["available"]) == (len(ids) - 5, 0)


def test_there_are_exactly_as_many_groups_as_were_asked_for_or_none(filled: TestClient) -> None:
    there = len(informative(filled))

    refused = lease(filled, there + 1)

    assert (refused.status_code, refused.json()["code"]) == (409, "too_few_groups")
    assert {k: refused.json()[k] for k in ("available", "stale", "wanted", "job")} == {
        "available": there,
        "stale": 0,
        "wanted": there + 1,
        "job": None,
    }
    assert filled.get("/v1/runs/r/leases").json()["items"] == []
    assert len(groups_of(leased(filled, there))) == there


def test_every_consumer_has_a_queue_of_its_own(filled: TestClient) -> None:
    one, other = leased(filled, 4, consumer="one"), leased(filled, 4, consumer="other")

    assert one["rows"] == other["rows"]
    assert set(groups_of(leased(filled, 4, consumer="one"))).isdisjoint(groups_of(one))


def test_trainers_at_once_share_no_group_and_leave_none(client: TestClient) -> None:
    prepare(client, 20, **ALL)
    sample(client, groups=60)
    there = informative(client)[:60]

    def train(trainer: int) -> list[str]:
        groups = []
        for step in range(5):
            mine = leased(client, 2, key=f"{trainer}-{step}")
            groups += groups_of(mine)
            if step % 2:
                tell(client, mine, "ack")
        return groups

    with ThreadPoolExecutor(6) as trainers:
        handed_out = list(chain.from_iterable(trainers.map(train, range(6))))

    assert sorted(handed_out) == sorted(there)


class LastFirst(ScriptedEngine):
    """The later it is asked, the sooner it answers."""

    async def sample(self, prompt: str, sampling: Sampling, seeds: Sequence[int]) -> Sampled:
        sampled = await super().sample(prompt, sampling, seeds)
        await asyncio.sleep(max(0.0, 0.4 - 0.02 * (len(self.asked) % 20)))
        return sampled


def test_the_order_is_that_of_the_visits_whenever_the_answers_came(open_service: OpenService) -> None:
    batches = []
    for data, engine in (("prompt", ScriptedEngine), ("reversed", LastFirst)):
        with open_service(data=data, engine=engine) as client:
            prepare(client, **ALL)
            sample(client, passes=1)
            stored = [g["id"] for g in client.get("/v1/groups?run=r&informative=true").json()["items"]]
            assert (stored == informative(client)) == (engine is ScriptedEngine)
            batches.append([leased(client, 2)["rows"] for _ in range(3)])

    assert batches[0] == batches[1]


class Held(ScriptedEngine):
    """Keeps the answers to one prompt back."""

    prompt: str | None = None
    go_on = threading.Event()

    async def sample(self, prompt: str, sampling: Sampling, seeds: Sequence[int]) -> Sampled:
        type(self).prompt = self.prompt or prompt
        if prompt == self.prompt:
            await asyncio.to_thread(self.go_on.wait)
        return await super().sample(prompt, sampling, seeds)


def test_a_group_waits_until_every_visit_before_it_has_ended(open_service: OpenService) -> None:
    class FirstHeld(Held):
        go_on = threading.Event()

    with open_service(engine=FirstHeld) as client:
        prepare(client, **ALL)
        job = client.post("/v1/runs/r/rollouts", json={"passes": 1}).json()
        while client.get(f"/v1/jobs/{job['id']}").json()["progress"].get("round", {}).get("done", 0) < 11:
            time.sleep(0.02)
        assert client.get("/v1/groups?run=r&informative=true").json()["items"]

        before = lease(client, 1).json()
        FirstHeld.go_on.set()
        after = leased(client, 1, wait=20)

        assert (before["code"], before["available"], before["job"]) == ("too_few_groups", 0, job["id"])
        finish(client, job)
        assert groups_of(after) == informative(client)[:1]


def test_a_visit_that_failed_or_was_given_up_holds_nobody_up(open_service: OpenService) -> None:
    given = 0

    def fails_then_dies(prompt: str, seed: int, version: int) -> str:
        nonlocal given
        given += 1
        if given == 1:
            raise RuntimeError("out of cheese")
        if given > 80:
            raise asyncio.CancelledError
        return by_first_word(prompt, seed, version)

    with open_service(fails_then_dies) as client:
        prepare(client, **ALL)
        job = client.post("/v1/runs/r/rollouts", json={"passes": 2}).json()
        assert client.get(f"/v1/jobs/{job['id']}?wait=1").json()["state"] == "running"
        there = lease(client, 1000).json()["available"]
        client.delete(f"/v1/jobs/{job['id']}")
    with open_service() as client:
        assert finish(client, job)["state"] in {"done", "cancelled"}
        assert lease(client, 1000).json()["available"] == len(informative(client)) > there > 0


def test_what_is_acknowledged_stays_so_and_is_never_handed_out_again(filled: TestClient) -> None:
    done = leased(filled, 4, seconds=0.01)

    assert [tell(filled, done, "ack") for _ in range(2)] == [(200, "acknowledged")] * 2
    assert tell(filled, done, "release") == (409, "lease_acknowledged")
    assert tell(filled, done, "renew") == (409, "lease_acknowledged")
    time.sleep(0.02)
    assert state(filled, done) == "acknowledged"
    assert groups_of(leased(filled, 4)) == informative(filled)[4:8]


def test_what_is_released_is_handed_out_next(filled: TestClient) -> None:
    given_back = leased(filled, 4)

    assert [tell(filled, given_back, "release") for _ in range(2)] == [(200, "released")] * 2
    assert tell(filled, given_back, "ack") == (409, "lease_released")
    assert tell(filled, given_back, "renew") == (409, "lease_released")
    assert leased(filled, 4)["rows"] == given_back["rows"]
    assert tell(filled, given_back, "ack") == (409, "lease_lost")
    assert tell(filled, given_back, "release") == (200, "expired")


def test_an_expired_lease_is_handed_out_again_and_lost_from_then_on(open_service: OpenService) -> None:
    clock = Clock()
    with open_service(clock=clock) as client:
        prepare(client)
        sample(client, groups=12)
        slow = leased(client, 4, seconds=60, key="slow")

        clock.seconds += 59
        assert (state(client, slow), groups_of(leased(client, 2))) == ("open", informative(client)[4:6])
        clock.seconds += 1
        assert state(client, slow) == "expired"
        assert groups_of(leased(client, 6)) == informative(client)[:4] + informative(client)[6:8]

        assert [tell(client, slow, what) for what in ("ack", "renew")] == [(409, "lease_lost")] * 2
        assert tell(client, slow, "release") == (200, "expired")
        assert lease(client, 4, key="slow").json()["code"] == "lease_lost"
        assert state(client, slow) == "expired"


def test_an_expired_lease_that_nobody_took_is_acknowledged_or_renewed_as_if_in_time(open_service: OpenService) -> None:
    clock = Clock()
    with open_service(clock=clock) as client:
        prepare(client)
        sample(client, groups=12)
        late, later = leased(client, 3, seconds=60), leased(client, 3, seconds=60)
        clock.seconds += 1000

        assert tell(client, late, "ack") == (200, "acknowledged")
        assert tell(client, later, "renew") == (200, "open")
        clock.seconds += 59
        assert groups_of(leased(client, 3)) == informative(client)[6:9]


def test_renewing_starts_the_seconds_anew(open_service: OpenService) -> None:
    clock = Clock()
    with open_service(clock=clock) as client:
        prepare(client)
        sample(client, groups=12)
        mine = leased(client, 4, seconds=60)

        for _ in range(5):
            clock.seconds += 50
            assert tell(client, mine, "renew") == (200, "open")

        assert groups_of(leased(client, 4)) == informative(client)[4:8]


def test_the_same_key_gives_the_same_rows_whatever_became_of_the_lease(filled: TestClient) -> None:
    first = leased(filled, 4, key="step-1")
    again = lease(filled, 4, key="step-1", seconds=30, wait=5)
    tell(filled, first, "release")
    reopened = lease(filled, 4, key="step-1")
    tell(filled, first, "ack")
    finish(filled, filled.post("/v1/runs/r/rescore", json={"verifier": "exact"}).json())
    acknowledged = lease(filled, 4, key="step-1")

    answers = [again, reopened, acknowledged]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert [answer.json()["state"] for answer in answers] == ["open", "open", "acknowledged"]
    assert [answer.json()["rows"] for answer in answers] == [first["rows"]] * 3
    assert {row["verifier"] for row in first["rows"]} == {"numeric@1"}
    assert {row["verifier"] for row in leased(filled, 4)["rows"]} == {"exact@1"}


@pytest.mark.parametrize(
    "other", [{"groups": 5}, {"max_staleness": 3}, {"recipe": {"shape": "groups", "seed": 1}}], ids=str
)
def test_the_same_key_for_another_request_is_a_conflict(filled: TestClient, other: dict[str, Any]) -> None:
    leased(filled, 4, key="k")

    refused = lease(filled, **{"groups": 4, "key": "k"} | other)

    assert (refused.status_code, refused.json()["code"]) == (409, "idempotency_conflict")


def test_a_key_is_that_of_a_consumer_and_a_run(filled: TestClient) -> None:
    one, other = leased(filled, 4, key="k"), leased(filled, 4, key="k", consumer="other")

    assert one["lease"] != other["lease"]


def test_a_restart_loses_no_lease_and_gives_the_open_ones_their_whole_time(open_service: OpenService) -> None:
    clock = Clock()
    with open_service(clock=clock) as client:
        prepare(client)
        sample(client, groups=12)
        done, working, back = (leased(client, 2, key=key, seconds=60) for key in ("done", "working", "back"))
        tell(client, done, "ack")
        tell(client, back, "release")
        clock.seconds += 59
    clock.seconds = 5.0  # a machine that was started anew
    with open_service(clock=clock) as client:
        clock.seconds += 59

        assert [state(client, one) for one in (done, working, back)] == ["acknowledged", "open", "released"]
        assert groups_of(leased(client, 2)) == groups_of(back)
        assert lease(client, 2, key="done").json()["rows"] == done["rows"]
        clock.seconds += 2
        assert state(client, working) == "expired"
        assert tell(client, working, "ack") == (200, "acknowledged")


def test_a_wall_clock_that_jumps_changes_nothing(open_service: OpenService) -> None:
    wall = [datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)]
    with open_service(now=lambda: wall[0]) as client:
        prepare(client)
        sample(client, groups=12)
        mine = leased(client, 4, seconds=60)
        for days in (1000, -2000):
            wall[0] += timedelta(days=days)
            assert state(client, mine) == "open"
            assert tell(client, mine, "renew") == (200, "open")
        expires_at = client.get(f"/v1/leases/{mine['lease']}").json()["expires_at"]

        assert groups_of(leased(client, 4)) == informative(client)[4:8]
        assert expires_at.startswith("2023-04-07T00:0")
        assert tell(client, mine, "release") == (200, "released")
        assert tell(client, mine, "ack") == (409, "lease_released")


def test_groups_that_are_too_stale_are_never_handed_out(filled: TestClient, checkpoint: Path) -> None:
    old = len(informative(filled))
    publish(filled, checkpoint)

    refused = lease(filled, 1, max_staleness=0).json()
    sample(filled, groups=5)
    fresh = leased(filled, 5, max_staleness=0)

    assert (refused["code"], refused["available"], refused["stale"]) == ("too_few_groups", 0, old)
    assert {row["policy_version"] for row in fresh["rows"]} == {2}
    assert (fresh["policy_version"], fresh["stale"]) == (2, old)
    assert {row["policy_version"] for row in leased(filled, 5, max_staleness=1)["rows"]} == {1}


def test_waiting_ends_as_soon_as_there_are_enough(filled: TestClient) -> None:
    there = len(informative(filled))
    with ThreadPoolExecutor(1) as trainer:
        began = time.monotonic()
        waiting = trainer.submit(lease, filled, there + 5, wait=60)
        time.sleep(0.3)
        assert not waiting.done()
        sample(filled, groups=8)
        answer = waiting.result(10)

    assert answer.status_code == 201
    assert time.monotonic() - began < 20


def test_waiting_ends_when_somebody_elses_lease_expires(filled: TestClient) -> None:
    there = len(informative(filled))
    leased(filled, there, seconds=0.5)

    began = time.monotonic()
    mine = leased(filled, there, wait=30)

    assert groups_of(mine) == informative(filled)
    assert 0.3 < time.monotonic() - began < 10


def test_waiting_in_vain_ends_in_time(filled: TestClient) -> None:
    began = time.monotonic()

    assert lease(filled, 1000, wait=0.5).json()["code"] == "too_few_groups"
    assert 0.5 <= time.monotonic() - began < 5


def test_what_is_lacking_is_sampled_and_some_ahead(client: TestClient) -> None:
    prepare(client)

    first = leased(client, 8, sample=True, ahead=4, wait=60, key="1")
    [job] = rollouts_jobs(client)
    second = leased(client, 4, sample=True, wait=60, key="2")

    assert job["request"]["groups"] == 12
    assert rollouts_jobs(client) == [finish(client, job)]
    assert groups_of(first) + groups_of(second) == informative(client)[:12]


def test_the_next_lease_is_sampled_while_this_one_is_trained_on(client: TestClient) -> None:
    prepare(client)
    sample(client, groups=8)
    there = len(informative(client))

    leased(client, there, sample=True, ahead=6, key="1")

    newest = finish(client, rollouts_jobs(client)[0])
    assert (newest["request"]["groups"], len(informative(client)) - there >= 6) == (6, True)


def test_asking_again_samples_nothing_twice(client: TestClient) -> None:
    prepare(client)

    answers = [lease(client, 6, sample=True, key="k") for _ in range(20)]
    mine = leased(client, 6, sample=True, key="k", wait=60)

    assert len({a.json()["job"] for a in answers if a.status_code == 409}) <= 1
    assert len(rollouts_jobs(client)) == 1
    assert len(groups_of(mine)) == 6


def test_a_crash_while_it_is_sampled_samples_nothing_twice(open_service: OpenService) -> None:
    given = 0

    def dies(prompt: str, seed: int, version: int) -> str:
        nonlocal given
        given += 1
        if given > 30:
            raise asyncio.CancelledError
        return by_first_word(prompt, seed, version)

    with open_service(data="whole") as client:
        prepare(client)
        expected = leased(client, 10, sample=True, wait=60, key="k")["rows"]
    with open_service(dies, data="broken") as client:
        prepare(client)
        assert lease(client, 10, sample=True, wait=0.5, key="k").json()["code"] == "too_few_groups"
    with open_service(data="broken") as client:
        resumed = leased(client, 10, sample=True, wait=60, key="k")["rows"]
        assert len(rollouts_jobs(client)) == 1

    assert resumed == expected


def test_trainers_that_lack_groups_wait_for_one_job_at_a_time(client: TestClient) -> None:
    prepare(client, 20)

    with ThreadPoolExecutor(4) as trainers:
        ask = partial(leased, client, 5, sample=True, wait=60)
        leases = list(trainers.map(lambda i: ask(key=str(i)), range(4)))

    groups = list(chain.from_iterable(map(groups_of, leases)))
    assert len(set(groups)) == len(groups) == 20
    assert len(rollouts_jobs(client)) <= 4


def test_a_run_that_can_give_nothing_says_so(client: TestClient) -> None:
    client.post("/v1/prompts?set=easy", json=[{"prompt": "easy 1", "reference": "4", "verifier": "numeric"}])
    client.post("/v1/runs", json=GRESO_RUN | {"name": "easy", "prompt_set": "easy"})

    refused = lease(client, 1, "easy", sample=True, wait=60, key="k")

    assert (refused.status_code, refused.json()["code"]) == (409, "no_groups")
    assert len(rollouts_jobs(client)) == 3
    assert refused.json()["job"] in {job["id"] for job in rollouts_jobs(client)}


def test_a_job_that_fails_is_told_once_and_then_tried_again(open_service: OpenService) -> None:
    is_broken = True

    def broken(prompt: str, seed: int, version: int) -> str:
        if is_broken:
            raise RuntimeError("out of cheese")
        return by_first_word(prompt, seed, version)

    with open_service(broken) as client:
        prepare(client)
        refused = lease(client, 2, sample=True, wait=60, key="k").json()
        is_broken = False
        mended = leased(client, 2, sample=True, wait=60, key="k")

    assert (refused["code"], "out of cheese" in refused["detail"]) == ("no_groups", True)
    assert len(groups_of(mended)) == 2


def test_groups_that_agree_are_leased_where_the_recipe_lets_them_in(client: TestClient) -> None:
    prepare(client, **ALL, retain="all")
    recipe = {"shape": "groups", "zero_variance": True}

    mine = leased(client, 10, sample=True, wait=60, recipe=recipe)

    [job] = rollouts_jobs(client)
    assert finish(client, job)["result"]["funnel"]["sampled"] == 10
    agreeing = [row for row in mine["rows"] if len(set(row["rewards"])) == 1]
    assert agreeing
    assert all(set(row["advantages"]) == {0.0} for row in agreeing)
    assert len(mine["rows"]) == 10


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"recipe": {"shape": "groups", "zero_variance": True}}, 422, "texts_not_kept"),
        ({"recipe": {"shape": "prompts"}}, 422, "invalid_request"),
        ({"recipe": {"shape": "groups", "runs": ["r"]}}, 422, "invalid_request"),
        ({"groups": 0}, 422, "invalid_request"),
        ({"seconds": 0}, 422, "invalid_request"),
        ({"consumer": "../x"}, 422, "invalid_request"),
        ({"ahead": 1}, 422, "invalid_request"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(filled: TestClient, request_: dict[str, Any], status: int, code: str) -> None:
    refused = lease(filled, **{"groups": 1} | request_)

    assert (refused.status_code, refused.json()["code"]) == (status, code)


def test_recorded_rollouts_are_leased_but_not_sampled(client: TestClient) -> None:
    rows = [{**ROW, "policy_version": i, "rollouts": [{"text": "18"}, {"text": str(i)}]} for i in range(5)]
    assert client.post("/v1/rollouts/import?run=recorded", json=rows).status_code == 201

    sampled = lease(client, 9, "recorded", sample=True)
    stale = lease(client, 1, "recorded", max_staleness=1)
    found = leased(client, 5, "recorded")

    assert (sampled.status_code, sampled.json()["code"]) == (422, "imported_run")
    assert (stale.status_code, stale.json()["code"]) == (422, "no_live_policy")
    assert [row["completions"][1] for row in found["rows"]] == ["0", "1", "2", "3", "4"]
    assert found["policy_version"] is None


def test_leases_are_listed_page_by_page_newest_last(filled: TestClient) -> None:
    ids = [leased(filled, 2)["lease"] for _ in range(3)]

    first = filled.get("/v1/runs/r/leases?limit=2").json()
    rest = filled.get("/v1/runs/r/leases", params={"limit": 2, "cursor": first["next"]}).json()

    assert [item["lease"] for item in first["items"] + rest["items"]] == ids
    assert rest["next"] is None
    assert all("rows" not in item and len(item["group_ids"]) == 2 for item in first["items"])


@pytest.mark.parametrize("call", ["GET {0}", "POST {0}/ack", "POST {0}/release", "POST {0}/renew"])
def test_a_lease_that_does_not_exist_is_not_found(client: TestClient, call: str) -> None:
    method, path = call.format("/v1/leases/l_nobody").split()

    answer = client.request(method, path)

    assert (answer.status_code, answer.json()["code"]) == (404, "lease_not_found")


def test_whoever_hangs_up_at_any_moment_leaves_a_whole_lease_or_none(
    open_service: OpenService, tmp_path: Path, checkpoint: Path
) -> None:
    with open_service() as client:
        prepare(client, 20, **ALL)
        sample(client, groups=40)
        there = informative(client)
    settings = Settings.model_validate({"data": tmp_path / "data", "policy": str(checkpoint), "verifier_workers": 1})

    async def hang_up() -> None:
        async with open_parts(settings, make_engine=lambda *_: ScriptedEngine(by_first_word)) as parts:
            request = LeaseRequest(groups=2)
            for attempt in range(15):
                asking = asyncio.ensure_future(parts.leasing.take("r", request, str(attempt)))
                await asyncio.sleep(0.003 * attempt)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            handed = [await parts.leasing.take("r", request, str(attempt)) for attempt in range(15)]
            groups = [group_id for one in handed for group_id in one.lease.group_ids]
            assert sorted(groups) == sorted(there[:30])
            assert all(len(one.rows) == 2 for one in handed)

    asyncio.run(hang_up())


def test_the_client_waits_for_what_is_sampled_and_says_what_became_of_it(client: TestClient) -> None:
    prepare(client)
    refinery = Refinery()
    refinery._http = client  # type: ignore[assignment]

    with pytest.raises(RefineryError) as refused:
        refinery.lease("r", 3, key="1")
    mine = refinery.lease("r", 3, key="1", sample=True, wait=0.01)

    assert refused.value.code == "too_few_groups"
    assert refinery.lease("r", 3, key="1")["rows"] == mine["rows"]
    assert refinery.renew(mine)["state"] == "open"
    assert refinery.acknowledge(mine)["state"] == "acknowledged"
    assert refinery.release(refinery.lease("r", 3, key="2", sample=True))["state"] == "released"
