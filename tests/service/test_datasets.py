"""Frozen datasets: immutable bytes behind plain URLs."""

import asyncio
import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import polars as pl
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from service import shapes
from tests.service.conftest import OpenService
from tests.service.steps import GRESO_RUN, freeze, prepare, sample


@pytest.fixture
def sampled(client: TestClient) -> TestClient:
    prepare(client)
    sample(client, groups=30)
    return client


def test_the_file_is_what_the_manifest_says(sampled: TestClient) -> None:
    frozen = freeze(sampled)

    for name, said in frozen["manifest"]["files"].items():
        body = sampled.get(frozen["urls"][name]).content
        assert hashlib.sha256(body).hexdigest() == said["sha256"]
        assert len(body) == said["bytes"]


def test_parquet_and_jsonl_hold_the_same_rows(sampled: TestClient) -> None:
    urls = freeze(sampled)["urls"]

    parquet = pl.read_parquet(io.BytesIO(sampled.get(urls["train.parquet"]).content))
    jsonl = [json.loads(line) for line in sampled.get(urls["train.jsonl"]).text.splitlines()]

    assert parquet.to_dicts() == jsonl


def test_every_pair_has_its_lineage_and_its_margin(sampled: TestClient) -> None:
    rows = pl.read_parquet(io.BytesIO(sampled.get(freeze(sampled)["urls"]["train.parquet"]).content))

    for row in rows.to_dicts():
        members = sampled.get(f"/v1/groups/{row['group_id']}").json()["members"]
        assert (members[row["chosen_index"]]["text"], members[row["rejected_index"]]["text"]) == (
            row["chosen"],
            row["rejected"],
        )
        assert row["margin"] == row["chosen_reward"] - row["rejected_reward"] > 0


def test_a_range_beyond_the_end_is_a_problem_and_one_of_another_kind_is_none(sampled: TestClient) -> None:
    freeze(sampled)
    url = "/v1/datasets/d@1/train.parquet"
    whole = sampled.get(url)

    beyond = sampled.get(url, headers={"Range": "bytes=999999999-"})
    other = [sampled.get(url, headers={"Range": asked}) for asked in ("lines=1-2", "bytes", "bytes=x-y", "bytes=9-1")]

    assert (beyond.status_code, beyond.json()["code"]) == (416, "range_not_satisfiable")
    assert beyond.headers["content-type"] == "application/problem+json"
    assert beyond.headers["content-range"] == f"bytes */{len(whole.content)}"
    assert [(answer.status_code, answer.content) for answer in other] == [(200, whole.content)] * 4


def test_a_range_is_a_range_and_an_etag_saves_the_download(sampled: TestClient) -> None:
    url = freeze(sampled)["urls"]["train.parquet"]
    whole = sampled.get(url)

    part = sampled.get(url, headers={"Range": "bytes=4-9"})
    known = sampled.get(url, headers={"If-None-Match": whole.headers["etag"]})
    head = sampled.head(url)

    assert (part.status_code, part.content) == (206, whole.content[4:10])
    assert (known.status_code, known.content) == (304, b"")
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(whole.content)))
    assert "immutable" in whole.headers["cache-control"]


def test_latest_redirects_to_a_version_that_stays(sampled: TestClient) -> None:
    freeze(sampled)
    sample(sampled, groups=10)
    freeze(sampled)

    answer = sampled.get("/v1/datasets/d@latest/train.parquet", follow_redirects=False)

    assert (answer.status_code, answer.headers["location"]) == (307, "/v1/datasets/d@2/train.parquet")


def test_freezing_the_same_store_twice_is_one_version(sampled: TestClient) -> None:
    first, second = freeze(sampled), freeze(sampled)

    assert first == second
    assert len(sampled.get("/v1/datasets/d").json()) == 1


def test_new_groups_make_a_new_version_and_leave_the_old_bytes_alone(sampled: TestClient) -> None:
    first = freeze(sampled)
    before = sampled.get(first["urls"]["train.parquet"]).content
    sample(sampled, groups=20)

    second = freeze(sampled)

    assert (first["version"], second["version"]) == (1, 2)
    assert second["manifest"]["rows"] > first["manifest"]["rows"]
    assert sampled.get(first["urls"]["train.parquet"]).content == before


def test_a_better_recipe_re_curates_stored_groups_without_sampling(sampled: TestClient) -> None:
    one = freeze(sampled)
    every = freeze(
        sampled,
        "every",
        pairs={"kind": "all_right_with_wrong"},
        down_sampling={"kind": "max_variance", "keep": 4},
    )

    assert every["manifest"]["watermark"] == one["manifest"]["watermark"]
    assert every["manifest"]["rows"] > one["manifest"]["rows"]


