"""Datasets of every shape, as their readers find them."""

import io
from typing import Any

import polars as pl
import pytest
from fastapi.testclient import TestClient

from tests.service.steps import freeze, prepare, sample


@pytest.fixture
def sampled(client: TestClient) -> TestClient:
    prepare(client, retain="all", selector={"kind": "all"})
    sample(client, passes=2)
    return client


def rows(client: TestClient, **recipe: Any) -> list[dict[str, Any]]:
    url = freeze(client, "-".join(sorted(recipe)), **recipe)["urls"]["train.parquet"]
    return pl.read_parquet(io.BytesIO(client.get(url).content)).to_dicts()


def test_labelled_rows_are_what_kto_takes(sampled: TestClient) -> None:
    found = rows(sampled, shape="labelled")

    assert len(found) == 60 * 4
    assert {row["label"] for row in found} == {True, False}
    assert all(row["label"] == (row["completion"] == "<answer>4</answer>") for row in found)


def test_right_rows_are_right_answers_only(sampled: TestClient) -> None:
    found = rows(sampled, shape="right", per_prompt=1)

    assert {row["completion"] for row in found} == {"<answer>4</answer>"}
    assert {row["prompt"].split()[0] for row in found} == {"easy", "mixed"}
    assert len({row["prompt_id"] for row in found}) == len(found)


def test_prompt_rows_have_their_pass_rate_over_all_groups(sampled: TestClient) -> None:
    found = {row["prompt"]: row for row in rows(sampled, shape="prompts")}

    assert len(found) == 30
    assert {(row["groups"], row["rollouts"]) for row in found.values()} == {(2, 8)}
    assert (found["easy 0"]["pass_rate"], found["hard 0"]["pass_rate"]) == (1.0, 0.0)
    assert 0 < found["mixed 0"]["pass_rate"] < 1


def test_group_rows_have_rewards_advantages_and_what_a_trainer_needs(sampled: TestClient) -> None:
    found = rows(sampled, shape="groups", down_sampling={"kind": "max_variance", "keep": 2})

    assert found
    for row in found:
        assert sorted(row["rewards"]) == [0.0, 1.0]
        assert sum(row["advantages"]) == pytest.approx(0.0)
        assert [a > 0 for a in row["advantages"]] == [r == 1.0 for r in row["rewards"]]
        assert [len(ids) for ids in row["token_ids"]] == [len(logprobs) for logprobs in row["logprobs"]]


def test_a_recipe_keeps_away_from_an_evaluation_set(sampled: TestClient) -> None:
    sampled.post("/v1/prompts?set=held-out", json=[{"prompt": "Mixed 3", "reference": "4", "verifier": "numeric"}])

    frozen = freeze(sampled, "clean", decontaminate={"prompt_sets": ["held-out"], "words": 2})
    dirty = freeze(sampled, "dirty")

    page = sampled.get("/v1/datasets/clean@1/rows").json()["rows"]
    assert "mixed 3" not in {row["row"]["prompt"] for row in page}
    assert frozen["manifest"]["dropped"]["contaminated"] == 2
    assert "contaminated" not in dirty["manifest"]["dropped"]


def test_an_evaluation_set_that_grew_makes_another_dataset(sampled: TestClient) -> None:
    recipe = {"decontaminate": {"prompt_sets": ["held-out"], "words": 2}}
    sampled.post("/v1/prompts?set=held-out", json=[{"prompt": "Mixed 3", "reference": "4", "verifier": "numeric"}])
    first = freeze(sampled, "clean", **recipe)
    same = freeze(sampled, "clean", **recipe)
    sampled.post("/v1/prompts?set=held-out", json=[{"prompt": "mixed 4!", "reference": "4", "verifier": "numeric"}])
    second = freeze(sampled, "clean", **recipe)

    assert same["version"] == first["version"] == 1
    assert second["version"] == 2


def test_an_evaluation_set_that_nobody_filled_is_refused(sampled: TestClient) -> None:
    body = {"name": "d", "recipe": {"runs": ["r"], "decontaminate": {"prompt_sets": ["nobody"]}}}

    assert sampled.post("/v1/datasets", json=body).json()["code"] == "empty_prompt_set"


def test_the_manifest_counts_what_was_left_out(sampled: TestClient) -> None:
    manifest = freeze(sampled, "few", pairs={"kind": "all_right_with_wrong"}, per_prompt=1)["manifest"]

    assert manifest["groups"] == 60
    assert manifest["cut"]["per_prompt"] > 0
    assert manifest["dropped"]["easy"] + manifest["dropped"]["hard"] >= 40
