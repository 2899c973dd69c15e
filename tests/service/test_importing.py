"""Recorded rollouts: mapped, verified anew, stored once."""

import gzip
import io
import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from curation.foreign import FieldMapping
from curation.recorded import GroupIn
from tests.service.conftest import OpenService
from tests.service.steps import finish

GSM8K = Path(__file__).parents[3] / "shared/data/rollouts_gsm8k_4x/example_model_solutions.jsonl.gz"
GSM8K_MAPPING = FieldMapping(
    prompt="question",
    reference="ground_truth",
    reference_pattern=r"A: (.+)",
    rollouts="*",
    text="solution",
    label="is_correct",
)

ROW = {
    "prompt": "What is 9 * 2?",
    "reference": "18",
    "rollouts": [{"text": "9 * 2 = 18\nA: 18", "reward": 1}, {"text": "A: 19", "reward": 0}, {"text": "A: 18"}],
}


def post(client: TestClient, rows: list[Any], run: str = "recorded") -> Any:
    return client.post(f"/v1/rollouts/import?run={run}", json=rows)


def test_recorded_rollouts_become_a_group_with_our_verdicts_beside_their_labels(client: TestClient) -> None:
    imported = post(client, [ROW]).json()

    [group] = client.get("/v1/groups?run=recorded").json()["items"]
    members = client.get(f"/v1/groups/{group['id']}").json()["members"]
    assert [(m["reward"], m["recorded_reward"]) for m in members] == [(1.0, 1.0), (0.0, 0.0), (1.0, None)]
    assert (imported["labelled"], imported["agreeing"]) == (2, 2)


def test_importing_again_adds_nothing(client: TestClient) -> None:
    post(client, [ROW, ROW])

    again = post(client, [ROW]).json()

    assert (again["groups"], again["existing"]) == (0, 1)
    assert len(client.get("/v1/groups?run=recorded").json()["items"]) == 1


def test_the_same_file_imported_twice_at_once_is_stored_once(client: TestClient) -> None:
    rows = [ROW | {"prompt": f"What is 9 * 2, asked {n} times?"} for n in range(20)]

    with ThreadPoolExecutor(3) as threads:
        imported = list(threads.map(lambda _: post(client, rows).json(), range(3)))

    assert sum(one["groups"] for one in imported) == 20
    assert sum(one["existing"] for one in imported) == 40
    assert len(client.get("/v1/groups?run=recorded&limit=100").json()["items"]) == 20


def test_other_rollouts_of_the_same_prompt_are_its_next_visit(client: TestClient) -> None:
    post(client, [ROW])
    post(client, [ROW | {"rollouts": [{"text": "A: 20"}]}])

    groups = client.get("/v1/groups?run=recorded").json()["items"]

    assert [group["visit"] for group in groups] == [0, 1]


@pytest.mark.parametrize(
    "bad",
    [
        ROW | {"rollouts": []},
        ROW | {"rollouts": [{"text": "18", "reward": 7}]},
        ROW | {"rollouts": [{"txt": "18"}]},
        ROW | {"reference": ""},
        ROW | {"extra": 1},
    ],
    ids=["no rollouts", "a label over 1", "a misspelt field", "no reference", "an unknown field"],
)
def test_one_bad_row_and_nothing_is_imported(client: TestClient, bad: dict[str, Any]) -> None:
    answer = post(client, [ROW, bad])

    assert (answer.status_code, answer.json()["code"]) == (422, "rows_rejected")
    assert client.get("/v1/groups").json()["items"] == []
    assert client.get("/v1/runs").json() == []


def test_nothing_is_sampled_for_a_run_of_recorded_rollouts(client: TestClient) -> None:
    post(client, [ROW])

    answer = client.post("/v1/runs/recorded/rollouts", json={"passes": 1})

    assert (answer.status_code, answer.json()["code"]) == (422, "imported_run")