def test_no_prompt_is_in_both_splits(sampled: TestClient) -> None:
    urls = freeze(sampled, test_share=0.4)["urls"]

    train, test = (
        set(pl.read_parquet(io.BytesIO(sampled.get(urls[f"{split}.parquet"]).content))["prompt_id"])
        for split in ("train", "test")
    )

    assert train
    assert test
    assert train & test == set()


def test_rows_page_like_the_dataset_viewer(sampled: TestClient) -> None:
    frozen = freeze(sampled)

    page = sampled.get("/v1/datasets/d@1/rows?offset=2&length=3").json()

    assert [row["row_idx"] for row in page["rows"]] == [2, 3, 4]
    assert page["num_rows_total"] == frozen["manifest"]["rows"]
    assert {feature["name"] for feature in page["features"]} >= {"prompt", "chosen", "rejected", "margin"}


def test_a_dataset_survives_a_restart(open_service: OpenService) -> None:
    with open_service() as client:
        prepare(client)
        sample(client, groups=10)
        url = freeze(client)["urls"]["train.parquet"]
        before = client.get(url).content

    with open_service() as client:
        assert client.get(url).content == before


def test_a_timeout_never_becomes_the_rejected_side(open_service: OpenService) -> None:
    """About half of the rollouts make their verifier hang; they must not count as wrong."""
    hanging = r"\boxed{9^{9^{9^9}}}"

    def script(prompt: str, seed: int, version: int) -> str:
        return hanging if seed % 2 else "The answer is $4$."

    with open_service(script, verifier_seconds=0.5) as client:
        client.post("/v1/prompts?set=s", json=[{"prompt": f"easy {i}", "reference": "4"} for i in range(2)])
        client.post(
            "/v1/runs",
            json={
                "name": "r",
                "policy": "policy",
                "prompt_set": "s",
                "retain": "all",
                "sampling": {"n": 4, "max_tokens": 64},
            },
        )
        funnel = sample(client, passes=1)["funnel"]

        answer = client.post("/v1/datasets", json={"name": "d", "recipe": {"runs": ["r"]}})

        assert funnel["outcomes"]["timeout"] > 0
        assert funnel["informative"] == 0
        assert answer.json()["code"] == "no_rows"


def test_the_same_dataset_asked_for_twice_at_once_is_made_once(sampled: TestClient) -> None:
    with ThreadPoolExecutor(4) as threads:
        frozen = list(threads.map(lambda _: freeze(sampled, "d"), range(4)))

    assert [one["version"] for one in frozen] == [1, 1, 1, 1]
    assert len({one["manifest"]["files"]["train.parquet"]["sha256"] for one in frozen}) == 1


def test_row_groups_are_bounded_by_what_they_hold(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "BYTES_PER_PART", 100_000)
    tokens = 1000
    rows = [
        {
            "prompt": f"{n} + 1?",
            "reference": str(n + 1),
            "verifier": "numeric",
            "rollouts": [
                {"text": str(n + off), "token_ids": [off] * tokens, "logprobs": [-0.5] * tokens} for off in (0, 1) * 4
            ],
        }
        for n in range(20)
    ]
    assert client.post("/v1/rollouts/import?run=r", json=rows).status_code == 201

    frozen = freeze(client, "d", shape="groups")

    file = pq.ParquetFile(io.BytesIO(client.get(frozen["urls"]["train.parquet"]).content))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [1] * 20  # 64,000 bytes each
    assert all(
        ids == [int(text) - int(row["prompt"].split()[0])] * tokens
        for row in file.read().to_pylist()
        for text, ids in zip(row["completions"], row["token_ids"], strict=True)
    )


def test_a_dataset_of_prompts_counts_groups_whose_text_was_not_kept(client: TestClient) -> None:
    prepare(client, selector={"kind": "all"})
    sample(client, passes=1)

    prompts = freeze(client, "p", shape="prompts")["manifest"]
    right = freeze(client, "r", shape="right")["manifest"]

    assert (prompts["rows"], prompts["groups"], prompts["dropped"]) == (30, 30, {})
    assert right["dropped"]["no_text"] == 10  # the prompts that are always right
    assert right["groups"] == 30


