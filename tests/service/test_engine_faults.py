"""Engines that die, stand still, lie, or come and go around a real service: that costs time, no group and no label."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from curation.keys import seed_for
from tests.processes import Service, serving
from tests.service.engine_server import EngineServer, Trouble, running_engines, said
from trainers.client import Refinery, RefineryError

REQUEST_SECONDS, PATIENCE_SECONDS = 2.0, 12.0
PROMPTS = [{"prompt": f"2 + 2 = (asked {n} times)", "reference": "4", "verifier": "numeric"} for n in range(120)]
FEW = 24
LIES = {
    Trouble.FEWER: "answered 3 completions where 4 were asked for",
    Trouble.FOREIGN_TOKENS: "tokens that the policy does not have",
    Trouble.FOREIGN_WEIGHTS: "that this service did not load",
    Trouble.NAN: "logprobs that are no numbers",
    Trouble.SHORT: "3 logprobs for 4 tokens",
    Trouble.HALF: "answered with something else",
    Trouble.CUT: "/generate",
    Trouble.ERROR: "500 out of luck",
    Trouble.SILENCE: "no answer in 2 s",
    Trouble.DRIP: "no answer in 2 s",
    Trouble.BUSY: "refused for 2 s: ",
    Trouble.UNAVAILABLE: "503 out of luck",
}
"""What goes wrong, and what is told of it."""


class Attached(NamedTuple):
    client: Refinery
    engines: list[EngineServer]

    def workers(self) -> list[Any]:
        """In the order of the engines."""
        found = {worker["url"]: worker for worker in self.client.get("/v1/workers")}
        return [found[engine.url] for engine in self.engines]

    def until(self, *states: str) -> None:
        """Every engine is in its state."""
        until(lambda: tuple(worker["state"] for worker in self.workers()) == states)


def until(seen: Callable[[], bool], seconds: float = 60.0) -> None:
    give_up = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < give_up
        time.sleep(0.05)


@pytest.fixture(scope="module")
def two_engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attached]:
    folder = tmp_path_factory.mktemp("service")
    with (
        running_engines(2) as engines,
        attached(folder, *(engine.url for engine in engines)) as service,
        Refinery(service.url) as client,
    ):
        client.add_prompts(PROMPTS, "s")
        yield Attached(client, engines)


def attached(folder: Path, *urls: str) -> AbstractContextManager[Service]:
    """A service that samples from these."""
    settings = {"engine_request_seconds": REQUEST_SECONDS, "engine_patience_seconds": PATIENCE_SECONDS}
    return serving(folder / "data", engine_url=json.dumps([{"url": url} for url in urls]), **settings)


@pytest.fixture
def fleet(two_engines: Attached) -> Iterator[Attached]:
    """As good as new."""
    yield two_engines
    for engine in two_engines.engines:
        engine.told(generate=Trouble.NONE, update=Trouble.NONE, seconds=0.0)
    two_engines.until("live", "live")


def begin(client: Refinery, run: str, count: int) -> Any:
    """A job that samples so many prompts once, in a run of its own."""
    config = {"name": run, "policy": "policy", "prompt_set": "s", "retain": "all"}
    client.post("/v1/runs", config | {"sampling": {"n": 4, "max_tokens": 16}})
    return again(client, run, count)


def again(client: Refinery, run: str, count: int) -> Any:
    ids = [prompt["id"] for prompt in client.prompts("s")]
    return client.post(f"/v1/runs/{run}/rollouts", {"prompts": ids[:count]})


def stored(client: Refinery, run: str) -> int:
    """Groups."""
    return int(client.get(f"/v1/runs/{run}")["funnel"]["rollouts"]) // 4


def until_more(client: Refinery, run: str) -> None:
    """Some more groups are stored."""
    seen = stored(client, run)
    until(lambda: stored(client, run) >= seen + 8)


def assert_whole(client: Refinery, run: str, count: int, failed: int = 0) -> set[int]:
    """So many visits have their group once, of the completions that belong to their seeds; each token is of the weights
    that its label names. The versions that there are."""
    funnel = client.get(f"/v1/runs/{run}")["funnel"]
    groups = list(client.groups(run))
    assert (funnel["sampled"], funnel["failed"]) == (count + failed, failed)
    assert len(groups) == len({(group["prompt_id"], group["visit"]) for group in groups}) == count
    for group in groups:
        seeds = [seed_for(0, "rollout", group["prompt_id"], group["visit"], slot) for slot in range(4)]
        assert group["rewards"] == [float(said(seed) == "4") for seed in seeds]
    for group in groups[:: max(1, count // 20)]:
        for member in client.get(f"/v1/groups/{group['id']}")["members"]:
            assert member["logprobs"] == [-group["policy_version"]] * 4
            assert [span["version"] for span in member["weight_versions"]] == [group["policy_version"]]
    return {group["policy_version"] for group in groups}


# ---- engines that lie


@pytest.mark.parametrize("trouble", LIES)
def test_an_engine_that_misbehaves_beside_a_good_one_costs_no_group(fleet: Attached, trouble: Trouble) -> None:
    before = fleet.engines[0].asked
    fleet.engines[0].told(generate=trouble)

    began = time.monotonic()
    fleet.client.wait(begin(fleet.client, f"beside-{trouble}", FEW))

    assert time.monotonic() - began < 20
    assert fleet.engines[0].asked > before
    assert_whole(fleet.client, f"beside-{trouble}", FEW)


@pytest.mark.parametrize(("trouble", "reason"), LIES.items())
def test_what_no_engine_answers_as_it_should_is_not_stored_and_says_why(
    fleet: Attached, trouble: Trouble, reason: str
) -> None:
    run = f"nothing-but-{trouble}"
    for engine in fleet.engines:
        engine.told(generate=trouble)

    began = time.monotonic()
    with pytest.raises(RefineryError) as failed:
        fleet.client.wait(begin(fleet.client, run, 4))

    assert time.monotonic() - began < 20  # two tries of two seconds each, or a refusal that is repeated for two seconds
    assert (failed.value.code, reason in str(failed.value)) == ("EngineFailed", True), failed.value
    funnel = fleet.client.get(f"/v1/runs/{run}")["funnel"]
    assert (funnel["sampled"], funnel["failed"], funnel["rollouts"]) == (4, 4, 0)
    for engine in fleet.engines:
        engine.told(generate=Trouble.NONE)
    fleet.client.wait(again(fleet.client, run, 4))
    assert_whole(fleet.client, run, 4, failed=4)
