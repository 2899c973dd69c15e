"""The service as a process, with real engines around it: several at once, killed, restarted, launched."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.checkpoints import EMBEDDED
from service.engines.addresses import Kind
from tests.engines.conftest import Servers
from tests.engines.servers import python_of
from trainers.client import Refinery
from trainers.launch import NotStarted, running_service
from trainers.tasks import LEVELS, distinct

RUN = {
    "name": "r",
    "policy": "policy",
    "prompt_set": "s",
    "selector": {"kind": "all"},
    "sampling": {"n": 4, "max_tokens": 64},
    "retain": "all",
}


def submit(client: Refinery, groups: int) -> dict[str, Any]:
    """A job that samples so many prompts once, all at the same time."""
    each = -(-groups // len(LEVELS))
    rows = [p.as_prompt() for level in LEVELS for p in distinct(level, each, seed=3, held_out=False)]
    client.add_prompts(rows[:groups], "s")
    client.post("/v1/runs", RUN)
    return client.post("/v1/runs/r/rollouts", {"prompts": [p["id"] for p in client.prompts("s")]})


def until(seen: Callable[[], bool], seconds: float = 120.0) -> float:
    """How long it took."""
    began = time.monotonic()
    while not seen():
        assert time.monotonic() - began < seconds
        time.sleep(0.2)
    return time.monotonic() - began


def stored(client: Refinery) -> int:
    return client.get("/v1/runs/r")["funnel"]["rollouts"] // 4


def answered(client: Refinery, url: str) -> int:
    [worker] = (worker for worker in client.get("/v1/workers") if worker["url"] == url)
    return int(worker["answered"])


def assert_whole(client: Refinery, groups: int) -> None:
    """Every prompt has one group of four rollouts with their tokens, and no group is there twice."""
    every = list(client.groups("r"))
    assert len(every) == groups
    assert set(Counter(g["prompt_id"] for g in every).values()) == {1}
    assert len({g["id"] for g in every}) == groups
    for group in every[::10]:
        members = client.get(f"/v1/groups/{group['id']}")["members"]
        assert len(members) == 4
        assert all(len(m["logprobs"]) == len(m["token_ids"]) == m["tokens"] > 0 for m in members)


def test_a_killed_engine_costs_time_and_no_group(servers: Servers, tmp_path: Path) -> None:
    """Two vLLM and one SGLang; one is killed with kill -9 while 500 groups are collected."""
    first, second, third = servers.start("vllm", "vllm-mortal", "sglang")
    urls = [argument for server in (first, second, third) for argument in ("--engine-url", server.url)]

    with (
        running_service(tmp_path / "data", *urls, log=tmp_path / "log") as url,
        Refinery(url) as client,
    ):
        job = submit(client, 500)
        until(lambda: stored(client) >= 100 and answered(client, second.url) > 0)
        busy = {worker["url"]: worker["in_flight"] for worker in client.get("/v1/workers")}
        second.kill()
        done = client.wait(job)
        workers = {worker["url"]: worker for worker in client.get("/v1/workers")}
        ready = client.get("/readyz")

        assert min(busy.values()) > 0
        assert (done["result"]["funnel"]["sampled"], done["result"]["funnel"]["failed"]) == (500, 0)
        assert_whole(client, 500)
        assert workers[second.url]["state"] == "down"
        assert "refused" in workers[second.url]["reason"]
        assert {workers[server.url]["state"] for server in (first, third)} == {"live"}
        assert min(worker["answered"] for worker in workers.values()) > 0  # the killed one, too, until then
        assert ready == {"policies": {"policy": 1}}


def test_a_launched_engine_that_dies_is_started_again(tmp_path: Path) -> None:
    launch = ("--engine", "sglang", "--engine-python", str(python_of(Kind.SGLANG)))
    with running_service(tmp_path / "data", *launch, log=tmp_path / "log") as url, Refinery(url) as client:
        [worker] = client.get("/v1/workers")
        job = submit(client, 60)
        until(lambda: stored(client) >= 10)
        os.killpg(worker["pid"], signal.SIGKILL)
        until(lambda: client.get("/v1/workers")[0]["state"] != "live")
        done = client.wait(job)
        until(lambda: client.get("/v1/workers")[0]["state"] == "live")  # the job may have ended before
        [again] = client.get("/v1/workers")

        assert (again["state"], again["version"]) == ("live", 1)
        assert again["pid"] != worker["pid"]
        assert (done["result"]["funnel"]["sampled"], done["result"]["funnel"]["failed"]) == (60, 0)
        assert_whole(client, 60)
    assert not Path(f"/proc/{again['pid']}").exists()


def test_an_engine_ends_with_the_service_that_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "refinery", "serve", "--data", str(tmp_path / "data"), "--port", "0"]
    command += ["--engine", "sglang", "--engine-python", str(python_of(Kind.SGLANG))]
    with (tmp_path / "log").open("w") as log:
        service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert service.stdout is not None
    with Refinery(service.stdout.readline().split()[-1]) as client:
        pid = client.get("/v1/workers")[0]["pid"]

    service.kill()
    service.wait()
    service.stdout.close()

    until(lambda: not Path(f"/proc/{pid}").exists(), seconds=30)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--engine", "vllm", "--engine-python", "/nowhere/python"), "there is no Python at /nowhere/python"),
        (("--engine", "vllm", "--engine-python", sys.executable), "has no vllm installed"),
        (("--engine-url", "http://127.0.0.1:9"), "connection refused"),
        (("--engine-url", "127.0.0.1:9"), "engine-url"),
        (("--engine-url", "http://a,dialect=openai"), "a version belongs to dialect=openai"),
        (("--engine-url", "http://a", "--engine-url", "http://a/"), "names a server twice"),
        (("--engine-python", sys.executable), "go with --engine vllm or sglang"),
    ],
)
def test_an_engine_that_cannot_be_had_is_one_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(NotStarted) as ended, running_service(tmp_path / "data", *arguments, log=tmp_path / "log"):
        pass

    assert said in str(ended.value)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_launched_engine_with_wrong_arguments_shows_what_it_said(tmp_path: Path) -> None:
    launch = ("--engine", "vllm", "--engine-python", str(python_of(Kind.VLLM)), "--", "--no-such-flag")
    with pytest.raises(NotStarted), running_service(tmp_path / "data", *launch, log=tmp_path / "log"):
        pass

    assert "--no-such-flag" in (tmp_path / "log").read_text()


def test_a_fleet_serves_one_policy(servers: Servers, tmp_path: Path) -> None:
    [server] = servers.start("sglang")
    with (
        running_service(tmp_path / "data", "--engine-url", server.url, log=tmp_path / "log") as url,
        Refinery(url) as client,
    ):
        job = client.post("/v1/policies", {"name": "other", "checkpoint": str(EMBEDDED)})
        job = client.get(f"/v1/jobs/{job['id']}", wait=30)

    assert (job["state"], job["result"]["error"]) == ("failed", "fleet_is_taken")