def test_work_in_another_run_makes_no_new_version(sampled: TestClient) -> None:
    first = freeze(sampled)
    sampled.post("/v1/runs", json=GRESO_RUN | {"name": "other"})
    sample(sampled, run="other", passes=1)

    assert freeze(sampled)["version"] == first["version"] == 1


def test_a_dataset_of_older_rules_is_still_there(client: TestClient) -> None:
    old = {"runs": ["b", "a"], "shape": "labelled", "advantages_over": "all", "unique": False} | {
        "pairs": {"kind": "first_right_first_wrong", "margin": 0.5},
        "decontaminate": {"prompt_sets": ["s"], "words": 13},
    }
    manifest = {"rules": 1, "rows": 1, "cut": {}, "dropped": {}, "files": {}}
    row = {"name": "old", "version": 1, "dataset_id": "x", "recipe": json.dumps(old), "watermark": 3} | {
        "frozen_at": datetime.fromisoformat("2026-01-01")
    }
    duck = client.app_state["parts"].store.duck  # type: ignore[attr-defined]

    asyncio.run(duck.write(lambda tx: tx.insert("datasets", [row | {"manifest": json.dumps(manifest)}])))

    assert [d["name"] for d in client.get("/v1/datasets").json()] == ["old"]


def test_large_references_are_no_matter_where_a_prompt_has_many_rows(client: TestClient) -> None:
    """A reference of 2 MiB, as unit tests may be, and 1,024 pairs of its prompt."""
    texts = [{"text": str(n % 2)} for n in range(64)]
    row = {"prompt": "1?", "reference": "1" + " " * 2**21, "verifier": "exact", "rollouts": texts}
    assert client.post("/v1/rollouts/import?run=r", json=[row]).status_code == 201

    pairs = freeze(client, "d", pairs={"kind": "all_right_with_wrong"})
    prompts = freeze(client, "p", shape="prompts")

    assert pairs["manifest"]["rows"] == 1024
    body = client.get(prompts["urls"]["train.parquet"]).content
    assert pl.read_parquet(io.BytesIO(body))["reference"].to_list() == [row["reference"]]


# ---- deletion


def test_a_deleted_version_leaves_a_tombstone_and_its_lineage(sampled: TestClient) -> None:
    frozen = freeze(sampled)
    newer = freeze(sampled, max_pairs=3)

    gone = sampled.delete("/v1/datasets/d@1", params={"reason": "leaked test questions"}).json()

    assert gone["deletion_reason"] == "leaked test questions"
    assert gone["manifest"] == frozen["manifest"]
    assert sampled.get("/v1/datasets/d@1").json() == gone
    assert gone["urls"] == {}
    for path in ("train.parquet", "train.arrow", "rows", "statistics", "card", "explain?prompt_id=p"):
        answer = sampled.get(f"/v1/datasets/d@1/{path}")
        assert (answer.status_code, answer.json()["code"]) == (410, "dataset_deleted")
        assert "leaked test questions" in answer.json()["detail"]
    assert sampled.get("/v1/datasets/d@latest").json()["version"] == newer["version"] == 2
    assert sampled.get(newer["urls"]["train.parquet"]).status_code == 200


def test_a_deleted_dataset_can_be_frozen_again(sampled: TestClient) -> None:
    first = freeze(sampled)
    sampled.delete("/v1/datasets/d@1")

    again = freeze(sampled)

    assert (again["version"], again["dataset_id"]) == (2, first["dataset_id"])
    assert again["manifest"]["files"] == first["manifest"]["files"]
    assert sampled.get(again["urls"]["train.parquet"]).status_code == 200
    assert sampled.get("/v1/datasets/d@1/train.parquet").status_code == 410


def test_files_that_another_name_holds_stay(sampled: TestClient) -> None:
    freeze(sampled, "d")
    other = freeze(sampled, "other")

    assert sampled.delete("/v1/datasets/d@1").status_code == 200

    assert sampled.get(other["urls"]["train.parquet"]).status_code == 200
    assert sampled.delete("/v1/datasets/other@1").status_code == 200
    assert sampled.get("/v1/datasets/other@latest/rows").status_code == 410


def test_deleting_twice_keeps_the_first_reason_and_deleting_nothing_is_refused(sampled: TestClient) -> None:
    freeze(sampled)
    first = sampled.delete("/v1/datasets/d@1", params={"reason": "first"}).json()

    assert sampled.delete("/v1/datasets/d@1", params={"reason": "second"}).json() == first
    assert sampled.delete("/v1/datasets/d@7").status_code == 404
    assert sampled.delete("/v1/datasets/d@latest").status_code == 422
