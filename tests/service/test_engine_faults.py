"""Engines that die, stand still, lie, or come and go around a real service: that costs time, no group and no label."""

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from curation.keys import seed_for
from service.checkpoints import EMBEDDED, open_folder
from service.engines.addresses import WorkerSpec
from service.engines.base import Sampled, WorkerState, WorkerView
from service.engines.fleet import Fleet
from service.run_config import Sampling
from service.stages import EngineFailed
from tests.engines.conftest import fleet_of
from tests.processes import Service, serving
from tests.service.engine_server import EngineServer, Line, Trouble, Way, running_engines, said
from trainers.client import Refinery, RefineryError
from trainers.launch import running_service

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

    def are_well(self) -> bool:
        """None has failed so often that it rests; asked until each has shown that it does well."""
        self.client.wait(again(self.client, "well", FEW))
        return not any(worker["reason"] for worker in self.workers())


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
        client.wait(begin(client, "well", 1))
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
    until(two_engines.are_well)


def begin(client: Refinery, run: str, count: int) -> Any:
    """A job that samples so many prompts once, in a run of its own."""
    config = {"name": run, "policy": "policy", "prompt_set": "s", "retain": "all"}
    client.post("/v1/runs", config | {"sampling": {"n": 4, "max_tokens": 16}})
    return again(client, run, count)


def again(client: Refinery, run: str, count: int) -> Any:
    ids = [prompt["id"] for prompt in client.prompts("s")]
    return client.post(f"/v1/runs/{run}/rollouts", {"prompts": ids[:count]})


def begin_endless(client: Refinery, run: str, *engines: EngineServer) -> Any:
    """A job that is well under way, until it is ended."""
    for engine in engines:
        engine.told(seconds=0.1)
    client.wait(begin(client, run, 1))
    job = client.post(f"/v1/runs/{run}/rollouts", {"passes": 1000})
    until_more(client, run)
    return job


def end(client: Refinery, job: Any) -> int:
    """Stops the job; how many groups its run has."""
    until_more(client, job["on"])
    client.delete(f"/v1/jobs/{job['id']}")
    client.wait(job)
    return stored(client, job["on"])


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


SEEDS = range(4)
SAMPLING = Sampling(n=4, max_tokens=16)


def answers(seeds: Sequence[int]) -> list[str]:
    return [f"<answer>{said(seed)}</answer>" for seed in seeds]


@asynccontextmanager
async def loaded(scratch: Path, *engines: EngineServer) -> AsyncIterator[Fleet]:
    """A fleet at version 1, of our own: so its patience can be short."""
    specs = [WorkerSpec(url=engine.url) for engine in engines]
    fleet = fleet_of(*specs, scratch=scratch, request_seconds=REQUEST_SECONDS, patience_seconds=2.0)
    try:
        await fleet.load(open_folder(EMBEDDED), 1)
        yield fleet
    finally:
        await fleet.close()


async def until_live(fleet: Fleet) -> None:
    async with asyncio.timeout(60):
        while any(view.state is not WorkerState.LIVE for view in fleet.workers()):  # noqa: ASYNC110 - as users see it
            await asyncio.sleep(0.05)


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


def test_groups_wait_for_an_engine_that_ended_behind_its_server_until_it_is_back(fleet: Attached) -> None:
    for engine in fleet.engines:
        engine.told(generate=Trouble.HEADLESS)
    job = begin(fleet.client, "headless", FEW)
    fleet.until("down", "down")
    time.sleep(2 * REQUEST_SECONDS)
    for engine in fleet.engines:
        engine.told(generate=Trouble.NONE)
    fleet.client.wait(job)

    assert_whole(fleet.client, "headless", FEW)


@pytest.mark.parametrize("trouble", [Trouble.ERROR, Trouble.NAN, Trouble.SILENCE])
def test_engines_that_look_alive_and_fail_whatever_they_are_given_rest_while_another_is_well(
    tmp_path: Path, trouble: Trouble
) -> None:
    async def run() -> tuple[list[list[str]], list[WorkerView], list[int]]:
        with running_engines(3) as engines:
            async with loaded(tmp_path, *engines) as fleet:
                for engine in engines[:2]:
                    engine.told(generate=trouble)
                groups = await asyncio.gather(*(fleet.sample("2 + 2 =", SAMPLING, SEEDS) for _ in range(FEW)))
                sick = fleet.workers()
                asked = [engine.asked for engine in engines]
                for _ in range(20):
                    await fleet.sample("2 + 2 =", SAMPLING, SEEDS)
                asked = [engine.asked - before for engine, before in zip(engines, asked, strict=True)]
                for engine in engines:
                    engine.told(generate=Trouble.NONE)
                async with asyncio.timeout(60):
                    while any(view.reason for view in fleet.workers()):  # until each had a group that it did well
                        await fleet.sample("2 + 2 =", SAMPLING, SEEDS)
                        await asyncio.sleep(0.05)
                return [[one.text for one in group.completions_G] for group in groups], sick, asked

    texts, sick, asked = asyncio.run(run())

    assert texts == [answers(SEEDS)] * FEW
    assert [view.state for view in sick] == [WorkerState.LIVE] * 3
    assert [view.reason.partition(" groups in a row, the last: ")[2] != "" for view in sick] == [True, True, False]
    assert asked[2] == 20
    assert max(asked[:2]) <= 4


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


