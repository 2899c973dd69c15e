"""Datasets on the Hugging Face Hub: pushed by its real client to a stand-in, and read back."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from fastapi.testclient import TestClient

from service import freezing, shapes
from tests.processes import ENVIRONMENT, serving
from tests.service.hub_server import TOKEN, Hub, running_hub
from tests.service.steps import finish, freeze, prepare, sample
from trainers.client import Refinery

REPO = "somebody/pairs"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        yield hub


@pytest.fixture
def sampled(client: TestClient) -> TestClient:
    prepare(client)
    sample(client, groups=20)
    return client


def push(client: TestClient, name: str = "d@latest", **body: Any) -> dict[str, Any]:
    answer = client.post(f"/v1/datasets/{name}/push", json={"repo_id": REPO} | body)
    assert answer.status_code == 202, answer.text
    return finish(client, answer.json())


def content(client: TestClient, frozen: dict[str, Any], file: str) -> bytes:
    body: bytes = client.get(frozen["urls"][file]).content
    return body


def test_a_pushed_version_is_a_commit_a_tag_and_a_card(hub: Hub, sampled: TestClient) -> None:
    frozen = freeze(sampled, test_share=0.3)

    job = push(sampled)

    repository = hub.repositories[REPO]
    files = repository.commits[repository.tags["v1"]]
    assert job["result"] == {
        "url": f"{hub.url}/datasets/{REPO}",
        "tag": "v1",
        "commit": repository.tags["v1"],
        "pushed": True,
    }
    assert repository.private
    assert files.keys() == {"README.md", "croissant.json", "manifest.json", "train.parquet", "test.parquet"}
    for split in ("train.parquet", "test.parquet"):
        assert files[split] == content(sampled, frozen, split)
    assert json.loads(files["manifest.json"])["dataset_id"] == frozen["dataset_id"]
    assert yaml.safe_load(files["README.md"].decode().split("---\n")[1])["configs"]


def test_a_push_of_fewer_files_removes_those_of_the_last_push_and_nobody_elses(
    hub: Hub, sampled: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "ROWS_PER_PART", 5)
    monkeypatch.setattr(freezing, "SHARD_BYTES", 1)
    many = freeze(sampled, pairs={"kind": "all_right_with_wrong"})
    push(sampled)
    repository = hub.repositories[REPO]
    head = repository.commits[repository.tags["v1"]]
    pushed = {name for name in head if name.endswith(".parquet")}
    assert pushed == {name for name in many["urls"] if name.startswith("train-") and name.endswith(".parquet")}
    head["test-00000-of-00002.parquet"] = b"somebody else's"
    monkeypatch.setattr(shapes, "ROWS_PER_PART", 10_000)
    freeze(sampled, pairs={"kind": "one_random_pair"})

    push(sampled)

    files = repository.commits[repository.tags["v2"]]
    assert {name for name in files if name.endswith(".parquet")} == {"train.parquet", "test-00000-of-00002.parquet"}


def test_the_card_names_licence_and_sources_as_they_were_told(hub: Hub, sampled: TestClient) -> None:
    freeze(sampled)

    push(sampled, license="cc-by-4.0", sources=["GSM8K (MIT)", "a policy\n---\nlicense: mit"])

    repository = hub.repositories[REPO]
    files = repository.commits[repository.tags["v1"]]
    _, head, body = files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(head)["license"] == json.loads(files["croissant.json"])["license"] == "cc-by-4.0"
    assert "- GSM8K (MIT)\n- a policy --- license: mit\n" in body
    bad = {"repo_id": REPO, "license": "mit\ntags: [x]"}
    assert sampled.post("/v1/datasets/d@1/push", json=bad).status_code == 422


def test_a_second_push_of_the_same_version_changes_nothing(hub: Hub, sampled: TestClient) -> None:
    freeze(sampled)
    push(sampled)
    before = dict(hub.repositories[REPO].commits)

    again = push(sampled)

    assert (again["result"]["pushed"], again["result"]["commit"]) == (False, list(before)[-1])
    assert hub.repositories[REPO].commits == before


def test_the_next_version_is_the_next_commit_and_the_old_tag_stays(hub: Hub, sampled: TestClient) -> None:
    first = freeze(sampled, test_share=0.3)
    push(sampled)
    freeze(sampled)
    push(sampled)

    repository = hub.repositories[REPO]
    assert list(repository.tags) == ["v1", "v2"]
    assert repository.commits[repository.tags["v1"]]["test.parquet"] == content(sampled, first, "test.parquet")
    assert "test.parquet" not in repository.commits[repository.tags["v2"]]


@pytest.mark.parametrize("where", ["/large/", "/commit/", "/tag/"])
def test_a_push_that_broke_off_is_pushed_again(where: str, hub: Hub, sampled: TestClient) -> None:
    frozen = freeze(sampled)
    hub.fails_at = where
    broken = push(sampled)

    mended = push(sampled)

    retried = where == "/large/"  # by the client itself
    assert broken["state"] == ("done" if retried else "failed")
    assert mended["state"] == "done"
    repository = hub.repositories[REPO]
    files = repository.commits[repository.tags["v1"]]
    assert files["train.parquet"] == content(sampled, frozen, "train.parquet")
    assert len(repository.commits) == 2  # the empty one and ours


def test_a_hub_that_has_too_much_to_do_is_asked_again(hub: Hub, sampled: TestClient) -> None:
    frozen = freeze(sampled)
    hub.fails_at, hub.fails_with = "/large/", iter([429, 503, 504])

    job = push(sampled)

    assert job["state"] == "done"
    assert sum(asked.startswith("PUT /large/") for asked in hub.asked) == 4
    repository = hub.repositories[REPO]
    assert len(repository.commits) == 2  # the empty one and ours
    assert repository.commits[repository.tags["v1"]]["train.parquet"] == content(sampled, frozen, "train.parquet")


@pytest.mark.parametrize("where", ["/api/repos/create", "/large/", "/commit/", "/tag/"])
def test_a_hub_that_forbids_it_is_not_asked_for_ever(
    where: str, hub: Hub, sampled: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    freeze(sampled)
    hub.fails_at, hub.fails_with = where, repeat(403)

    failed = push(sampled)

    assert (failed["state"], failed["result"]["error"]) == ("failed", "HubFailed")
    assert "403" in failed["result"]["detail"]
    assert sum(where in asked for asked in hub.asked) <= 2
    assert TOKEN not in caplog.text + json.dumps(failed)


def test_a_push_whose_service_is_killed_or_ended_in_the_middle_goes_on_with_the_next_one(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}.items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    group = {"prompt": "2 + 2 =", "reference": "4", "verifier": "numeric", "rollouts": [{"text": "4"}, {"text": "5"}]}
    hub.fails_at = "/large/"
    for how, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 0), (None, 0)):
        hub.fails_with = repeat(0 if how else 200)
        asked = len(hub.asked)
        with serving(tmp_path / "data") as service, Refinery(service.url) as client:
            if how is signal.SIGKILL:
                client.import_groups([group], "r")
                frozen = client.post("/v1/datasets", {"name": "d", "recipe": {"runs": ["r"]}})
                job = client.post("/v1/datasets/d@1/push", {"repo_id": REPO})
            if how is None:
                done = client.wait(client.get(f"/v1/jobs/{job['id']}"))
                break
            while not any("PUT /large/" in one for one in hub.asked[asked:]):
                time.sleep(0.02)
            assert service.end(how) == code

    repository = hub.repositories[REPO]
    [_, commit] = repository.commits
    assert (done["result"]["pushed"], repository.tags) == (True, {"v1": commit})
    assert json.loads(repository.commits[commit]["manifest.json"])["dataset_id"] == frozen["dataset_id"]
    assert TOKEN not in (tmp_path / "service.log").read_text()


def test_another_dataset_under_the_same_tag_is_refused(hub: Hub, sampled: TestClient) -> None:
    freeze(sampled)
    freeze(sampled, "other", max_pairs=1)
    push(sampled)

    refused = push(sampled, "other@1")

    assert (refused["state"], refused["result"]["error"]) == ("failed", "other_dataset_there")


def test_the_hub_names_what_was_wrong_and_never_the_token(
    hub: Hub, sampled: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze(sampled)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")

    failed = push(sampled)

    assert failed["state"] == "failed"
    assert "401" in failed["result"]["detail"]
    assert "hf_wrong" not in json.dumps(failed)


def test_without_a_token_nothing_is_begun(hub: Hub, sampled: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    freeze(sampled)
    monkeypatch.delenv("HF_TOKEN")

    answer = sampled.post("/v1/datasets/d@1/push", json={"repo_id": REPO})

    assert (answer.status_code, answer.json()["code"]) == (422, "no_hub_token")
    assert hub.asked == []


@pytest.mark.parametrize("repo", ["noslash", "a/b/c", "../x", "a/", "a b/c"])
def test_what_is_no_repository_is_refused(repo: str, hub: Hub, sampled: TestClient) -> None:
    freeze(sampled)

    assert sampled.post("/v1/datasets/d@1/push", json={"repo_id": repo}).status_code == 422


def test_load_dataset_reads_what_was_pushed_row_by_row(hub: Hub, sampled: TestClient, tmp_path: Path) -> None:
    frozen = freeze(sampled, test_share=0.3)
    push(sampled)
    code = f"""
import json
from datasets import load_dataset
found = load_dataset({REPO!r}, revision="v1")
print(json.dumps({{split: rows.to_list() for split, rows in found.items()}}))
"""
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}

    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    loaded = json.loads(ended.stdout)
    for split in ("train", "test"):
        rows = pl.read_parquet(io.BytesIO(content(sampled, frozen, f"{split}.parquet"))).to_dicts()
        assert loaded[split] == rows