def test_an_import_into_a_sampling_run_is_refused(client: TestClient) -> None:
    client.post("/v1/runs", json={"name": "r", "policy": "policy", "prompt_set": "s"})

    answer = post(client, [ROW], run="r")

    assert (answer.status_code, answer.json()["code"]) == (409, "run_differs")
    assert client.get("/v1/groups").json()["items"] == []


def test_pairs_are_frozen_from_recorded_rollouts(client: TestClient) -> None:
    post(client, [ROW])

    frozen = client.post("/v1/datasets", json={"name": "d", "recipe": {"runs": ["recorded"]}}).json()

    assert frozen["manifest"]["rows"] == 1


def test_a_mapping_takes_every_object_with_the_text() -> None:
    row = {
        "q": "1 + 1?",
        "gold": "so\nA: 2",
        "model_b": {"solution": "2", "ok": True},
        "model_a": {"solution": "3", "ok": False},
        "other": {"x": 1},
    }
    mapping = FieldMapping(
        prompt="q", reference="gold", reference_pattern="A: (.+)", rollouts="*", text="solution", label="ok"
    )

    mapped = mapping.apply(row)

    assert (mapped.prompt, mapped.reference) == ("1 + 1?", "2")
    assert [(r.text, r.reward) for r in mapped.rollouts] == [("2", 1.0), ("3", 0.0)]


def test_a_mapping_takes_a_list_of_strings_with_labels_beside_it() -> None:
    row = {"task": {"question": "1 + 1?"}, "gt": 2, "code": ["2", "3"], "score": [True, False]}
    mapping = FieldMapping(prompt="task.question", reference="gt", rollouts="code", label="score")

    mapped = mapping.apply(row)

    assert [(r.text, r.reward) for r in mapped.rollouts] == [("2", 1.0), ("3", 0.0)]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"prompt": "nope"}, "nope"),
        ({"reference_pattern": "Z: (.+)"}, "no match"),
        ({"rollouts": "q"}, "a list of rollouts"),
    ],
)
def test_a_mapping_that_does_not_fit_names_the_field(change: dict[str, str], complaint: str) -> None:
    mapping = FieldMapping(prompt="q", reference="gold", rollouts="code").model_copy(update=change)

    with pytest.raises(ValueError, match=complaint):
        mapping.apply({"q": "1 + 1?", "gold": "2", "code": ["2"]})


@pytest.mark.skipif(not GSM8K.exists(), reason="the recorded GSM8K solutions are not on this machine")
def test_our_verdicts_on_recorded_gsm8k_solutions_agree_with_their_labels(client: TestClient) -> None:
    with gzip.open(GSM8K, "rt") as lines:
        rows: list[GroupIn] = [GSM8K_MAPPING.apply(json.loads(line)) for line in lines][:200]

    imported = post(client, [row.model_dump(mode="json") for row in rows]).json()

    assert imported["rollouts"] == imported["labelled"] == 800
    assert imported["agreeing"] >= 799


def test_the_order_in_which_groups_arrive_changes_no_byte_of_a_dataset(open_service: OpenService) -> None:
    rows = [
        {
            "prompt": f"{n} + {n}?",
            "reference": str(2 * n),
            "verifier": "numeric",
            "rollouts": [{"text": str(2 * n + off)} for off in (0, n % 2, 1)],
        }
        for n in range(40)
    ]
    recipe = {"runs": ["r"], "pairs": {"kind": "one_random_pair"}, "test_share": 0.3, "max_pairs": 25, "per_prompt": 1}
    hashes = []
    for data, arrived in (("one", rows), ("other", rows[::-1])):
        with open_service(data=data) as client:
            for row in arrived:
                assert client.post("/v1/rollouts/import?run=r", json=[row]).status_code == 201
            frozen = client.post("/v1/datasets", json={"name": "d", "recipe": recipe}).json()
            hashes.append({file: said["sha256"] for file, said in frozen["manifest"]["files"].items()})

    assert hashes[0] == hashes[1]
    assert {"train.parquet", "test.parquet", "left_out.parquet"} <= hashes[0].keys()