# ---- engines that die or stand still


def test_one_engine_and_then_both_are_killed_and_everything_goes_on_when_they_are_back(fleet: Attached) -> None:
    job = begin_endless(fleet.client, "killed", *fleet.engines)

    fleet.engines[0].send(signal.SIGKILL)
    fleet.until("down", "live")
    until_more(fleet.client, "killed")
    fleet.engines[1].send(signal.SIGKILL)
    fleet.until("down", "down")
    for engine in fleet.engines:
        engine.start()
    fleet.until("live", "live")
    groups = end(fleet.client, job)

    assert_whole(fleet.client, "killed", groups)


def test_nobody_waits_for_an_engine_that_stays_away_and_it_is_taken_up_when_it_returns(tmp_path: Path) -> None:
    async def scene(engine: EngineServer) -> tuple[str, str, Sampled]:
        async with loaded(tmp_path, engine) as fleet:
            engine.send(signal.SIGKILL)
            with pytest.raises(EngineFailed) as failed:
                await fleet.sample("2 + 2 =", SAMPLING, SEEDS)
            with pytest.raises(EngineFailed) as unready:
                assert fleet.policy_version
            await asyncio.to_thread(engine.start)
            await until_live(fleet)
            return str(failed.value), str(unready.value), await fleet.sample("2 + 2 =", SAMPLING, SEEDS)

    with running_engines(1) as [engine]:
        failed, unready, sampled = asyncio.run(scene(engine))

    assert "no worker was live for 2 s" in failed
    assert "no worker is live" in unready
    assert [completion.text for completion in sampled.completions_G] == answers(SEEDS)


def test_a_job_goes_on_without_an_engine_that_stands_still_and_with_it_when_it_moves_again(fleet: Attached) -> None:
    """It takes connections still: only deadlines tell."""
    job = begin_endless(fleet.client, "still", *fleet.engines)

    fleet.engines[0].send(signal.SIGSTOP)
    fleet.until("down", "live")
    reason = fleet.workers()[0]["reason"]
    until_more(fleet.client, "still")
    fleet.engines[0].send(signal.SIGCONT)
    fleet.until("live", "live")
    answered = [worker["answered"] for worker in fleet.workers()]
    until(lambda: all(now["answered"] > then for now, then in zip(fleet.workers(), answered, strict=True)))
    groups = end(fleet.client, job)

    assert f"no answer in {REQUEST_SECONDS:g} s" in reason
    assert_whole(fleet.client, "still", groups)


# ---- weights


def publish(client: Refinery) -> Any:
    return client.wait(client.post("/v1/policies/policy/versions", {"checkpoint": str(EMBEDDED)}))["result"]


def test_weights_that_one_engine_cannot_load_are_live_on_the_other_and_every_label_is_right(fleet: Attached) -> None:
    live = fleet.client.get("/v1/policies/policy")["live"]
    job = begin_endless(fleet.client, "half-updated", *fleet.engines)

    fleet.engines[0].told(update=Trouble.ERROR)
    published = publish(fleet.client)
    until(lambda: "out of memory" in fleet.workers()[0]["reason"])
    until_more(fleet.client, "half-updated")
    fleet.engines[0].told(update=Trouble.NONE)
    fleet.until("live", "live")
    groups = end(fleet.client, job)

    assert published["version"] == live + 1
    assert [worker["url"] for worker in published["left_out"]] == [fleet.engines[0].url]
    assert assert_whole(fleet.client, "half-updated", groups) == {live, live + 1}
    assert [worker["version"] for worker in fleet.workers()] == [live + 1] * 2


def test_weights_that_no_engine_can_load_change_nothing(fleet: Attached) -> None:
    live = fleet.client.get("/v1/policies/policy")["live"]
    job = begin_endless(fleet.client, "not-updated", *fleet.engines)

    for engine in fleet.engines:
        engine.told(update=Trouble.UNAVAILABLE)
    with pytest.raises(RefineryError, match="no worker could load"):
        publish(fleet.client)
    for engine in fleet.engines:
        engine.told(update=Trouble.NONE)
    fleet.until("live", "live")
    groups = end(fleet.client, job)

    assert fleet.client.get("/v1/policies/policy")["live"] == live
    assert assert_whole(fleet.client, "not-updated", groups) == {live}


