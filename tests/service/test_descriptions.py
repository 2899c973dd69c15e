"""Datasets described for the Hub, for the viewer, for machines and against each other."""

import io
import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import yaml
from fastapi.testclient import TestClient

from service.statistics import statistics
from tests.service.steps import freeze, prepare, sample

SHAPES = ["pairs", "labelled", "right", "prompts", "groups"]


@pytest.fixture
def sampled(client: TestClient) -> TestClient:
    prepare(client, retain="all", selector={"kind": "all"})
    sample(client, passes=2)
    return client


def described(client: TestClient, what: str, **query: Any) -> Any:
    answer = client.get(f"/v1/datasets/d@latest/{what}", params=query)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("shape", SHAPES)
def test_the_arrow_stream_holds_what_the_parquet_file_holds(shape: str, sampled: TestClient) -> None:
    url = freeze(sampled, shape=shape)["urls"]["train.parquet"]

    answer = described(sampled, "train.arrow")

    with pa.ipc.open_stream(io.BytesIO(answer.content)) as reader:
        assert pl.DataFrame(reader.read_all()).equals(pl.read_parquet(io.BytesIO(sampled.get(url).content)))
    etag = {"if-none-match": answer.headers["etag"]}
    assert sampled.get("/v1/datasets/d@1/train.arrow", headers=etag).status_code == 304
    assert sampled.get("/v1/datasets/d@1/nothing.arrow").status_code == 404


@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_are_those_of_the_rows(shape: str, sampled: TestClient) -> None:
    url = freeze(sampled, shape=shape)["urls"]["train.parquet"]
    frame = pl.read_parquet(io.BytesIO(sampled.get(url).content))

    told = described(sampled, "statistics").json()

    assert told["num_examples"] == len(frame)
    columns = {column["column_name"]: column for column in told["statistics"]}
    assert list(columns) == frame.columns
    lengths = frame["prompt"].str.len_chars()
    prompt = columns["prompt"]["column_statistics"]
    if columns["prompt"]["column_type"] == "string_text":
        assert (prompt["min"], prompt["max"], prompt["mean"]) == (lengths.min(), lengths.max(), lengths.mean())
        assert sum(prompt["histogram"]["hist"]) == len(frame)
    else:
        assert sum(prompt["frequencies"].values()) == len(frame)
    if shape == "pairs":
        assert columns["margin"]["column_statistics"]["histogram"] == {"hist": [len(frame)], "bin_edges": [1.0, 1.0]}
    if shape == "labelled":
        assert columns["label"]["column_type"] == "bool"
        assert sum(columns["label"]["column_statistics"]["frequencies"].values()) == len(frame)


def test_values_that_differ_by_rounding_only_have_one_bin(tmp_path: Path) -> None:
    pl.DataFrame({"margin": [0.7 - 0.4, 0.3], "none": [None, None], "n": [1, 5]}).write_parquet(tmp_path / "x.parquet")

    margin, none, n = (c["column_statistics"] for c in statistics(tmp_path / "x.parquet")["statistics"])

    assert margin["histogram"]["hist"] == [2]
    assert none["nan_proportion"] == 1.0
    assert sum(n["histogram"]["hist"]) == 2


@pytest.mark.parametrize("shape", SHAPES)
def test_the_card_says_what_is_in_it_and_how_it_was_made(shape: str, sampled: TestClient) -> None:
    manifest = freeze(sampled, shape=shape, test_share=0.3)["manifest"]

    _, head, body = described(sampled, "card").text.split("---\n", 2)

    [config] = yaml.safe_load(head)["configs"]
    assert [file["path"] for file in config["data_files"]] == [["train.parquet"], ["test.parquet"]]
    recipe = body.split("```json\n")[1].split("```")[0]
    assert json.loads(recipe) == manifest["recipe"]
    assert f"| rows | {manifest['rows']} |" in body
    assert f"| groups | {manifest['groups']} |" in body


@pytest.mark.parametrize("shape", SHAPES)
def test_the_croissant_names_every_file_and_column(shape: str, sampled: TestClient) -> None:
    frozen = freeze(sampled, shape=shape)

    told = described(sampled, "croissant").json()

    [file] = told["distribution"]
    assert sampled.get(file["contentUrl"]).status_code == 200
    assert file["sha256"] == frozen["manifest"]["files"]["train.parquet"]["sha256"]
    frame = pl.read_parquet(io.BytesIO(sampled.get(frozen["urls"]["train.parquet"]).content))
    assert [field["name"] for field in told["recordSet"][0]["field"]] == frame.columns


def test_two_datasets_differ_by_rows_prompts_and_recipe(sampled: TestClient) -> None:
    freeze(sampled, "every", pairs={"kind": "all_right_with_wrong"})
    few = freeze(sampled, "d", pairs={"kind": "all_right_with_wrong"}, per_prompt=1)

    told = described(sampled, "diff", other="every@1").json()

    assert told["recipe"] == {"per_prompt": [1, None]}
    assert (told["rows"]["both"], told["rows"]["only_one"]) == (few["manifest"]["rows"], 0)
    assert told["rows"]["only_other"] == few["manifest"]["cut"]["per_prompt"]
    assert told["prompts"]["only_one"] == told["prompts"]["only_other"] == 0
    assert len(told["examples"]["only_other"]) == min(10, told["rows"]["only_other"])


def test_a_dataset_does_not_differ_from_itself(sampled: TestClient) -> None:
    freeze(sampled, shape="groups")

    told = described(sampled, "diff", other="d@latest").json()

    assert told["recipe"] == {}
    assert (told["rows"]["only_one"], told["rows"]["only_other"]) == (0, 0)


@pytest.mark.parametrize(("other", "status"), [("d", 422), ("d@x", 422), ("nobody@1", 404), ("right@1", 422)])
def test_what_cannot_be_compared_is_refused(other: str, status: int, sampled: TestClient) -> None:
    freeze(sampled, "d")
    freeze(sampled, "right", shape="right")

    assert sampled.get("/v1/datasets/d@1/diff", params={"other": other}).status_code == status