OF_VERL = [
    {"input": f"{n} + {n}?", "output": f"A: {2 * n + off}", "gts": str(2 * n), "score": float(off == 0), "step": 3}
    for off in (0, 1)
    for n in range(5)
]


def test_labels_of_another_system_are_taken_until_somebody_asks_a_verifier(client: TestClient) -> None:
    imported = client.post("/v1/rollouts/import?run=r&format=verl", json=OF_VERL).json()
    rescored = finish(client, client.post("/v1/runs/r/rescore", json={}).json())

    assert (imported["groups"], imported["kinds"], imported["labelled"]) == (5, {"informative": 5}, 0)
    [group, *_] = client.get("/v1/groups?run=r").json()["items"]
    members = client.get(f"/v1/groups/{group['id']}").json()["members"]
    assert (group["policy_version"], [m["verifier"] for m in members]) == (3, ["recorded@1"] * 2)
    assert rescored["result"]["groups"] == 0
    judged = finish(client, client.post("/v1/runs/r/rescore", json={"verifier": "math"}).json())
    assert judged["result"]["groups"] == 5
    assert client.post("/v1/prompts", json=[{"prompt": "p", "verifier": "recorded"}]).status_code == 422
    client.post("/v1/runs", json={"name": "again", "policy": "policy", "prompt_set": "r"})
    sampled = client.post("/v1/runs/again/rollouts", json={"passes": 1})
    assert (sampled.status_code, sampled.json()["code"]) == (422, "recorded_prompts")


def test_a_verifier_that_is_named_judges_what_another_system_wrote(client: TestClient) -> None:
    wrong = [row | {"score": 1.0} for row in OF_VERL]
    imported = client.post("/v1/rollouts/import?run=r&format=verl&verifier=math", json=wrong).json()

    assert (imported["labelled"], imported["agreeing"]) == (10, 5)
    assert client.post("/v1/rollouts/import?run=s&format=verl&lowest=1", json=OF_VERL).status_code == 422
    assert client.post("/v1/rollouts/import?run=s&format=slime", json=OF_VERL).status_code == 422


def test_the_good_rows_are_kept_where_that_is_asked_for(client: TestClient) -> None:
    unreadable = ROW | {"prompt": "Which?", "reference": ""}
    unknown = ROW | {"verifier": "nope"}
    bad = ["{", json.dumps(ROW | {"rollouts": []}), "NaN", json.dumps(unreadable), json.dumps(unknown)]
    body = "\n".join([json.dumps(ROW), *bad])
    headers = {"content-type": "application/x-ndjson"}

    refused = client.post("/v1/rollouts/import?run=r", content=body, headers=headers)
    kept = client.post("/v1/rollouts/import?run=r&keep_good=true", content=body, headers=headers).json()
    nothing = client.post("/v1/rollouts/import?run=s&keep_good=true", content="{\n{", headers=headers)

    assert refused.json()["code"] == "rows_rejected"
    assert (kept["groups"], kept["rows_rejected"]) == (1, 5)
    assert [one["row"] for one in kept["rejected"]] == [1, 2, 3, 4, 5]
    assert (nothing.status_code, nothing.json()["groups"], nothing.json()["rows_rejected"]) == (201, 0, 2)
    assert [run["name"] for run in client.get("/v1/runs").json()] == ["r"]


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_body_may_be_packed_but_not_without_measure(open_service: OpenService, coding: str) -> None:
    def send(packed: bytes) -> Any:
        headers = {"content-type": "application/json", "content-encoding": coding}
        return client.post("/v1/rollouts/import?run=r", content=packed, headers=headers)

    def pack(content: bytes) -> bytes:
        packed: bytes = gzip.compress(content) if coding == "gzip" else pa.compress(content, "zstd", asbytes=True)
        return packed

    with open_service(body_mib=1) as client:
        whole = pack(json.dumps([ROW]).encode())
        answers = [send(body) for body in (whole, whole[:-9], pack(b" " * 50_000_000), b"no", pack(b""))]
        other = client.post("/v1/rollouts/import?run=r", content=whole, headers={"content-encoding": "br"})

    assert [answer.status_code for answer in answers] == [201, 422, 413, 422, 422]
    assert answers[0].json()["groups"] == 1
    assert (other.status_code, other.json()["code"]) == (422, "unknown_content_encoding")


