"""Datasets of every shape, as their readers find them."""

import io
import json
import re
from typing import Any

import datasets
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from trl.data_utils import is_conversational

from curation.recipe import Shape, TextFormat
from service import freezing, shapes
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
    assert freeze(sampled, "again", shape="prompts")["manifest"]["rows"] == 30


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


def test_the_manifest_says_what_all_groups_cost_not_only_those_with_rows(sampled: TestClient) -> None:
    spent = freeze(sampled, max_pairs=1)["manifest"]["spent"]

    listed = sampled.get("/v1/groups?run=r&limit=1000").json()["items"]
    assert spent["tokens"] == sum(group["tokens"] for group in listed) > 0
    assert spent["sampling_seconds"] > 0


# ---- why


def explained(client: TestClient, name: str, **asked: str) -> dict[str, Any]:
    answer = client.get(f"/v1/datasets/{name}@latest/explain", params=asked)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def test_every_prompt_is_explained_as_the_dataset_has_it(sampled: TestClient) -> None:
    recipe = {"pairs": {"kind": "all_right_with_wrong"}, "per_prompt": 2, "test_share": 0.3}
    frozen = freeze(sampled, "d", **recipe)
    held: list[tuple[str, int, int]] = []
    left_out: list[str] = []

    for prompt in sampled.get("/v1/prompts?set=s&limit=100").json()["items"]:
        told = explained(sampled, "d", prompt_id=prompt["id"])
        assert [visit["visit"] for visit in told["visits"]] == [0, 1]
        for visit in told["visits"]:
            held += [(row["group_id"], row["chosen_index"], row["rejected_index"]) for row in visit["rows"]]
            left_out += [one["reason"] for one in visit["left_out"]]
            assert any("rewards" in step for step in visit["steps"])

    manifest = frozen["manifest"]
    assert len(held) == len(set(held)) == manifest["rows"]
    assert len(left_out) == sum(manifest["dropped"].values()) + sum(manifest["cut"].values())
    assert left_out.count("per_prompt") == manifest["cut"]["per_prompt"]


def test_a_group_is_explained_down_to_the_draw(sampled: TestClient) -> None:
    recipe = {"down_sampling": {"kind": "max_variance", "keep": 2}, "pairs": {"kind": "all_right_with_wrong"}}
    freeze(sampled, "d", **recipe, max_pairs=1)
    [row] = sampled.get("/v1/datasets/d@1/rows").json()["rows"]

    told = explained(sampled, "d", group_id=row["row"]["group_id"])

    [visit] = [visit for visit in told["visits"] if visit["group_id"] == row["row"]["group_id"]]
    story = " | ".join(visit["steps"])
    assert "4 of 4 rollouts are let in" in story
    assert "max_variance keeps #" in story
    assert f"#{row['row']['chosen_index']} with #{row['row']['rejected_index']}" in story
    assert "split drew 0." in story
    assert visit["reason"] == "every prompt is sampled"


@pytest.mark.parametrize("shape", ["pairs", "labelled", "right", "prompts", "groups"])
def test_rows_of_every_shape_are_explained(shape: str, sampled: TestClient) -> None:
    freeze(sampled, shape=shape)

    for prompt in sampled.get("/v1/prompts?set=s&limit=100").json()["items"]:
        for visit in explained(sampled, "d", prompt_id=prompt["id"])["visits"]:
            assert visit["rows"] or visit["left_out"]


def test_what_was_left_out_is_a_file_like_the_others(sampled: TestClient) -> None:
    frozen = freeze(sampled, "d", max_pairs=1)

    body = sampled.get(frozen["urls"]["left_out.parquet"]).content
    reasons = pl.read_parquet(io.BytesIO(body)).group_by("reason").len().rows()

    manifest = frozen["manifest"]
    assert dict(reasons) == manifest["dropped"] | manifest["cut"]


def test_a_group_that_came_later_is_said_to_have(sampled: TestClient) -> None:
    freeze(sampled)
    sample(sampled, passes=1)
    prompt = sampled.get("/v1/prompts?set=s&limit=1").json()["items"][0]

    *_, last = explained(sampled, "d", prompt_id=prompt["id"])["visits"]

    assert last["steps"] == ["sampled after the dataset was frozen"]


@pytest.mark.parametrize("asked", [{}, {"prompt_id": "p", "group_id": "g"}])
def test_exactly_one_thing_is_explained(asked: dict[str, str], sampled: TestClient) -> None:
    freeze(sampled)

    assert sampled.get("/v1/datasets/d@1/explain", params=asked).json()["code"] == "explain_what"


@pytest.mark.parametrize("asked", [{"prompt_id": "p_none"}, {"group_id": "g_none"}])
def test_nothing_is_told_of_what_is_not_there(asked: dict[str, str], sampled: TestClient) -> None:
    freeze(sampled)

    assert sampled.get("/v1/datasets/d@1/explain", params=asked).status_code == 404


