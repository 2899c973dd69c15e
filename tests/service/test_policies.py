"""Publishing: a version is live when the engine reports it, and its label is on everything it sampled."""

import asyncio
import os
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient

from service.checkpoints import EMBEDDED
from service.stages import Conflict
from service.store.answers import Answers
from service.store.policies import Policies, PolicyVersion
from tests.engines.conftest import write_checkpoint
from tests.engines.reference import logprobs
from tests.processes import serving
from tests.service.conftest import OpenService
from tests.service.steps import GRESO_RUN, finish, prepare, sample
from trainers.client import Refinery, RefineryError
from trainers.tasks import LEVELS, distinct


def publish(client: TestClient, checkpoint: Path, **headers: str) -> dict[str, object]:
    body = {"checkpoint": str(checkpoint), "step": 7}
    job = client.post("/v1/policies/policy/versions", json=body, headers=headers).json()
    return finish(client, job)


def test_a_published_version_labels_the_groups_sampled_after_it(client: TestClient, checkpoint: Path) -> None:
    prepare(client)
    sample(client, passes=1)

    publish(client, checkpoint)
    sample(client, passes=1)

    versions = {(g["visit"], g["policy_version"]) for g in client.get("/v1/groups?run=r&limit=1000").json()["items"]}
    assert versions == {(0, 1), (1, 2)}
    assert client.get("/readyz").json() == {"policies": {"policy": 2}}


def test_a_policy_whose_checkpoint_is_gone_keeps_no_service_from_starting(
    open_service: OpenService, tmp_path: Path
) -> None:
    folder = tmp_path / "examined"
    shutil.copytree(EMBEDDED, folder)
    with open_service() as client:
        finish(client, client.post("/v1/policies", json={"name": "examined", "checkpoint": str(folder)}).json())
    shutil.rmtree(folder)

    with open_service() as client:
        assert client.get("/readyz").json() == {"policies": {"policy": 1}}
        shutil.copytree(EMBEDDED, folder)
        body = {"checkpoint": str(folder)}
        assert finish(client, client.post("/v1/policies/examined/versions", json=body).json())["state"] == "done"
        assert client.get("/readyz").json() == {"policies": {"policy": 1, "examined": 2}}


def test_weights_that_change_under_a_running_job_are_those_that_every_label_names(tmp_path: Path) -> None:
    """Checkpoints that cannot be loaded change nothing; of one that can, each token has the logprob that it gives."""
    other = write_checkpoint(tmp_path / "other", lambda _, weight: weight * (1 + 0.05 * torch.sin(weight * 1000)))
    wide = write_checkpoint(tmp_path / "wide", lambda _, weight: torch.cat([weight, weight]))
    truncated = shutil.copytree(EMBEDDED, tmp_path / "truncated")
    os.truncate(truncated / "model.safetensors", 100_000)
    problems = distinct(LEVELS[3], 40, seed=0, held_out=False)
    run = {"name": "r", "policy": "policy", "prompt_set": "s", "sampling": {"n": 4, "max_tokens": 64}, "retain": "all"}
    with serving(tmp_path / "data") as service, Refinery(service.url) as client:

        def published(checkpoint: Path) -> str:
            try:
                job = client.post("/v1/policies/policy/versions", {"checkpoint": str(checkpoint)})
                return str(client.wait(job)["result"]["version"])
            except RefineryError as refused:
                return refused.code

        def versions() -> Counter[int]:
            return Counter(group["policy_version"] for group in client.groups("r"))

        client.add_prompts((problem.as_prompt() for problem in problems), "s")
        client.post("/v1/runs", run | {"batch": {"groups": 10, "prompts": 10, "least": 10}})
        job = client.post("/v1/runs/r/rollouts", {"passes": 1000})
        while versions()[1] < 20:
            time.sleep(0.05)
        refused = [published(checkpoint) for checkpoint in (tmp_path / "nowhere", truncated, wide)]
        live = client.get("/v1/policies/policy")["live"]
        told = published(other)
        while versions()[2] < 20:
            time.sleep(0.05)
        client.delete(f"/v1/jobs/{job['id']}")
        client.wait(job)
        texts = {prompt["id"]: prompt["prompt"] for prompt in client.prompts("s")}
        of_version = {version: [g for g in client.groups("r") if g["policy_version"] == version] for version in (1, 2)}
        seen = [
            client.get(f"/v1/groups/{g['id']}") for groups in of_version.values() for g in groups[:10] + groups[-10:]
        ]

    assert refused == ["checkpoint_not_found", "checkpoint_damaged", "checkpoint_differs"]
    assert (live, told) == (1, "2")
    folders = {1: EMBEDDED, 2: other}
    for group in seen:
        for member in group["members"]:
            [span] = member["weight_versions"]
            assert (span["version"], span["end"]) == (group["policy_version"], member["tokens"])
            of = {
                version: logprobs(folder, texts[group["prompt_id"]], tuple(member["token_ids"]))
                for version, folder in folders.items()
            }
            reported = torch.tensor(member["logprobs"], dtype=torch.float64)
            right, wrong = of.pop(group["policy_version"]), next(iter(of.values()))
            assert (right - reported).abs().max() < 1e-4 < (wrong - reported).abs().max()