@pytest.mark.parametrize(
    "bad",
    [
        {"rollouts": [{"text": "A: 18", "token_ids": [2**40], "logprobs": [-1.0]}]},
        {"rollouts": [{"text": "A: 18", "token_ids": [1, 2], "logprobs": [1e308, 1e308]}]},
        {"rollouts": [{"text": "A: 18", "token_ids": [True]}]},
        {"rollouts": "[" * 100_000},
        {"metadata": "[" * 100_000},
        {"metadata": json.loads('{"a":' * 700 + "1" + "}" * 700)},
        {"a\ud800": 1},
        {"policy_version": -1},
    ],
    ids=[
        "a huge token",
        "a huge sum",
        "a truth",
        "deep text",
        "deep metadata",
        "deep objects",
        "half a letter",
        "minus 1",
    ],
)
def test_a_hostile_row_is_refused_and_told_of(client: TestClient, bad: dict[str, Any]) -> None:
    body = json.dumps([ROW, ROW | bad])
    refused = client.post("/v1/rollouts/import?run=r", content=body, headers={"content-type": "application/json"})

    assert (refused.status_code, [one["row"] for one in refused.json()["rejected"]]) == (422, [1])
    assert client.get("/v1/runs").json() == []


def test_a_damaged_parquet_body_is_refused_and_harms_nobody(client: TestClient) -> None:
    sink = io.BytesIO()
    rows = [ROW | {"prompt": f"{n}?", "metadata": {"n": n}} for n in range(20)]
    pl.DataFrame(rows).write_parquet(sink)
    whole, rng = sink.getvalue(), random.Random(0)
    headers = {"content-type": "application/vnd.apache.parquet"}

    for _ in range(200):
        body = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        answer = client.post("/v1/rollouts/import?run=damaged", content=bytes(body), headers=headers)
        assert answer.status_code in (201, 413, 422), answer.text
    stored = client.post("/v1/rollouts/import?run=whole", content=whole, headers=headers)
    assert (stored.status_code, stored.json()["groups"]) == (201, 20)


def test_a_small_parquet_body_with_endless_rows_is_too_large(open_service: OpenService) -> None:
    table = pa.table({"prompt": pa.array(["x" * 1000] * 100_000).dictionary_encode()})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    with open_service(body_mib=4) as client:
        headers = {"content-type": "application/vnd.apache.parquet"}
        answer = client.post("/v1/rollouts/import?run=r", content=sink.getvalue(), headers=headers)

    assert len(sink.getvalue()) < 100_000
    assert answer.status_code == 413


def test_every_row_of_a_group_that_cannot_be_judged_is_told(client: TestClient) -> None:
    rows = [row | {"gts": None} if row["input"] == "1 + 1?" else row for row in OF_VERL]

    kept = client.post("/v1/rollouts/import?run=r&format=verl&verifier=math&keep_good=true", json=rows).json()

    assert (kept["groups"], [one["row"] for one in kept["rejected"]]) == (4, [1, 6])


def test_rows_in_native_form_are_not_mapped(client: TestClient) -> None:
    for query in ("verifier=math", "label=x", "lowest=-1", "lowest=2&highest=1"):
        answer = client.post(f"/v1/rollouts/import?run=r&{query}", json=[ROW])
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_mapping")