def said(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


@pytest.mark.parametrize("shape", list(Shape))
def test_a_conversational_row_says_what_the_standard_one_says(shape: Shape, sampled: TestClient) -> None:
    standard = rows(sampled, shape=shape, seed=1)
    conversational = rows(sampled, shape=shape, format="conversational")

    assert len(standard) == len(conversational)
    for texts, messages in zip(standard, conversational, strict=True):
        assert messages["prompt"] == said("user", texts["prompt"])
        for side in {"chosen", "rejected", "completion"} & texts.keys():
            assert messages[side] == said("assistant", texts[side])
        for side in {"completions"} & texts.keys():
            assert messages[side] == [said("assistant", text) for text in texts[side]]
        others = texts.keys() - {"prompt", "chosen", "rejected", "completion", "completions"}
        assert {name: messages[name] for name in others} == {name: texts[name] for name in others}
        assert shape in {Shape.PROMPTS, Shape.GROUPS} or is_conversational(messages)


@pytest.mark.parametrize("shape", list(Shape))
def test_a_conversational_dataset_is_described_and_read_like_any_other(shape: Shape, sampled: TestClient) -> None:
    frozen = freeze(sampled, shape=shape, format="conversational", test_share=0.3)

    page = sampled.get("/v1/datasets/d@1/rows?length=2").json()
    lines = sampled.get(frozen["urls"]["train.jsonl"]).text.splitlines()
    arrow = pa.ipc.open_stream(sampled.get("/v1/datasets/d@1/train.arrow").content).read_all().to_pylist()
    told = {one["column_name"]: one for one in sampled.get("/v1/datasets/d@1/statistics").json()["statistics"]}
    [records, _] = sampled.get("/v1/datasets/d@1/croissant").json()["recordSet"]

    file = pq.read_schema(io.BytesIO(sampled.get(frozen["urls"]["train.parquet"]).content))
    features = {feature["name"]: feature["type"] for feature in page["features"]}
    assert features == datasets.Features.from_arrow_schema(file).to_dict()
    assert [row["row"] for row in page["rows"]] == arrow[:2] == list(map(json.loads, lines[:2]))
    assert told["prompt"]["column_type"] == "list"
    fields = {field["name"]: field for field in records["field"]}
    assert [part["name"] for part in fields["prompt"]["subField"]] == ["role", "content"]


def test_a_prompt_that_came_as_messages_leaves_as_the_same_messages(client: TestClient) -> None:
    asked = [*said("system", "Be brief."), *said("user", "1 + 1?")]
    results = [
        {"prompt": asked, "completion": said("assistant", text), "answer": "2", "reward": reward}
        for text, reward in (("2", 1.0), ("3", 0.0))
    ]
    assert client.post("/v1/rollouts/import?run=r&format=prime-rl", json=results).status_code == 201

    [row] = rows(client, format="conversational")
    [text] = rows(client, seed=2)

    assert (row["prompt"], row["chosen"], row["rejected"]) == (asked, said("assistant", "2"), said("assistant", "3"))
    assert (text["prompt"], text["chosen"]) == ("system: Be brief.\n\nuser: 1 + 1?", "2")


@pytest.mark.parametrize("format", list(TextFormat))
def test_a_split_of_several_files_is_read_like_one_of_a_single_file(
    format: TextFormat, sampled: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"format": format, "pairs": {"kind": "all_right_with_wrong"}, "test_share": 0.3}
    whole = freeze(sampled, "whole", **recipe)
    monkeypatch.setattr(shapes, "ROWS_PER_PART", 7)
    monkeypatch.setattr(freezing, "SHARD_BYTES", 1)
    parts = freeze(sampled, "parts", **recipe, max_pairs=10**6)

    names = sorted(name for name in parts["urls"] if name.startswith("train-"))
    count = len(names) // 2
    assert count > 2
    assert names == sorted(f"train-{i:05}-of-{count:05}.{k}" for i in range(count) for k in ("parquet", "jsonl"))

    def train(frozen: dict[str, Any], kind: str) -> list[bytes]:
        return [
            sampled.get(url).content for name, url in sorted(frozen["urls"].items()) if re.match(f"train.*{kind}", name)
        ]

    def same(path: str, **query: Any) -> Any:
        one, other = (sampled.get(f"/v1/datasets/{name}@1/{path}", params=query) for name in ("whole", "parts"))
        assert one.status_code == other.status_code == 200
        return one, other

    [single], shards = train(whole, "jsonl"), train(parts, "jsonl")
    assert sorted(b"".join(shards).splitlines()) == sorted(single.splitlines())
    read = [pl.read_parquet(io.BytesIO(shard)) for shard in train(parts, "parquet")]
    assert pl.concat(read).rows() == pa_rows(sampled.get("/v1/datasets/parts@1/train.arrow").content)
    one, other = same("rows", split="train", length=100)
    assert one.json()["num_rows_total"] == other.json()["num_rows_total"] == sum(map(len, read))
    one, other = same("statistics", split="train")
    assert one.json()["num_examples"] == other.json()["num_examples"]
    one, other = same("informativeness")
    assert one.json() == other.json()
    assert sampled.get("/v1/datasets/parts@1/diff?other=whole@1").json()["rows"]["only_one"] == 0
    prompt_id = read[0]["prompt_id"][0]
    one, other = same("explain", prompt_id=prompt_id)
    assert [len(visit["rows"]) for visit in one.json()["visits"] if visit["group_id"]] == [
        len(visit["rows"]) for visit in other.json()["visits"] if visit["group_id"]
    ]
    assert sampled.get("/v1/datasets/parts@1/train.parquet").status_code == 404
    records = sampled.get("/v1/datasets/parts@1/croissant").json()["recordSet"]
    assert {f"{one['name']}.parquet" for one in records} == {n for n in parts["urls"] if re.match("t.*parquet", n)}
    assert sampled.post("/v1/store/compact").status_code == 200
    question = "select dataset, count(*), count(distinct chosen), min(prompt) from pairs group by 1 order by 1"
    sizes = "select train_rows, test_rows from datasets order by name"
    [first, second] = sampled.post("/v1/sql", json={"sql": sizes}).json()["rows"]
    assert first == second
    assert first[0] == sum(map(len, read))
    [(_, *first), (_, *second)] = sampled.post("/v1/sql", json={"sql": question}).json()["rows"]
    assert first == second


def pa_rows(stream: bytes) -> list[tuple[Any, ...]]:
    return pl.DataFrame(pa.ipc.open_stream(stream).read_all()).rows()