def test_weights_that_one_engine_never_has_loaded_are_live_on_the_other_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engines.dialects.sglang.LOAD_SECONDS", 2.0)

    async def scene(hanging: EngineServer, other: EngineServer) -> tuple[list[WorkerView], list[Sampled]]:
        async with loaded(tmp_path, hanging, other) as fleet:
            hanging.told(update=Trouble.SILENCE)
            await fleet.load(open_folder(EMBEDDED), 2)
            views = fleet.workers()
            sampled = [await fleet.sample("2 + 2 =", SAMPLING, SEEDS)]
            hanging.told(update=Trouble.NONE)
            await until_live(fleet)
            return views, sampled + await asyncio.gather(*(fleet.sample("2 + 2 =", SAMPLING, SEEDS) for _ in range(8)))

    with running_engines(2) as engines:
        views, sampled = asyncio.run(scene(*engines))

    assert [(view.state, view.version) for view in views] == [(WorkerState.DOWN, None), (WorkerState.LIVE, 2)]
    assert "update_weights_from_disk: no answer in 2 s" in views[0].reason
    assert {one.policy_version for one in sampled} == {2}
    assert {completion.logprobs_T for one in sampled for completion in one.completions_G} == {(-2.0,) * 4}


# ---- ways to an engine that come and go


NAME = "engine.test"
APART = """
mount --bind "$0/hosts" /etc/hosts && mount --bind "$0/nsswitch.conf" /etc/nsswitch.conf && exec "$@"
"""
"""Names are what the file says, and nobody else is asked."""


class Reached(NamedTuple):
    """A service that reaches its only engine by a name, over a line."""

    client: Refinery
    engine: EngineServer
    line: Line
    hosts: Path
    """What the service takes for ``/etc/hosts``."""

    def name(self, *names: str) -> None:
        self.hosts.write_text(" ".join(("127.0.0.1", "localhost", *names)) + "\n")

    @property
    def worker(self) -> Any:
        [worker] = self.client.get("/v1/workers")
        return worker

    def until(self, state: str) -> None:
        until(lambda: self.worker["state"] == state)


@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reached]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "nsswitch.conf").write_text("hosts: files\n")
    (folder / "hosts").touch()
    leash = ["unshare", "--mount", "sh", "-c", APART, str(folder)]
    if subprocess.run([*leash, "true"], capture_output=True, check=False).returncode:
        pytest.skip("nobody here may have names of their own")
    leash = ["env", f"REFINERY_ENGINE_REQUEST_SECONDS={REQUEST_SECONDS}", *leash]
    with running_engines(1) as [engine], closing(Line(engine.port)) as line:
        line.become(Way.OPEN)
        (folder / "hosts").write_text(f"127.0.0.1 localhost {NAME}\n")
        at = ("--engine-url", f"http://{NAME}:{line.port}")
        log = folder / "service.log"
        with running_service(folder / "data", *at, log=log, leash=leash) as url, Refinery(url) as client:
            client.add_prompts(PROMPTS, "s")
            yield Reached(client, engine, line, folder / "hosts")


def test_a_line_that_flaps_costs_time_and_no_group(reached: Reached) -> None:
    reached.engine.told(seconds=0.5)
    job = begin(reached.client, "flapping", len(PROMPTS))

    for way in (Way.RESET, Way.REFUSED):
        until_more(reached.client, "flapping")
        reached.line.become(way)
        reached.until("down")
        reached.line.become(Way.OPEN)
        reached.until("live")
    reached.client.wait(job)

    assert_whole(reached.client, "flapping", len(PROMPTS))


def test_an_engine_whose_name_is_gone_for_a_while_is_found_again(reached: Reached) -> None:
    reached.name()
    reached.until("down")
    reason = reached.worker["reason"]
    job = begin(reached.client, "nameless", FEW)
    until(lambda: reached.client.get(f"/v1/jobs/{job['id']}")["state"] == "running")
    waiting = stored(reached.client, "nameless")

    reached.name(NAME)
    reached.client.wait(job)

    assert waiting == 0
    assert f"{NAME} is no name that anybody knows: Name or service not known" in reason
    assert_whole(reached.client, "nameless", FEW)


def test_an_only_engine_that_stands_still_for_longer_than_its_requests_may_take_loses_no_group(
    reached: Reached,
) -> None:
    job = begin_endless(reached.client, "only", reached.engine)

    reached.engine.send(signal.SIGSTOP)
    reached.until("down")
    reached.engine.send(signal.SIGCONT)
    groups = end(reached.client, job)

    assert_whole(reached.client, "only", groups)
