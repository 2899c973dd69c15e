"""A verifier that goes blind is noticed, and what it should judge waits: nothing is made up."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from curation.records import Prompt
from service.settings import Settings
from service.verifiers import canaries
from service.verifiers.catalogue import BUILT_IN, Canary, Catalogue, Local
from service.verifiers.panel import Panel
from service.verifiers.pool import VerifierPool
from service.verifiers.worker import Limits
from tests.processes import serving, until_unready
from tests.service.conftest import OpenService
from tests.service.steps import finish
from trainers.client import Refinery

TRY = Prompt("p", "?", "4", "numeric")


def test_every_verifier_that_is_always_there_sees_its_own_canary() -> None:
    async def trials() -> dict[str, list[float | None]]:
        async with watched({**BUILT_IN}, seconds=100) as panel:
            verdicts = {}
            for name, verifier in BUILT_IN.items():
                if name != "code":  # needs a sandbox; see test_code.py
                    assert verifier.canary is not None
                    c = verifier.canary
                    prompt = Prompt("p", c.prompt, c.reference, name, dict(c.metadata))
                    verdicts[name] = [v.reward for v in await panel.try_out(prompt, [c.right, c.wrong])]
            return verdicts

    assert asyncio.run(trials()) == {name: [1.0, 0.0] for name in BUILT_IN if name != "code"}


@asynccontextmanager
async def watched(verifiers: dict[str, Local], *, seconds: float = 0.05) -> AsyncIterator[Panel]:
    pool = VerifierPool(workers=1, limits=Limits(wall_seconds=5.0, cpu_seconds=2.0, memory_bytes=2 << 30))
    panel = Panel(Catalogue(verifiers), pool)
    task = asyncio.create_task(canaries.watch(panel, seconds=seconds))
    try:
        yield panel
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await panel.close()


async def until_blind(panel: Panel) -> str:
    async with asyncio.timeout(20):
        while not panel.blind:  # noqa: ASYNC110 - the watch tells nobody but the log
            await asyncio.sleep(0.02)
    return panel.blind["numeric"]


BLIND = {
    "always wrong": ("tests.service.rules_for_tests:always_zero", "0 for '1,200.0', which is right"),
    "always right": ("tests.service.rules_for_tests:always_one", "1 for '1,200.0', which is right, and 1 for '1201'"),
    "always an exception": ("tests.service.rules_for_tests:raises", "error for '1,200.0': RuntimeError"),
    "its package is gone": ("tests.service.nowhere:judge", "error for '1,200.0': ModuleNotFoundError"),
    "always no answer": ("tests.service.rules_for_tests:no_answer", "0 for '1,200.0', which is right"),
}


@pytest.mark.parametrize("how", BLIND)
def test_a_blind_verifier_is_noticed_and_work_waits_until_it_sees_again(how: str) -> None:
    rule, reason = BLIND[how]
    verifiers = {"numeric": replace(BUILT_IN["numeric"], rule=rule)}

    async def scene() -> None:
        async with watched(verifiers) as panel:
            await panel.verify(TRY, ["4"])  # in use from now on
            assert reason in await until_blind(panel)

            waiting = asyncio.create_task(panel.verify(TRY, ["4", "5"]))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            assert panel.waiting == 2

            panel.catalogue._verifiers["numeric"] = BUILT_IN["numeric"]  # somebody mends it
            async with asyncio.timeout(20):
                verdicts = await waiting
            assert not panel.blind
            assert [v.reward for v in verdicts] == [1.0, 0.0]

    asyncio.run(scene())


def test_the_alarm_comes_within_a_minute_where_nobody_set_anything() -> None:
    assert (canaries.MISSES + 1) * Settings().canary_seconds <= 60


HOUSE_RULE = """
from pathlib import Path
HOW = Path(__file__).with_name("how")

def judge(completions, reference, **columns):
    if HOW.exists() and HOW.read_text() == "raises":
        raise RuntimeError("no")
    return [float(text == right and not HOW.exists()) for text, right in zip(completions, reference)]