def test_a_repeated_publication_with_one_key_is_one_version(client: TestClient, checkpoint: Path) -> None:
    for _ in range(2):
        publish(client, checkpoint, **{"Idempotency-Key": "step-7"})

    assert client.get("/v1/policies/policy").json()["live"] == 2


def test_a_publication_that_was_interrupted_after_it_was_stored_is_one_version(
    open_service: OpenService, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both of the routes; and the key of a new policy is still good for the answer."""
    add = Policies.add
    stored = threading.Event()

    async def interrupted(policies: Policies, live: PolicyVersion) -> None:
        await add(policies, live)
        stored.set()
        await asyncio.sleep(3600)

    body, key = {"checkpoint": str(checkpoint)}, {"Idempotency-Key": "k"}
    asked = [("/v1/policies/policy/versions", body), ("/v1/policies", body | {"name": "q"})]
    jobs = []
    for path, what in asked:
        with open_service() as client:
            monkeypatch.setattr(Policies, "add", interrupted)
            jobs.append(client.post(path, json=what, headers=key).json())
            assert stored.wait(30)
        monkeypatch.setattr(Policies, "add", add)
        stored.clear()
    with open_service() as client:
        ended = [finish(client, job) for job in jobs]
        assert [(job["state"], job["result"]["version"]) for job in ended] == [("done", 2), ("done", 1)]
        monkeypatch.setattr(Answers, "find", never)
        told = [client.post(path, json=what, headers=key) for path, what in asked]
        assert [answer.json()["id"] for answer in told] == [job["id"] for job in jobs]
        assert [len(policy["versions"]) for policy in client.get("/v1/policies").json()] == [2, 1]


async def never(answers: Answers, answer_id: str) -> None:
    """No answer was stored."""


def test_the_newest_version_is_live_after_a_restart(open_service: OpenService, checkpoint: Path) -> None:
    with open_service() as client:
        publish(client, checkpoint)

    with open_service() as client:
        policy = client.get("/v1/policies/policy").json()

        assert client.get("/readyz").json() == {"policies": {"policy": 2}}
        assert [(v["version"], v["step"]) for v in policy["versions"]] == [(1, None), (2, 7)]


def test_a_second_policy_is_sampled_beside_the_first(client: TestClient, checkpoint: Path) -> None:
    prepare(client)
    job = client.post("/v1/policies", json={"name": "other", "checkpoint": str(checkpoint), "step": 3}).json()
    finish(client, job)
    client.post("/v1/runs", json=GRESO_RUN | {"name": "q", "policy": "other"})

    funnel = sample(client, "q", passes=1)["funnel"]

    assert funnel["sampled"] == 30
    assert [v["step"] for v in client.get("/v1/policies/other").json()["versions"]] == [3]
    again = client.post("/v1/policies", json={"name": "other", "checkpoint": str(checkpoint)})
    assert (again.status_code, again.json()["code"]) == (409, "policy_exists")


def test_a_start_with_another_checkpoint_on_old_data_is_refused(open_service: OpenService, tmp_path: Path) -> None:
    with open_service():
        pass

    with pytest.raises(Conflict, match="start without --policy"), open_service(policy=str(EMBEDDED)):
        pass