"""


@pytest.mark.parametrize("how", ["raises", "always zero"])
def test_a_verifier_that_breaks_while_a_service_runs_stops_what_it_judges_and_never_gives_a_zero(
    tmp_path: Path, how: str
) -> None:
    (tmp_path / "house_rule.py").write_text(HOUSE_RULE)
    canary = {"prompt": "2 + 2?", "reference": "4", "right": "4", "wrong": "5"}
    house = {"name": "house", "kind": "function", "target": "house_rule:judge", "canary": canary}
    rows = [
        {"prompt": f"{n} + 1?", "reference": str(n + 1), "verifier": "house"}
        | {"rollouts": [{"text": str(n + 1)}, {"text": str(n)}]}
        for n in range(3)
    ]
    with (
        serving(
            tmp_path / "data",
            environment={"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
            verifier=json.dumps([house]),
            canary_seconds=0.5,
        ) as service,
        Refinery(service.url) as client,
    ):
        client.import_groups(rows, "r")
        (tmp_path / "how").write_text(how)
        broken = time.monotonic()
        assert "verifier house is blind" in until_unready(client)
        seconds = time.monotonic() - broken

        job = client.post("/v1/runs/r/rescore", {})
        time.sleep(2.0)
        assert client.get(f"/v1/jobs/{job['id']}")["state"] == "running"
        (tmp_path / "how").unlink()
        assert client.wait(job)["result"]["classes"] == {"right -> right": 3, "wrong -> wrong": 3}
        rewards = [group["rewards"] for group in client.groups("r")]

    assert seconds < 2 * canaries.MISSES * 0.5 + 5.0  # and as much as a busy machine needs
    assert rewards == [[1.0, 0.0]] * 3


def test_a_pool_that_fails_is_blind_and_the_watch_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with watched({**BUILT_IN}) as panel:
            await panel.verify(TRY, ["4"])
            with monkeypatch.context() as broken:
                broken.setattr("service.verifiers.pool._Worker._start", lambda _: 1 / 0)
                panel._pool._workers[0].stop()
                assert "ZeroDivisionError" in await until_blind(panel)
            [verdict] = await panel.verify(TRY, ["4"])  # once it sees again
            assert verdict.reward == 1.0

    asyncio.run(scene())


def test_canaries_do_not_wait_in_the_queue() -> None:
    async def scene() -> None:
        slow = Local("tests.service.rules_for_tests:sleeps", canary=Canary(right="0.01", wrong="x"))
        async with watched({"slow": slow}, seconds=100) as panel:
            queue = [asyncio.create_task(panel.verify(Prompt("p", "?", "", "slow"), ["0.2"])) for _ in range(40)]
            await asyncio.sleep(0.5)
            async with asyncio.timeout(4):  # the queue alone takes 8 s
                await panel.try_out(Prompt("p", "?", "", "slow"), ["0.01"])
            assert not all(task.done() for task in queue)
            await asyncio.gather(*queue)

    asyncio.run(scene())


def test_the_alarm_is_seen_from_outside_and_the_job_goes_on_afterwards(
    open_service: OpenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(BUILT_IN["numeric"], rule="tests.service.rules_for_tests:always_zero")
    with open_service(canary_seconds=0.05) as client:
        known = client.app_state["parts"].panel.catalogue._verifiers  # type: ignore[attr-defined]
        known["numeric"] = broken
        client.post("/v1/prompts?set=s", json=[{"prompt": "mixed 2 + 2", "reference": "4", "verifier": "numeric"}])
        run = {"name": "r", "policy": "policy", "prompt_set": "s", "sampling": {"n": 4}}
        client.post("/v1/runs", json=run)
        finish(client, client.post("/v1/runs/r/rollouts", json={"passes": 1}).json())
        ready = _until(client, 503)
        assert "verifier numeric is blind" in ready
        assert 'refinery_verifier_blind{verifier="numeric"} 1.0' in client.get("/metrics").text

        job = client.post("/v1/runs/r/rollouts", json={"passes": 1}).json()
        assert client.get(f"/v1/jobs/{job['id']}?wait=1").json()["state"] == "running"
        known["numeric"] = BUILT_IN["numeric"]
        assert finish(client, job)["state"] == "done"
        _until(client, 200)
        assert 'refinery_verdicts_total{outcome="scored",verifier="numeric@1"}' in client.get("/metrics").text


def _until(client: TestClient, status: int) -> str:
    for _ in range(400):
        answer = client.get("/readyz")
        if answer.status_code == status:
            return answer.text
    raise AssertionError(f"never {status}: {answer.text}")
