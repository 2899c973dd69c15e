"""Bad input is a clear error, and changes nothing."""

import base64
import io
import json
from typing import Any
from urllib.parse import quote

import polars as pl
import pytest
from fastapi.testclient import TestClient

from service.api import bodies
from tests.service.conftest import OpenService
from tests.service.steps import GRESO_RUN, finish, freeze, prepare, sample

GOOD = {"prompt": "2 + 2 =", "reference": "4", "verifier": "numeric"}


def everything(client: TestClient) -> dict[str, Any]:
    """All that is stored, as far as a user can see."""
    lists = ("prompts", "policies", "runs", "jobs", "groups", "datasets")
    return {name: client.get(f"/v1/{name}").json() for name in lists}


BAD_PROMPTS = {
    "an unknown field": GOOD | {"anwser": "4"},
    "an empty prompt": GOOD | {"prompt": ""},
    "a blank prompt": GOOD | {"prompt": " \n"},
    "a missing reference": {"prompt": "2 + 2 =", "verifier": "numeric"},
    "an empty reference": GOOD | {"reference": ""},
    "a number as prompt": GOOD | {"prompt": 4},
    "NaN in the metadata": GOOD | {"metadata": {"x": float("nan")}},
    "half a character in the reference": GOOD | {"reference": "\ud800", "verifier": "exact"},
    "half a character as field": GOOD | {"\ud800": 1},
    "a lone surrogate in the metadata": GOOD | {"metadata": {"x": "\ud800"}},
    "metadata that is no object": GOOD | {"metadata": [1]},
    "a list as row": [1, 2],
    "null as row": None,
}


@pytest.mark.parametrize("bad", BAD_PROMPTS.values(), ids=BAD_PROMPTS.keys())
def test_one_bad_prompt_among_good_ones_is_named_and_nothing_is_stored(client: TestClient, bad: Any) -> None:
    before = everything(client)

    answer = client.post("/v1/prompts", content=json.dumps([GOOD, bad]), headers={"content-type": "application/json"})

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "rows_rejected"
    assert [row["row"] for row in answer.json()["rejected"]] == [1]
    assert everything(client) == before


def test_an_unknown_verifier_is_refused_with_the_known_ones(client: TestClient) -> None:
    answer = client.post("/v1/prompts", json=[GOOD | {"verifier": "vibes"}])

    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_verifier")
    assert "math" in answer.json()["detail"]


BAD_BODIES = {
    "no JSON": ("application/json", b"[{", "not_json"),
    "no list": ("application/json", b'{"prompt": "x"}', "not_a_list"),
    "an empty list": ("application/json", b"[]", "no_rows"),
    "an empty file": ("application/x-ndjson", b"\n\n", "no_rows"),
    "a torn line": ("application/x-ndjson", b'{"prompt": "x"', "rows_rejected"),
    "invalid UTF-8": ("application/x-ndjson", b'{"prompt": "\xff"}', "rows_rejected"),
    "a lone surrogate": ("application/json", b'[{"prompt": "\\ud800", "reference": "4"}]', "rows_rejected"),
    "an unknown type": ("text/csv", b"prompt,reference", "unknown_content_type"),
    "no Parquet": ("application/vnd.apache.parquet", b"PAR1nonsense", "not_parquet"),
    "a deeply nested line": ("application/x-ndjson", b"[" * 100_000, "rows_rejected"),
    "deep nesting": ("application/json", b"[" * 100_000, "not_json"),
}


@pytest.mark.parametrize(("kind", "body", "code"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_an_unreadable_body_is_refused(client: TestClient, kind: str, body: bytes, code: str) -> None:
    before = everything(client)

    answer = client.post("/v1/prompts", content=body, headers={"content-type": kind})

    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert everything(client) == before


def parquet(**columns: list[Any]) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


def test_parquet_with_a_wrong_schema_is_refused_row_by_row(client: TestClient) -> None:
    body = parquet(question=["2 + 2 ="], answer=[4])

    answer = client.post("/v1/prompts", content=body, headers={"content-type": "application/vnd.apache.parquet"})

    assert answer.status_code == 422
    assert "question" in answer.json()["detail"] or "prompt" in answer.json()["detail"]
    assert client.get("/v1/prompts").json()["items"] == []


def test_parquet_and_ndjson_say_the_same_as_json(client: TestClient) -> None:
    rows = [GOOD, GOOD | {"prompt": "3 + 1 ="}]
    body = parquet(prompt=["2 + 2 =", "3 + 1 ="], reference=["4", "4"], verifier=["numeric", "numeric"])
    ndjson = "\n".join(json.dumps(row) for row in rows)

    first = client.post("/v1/prompts", json=rows).json()
    second = client.post("/v1/prompts", content=body, headers={"content-type": "application/vnd.apache.parquet"}).json()
    third = client.post("/v1/prompts", content=ndjson, headers={"content-type": "application/x-ndjson"}).json()

    assert (first["added"], second["added"], third["added"]) == (2, 0, 0)
    assert (second["existing"], third["existing"]) == (2, 2)


def test_duplicated_prompts_are_counted_not_doubled(client: TestClient) -> None:
    answer = client.post("/v1/prompts?set=s", json=[GOOD, GOOD, GOOD]).json()

    assert (answer["added"], answer["existing"]) == (1, 2)
    assert len(client.get("/v1/prompts?set=s").json()["items"]) == 1


def test_a_body_over_the_limit_is_refused(open_service: OpenService) -> None:
    with open_service(body_mib=1) as client:
        answer = client.post("/v1/prompts", json=[GOOD | {"prompt": "x" * (2 << 20)}])

        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("kind", "body"),
    [("application/x-ndjson", b"1\n" * 101), ("application/json", json.dumps([GOOD] * 101).encode())],
)
def test_a_body_of_too_many_rows_is_refused_however_short_they_are(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, kind: str, body: bytes
) -> None:
    monkeypatch.setattr(bodies, "MOST_ROWS", 100)

    answer = client.post("/v1/prompts", content=body, headers={"content-type": kind})

    assert (answer.status_code, answer.json()["code"]) == (413, "too_many_rows")
    assert client.get("/v1/prompts").json()["items"] == []


def test_lines_may_end_as_on_windows(client: TestClient) -> None:
    rows = b"\r\n".join(json.dumps(GOOD | {"prompt": f"{n} + 0 ="}).encode() for n in range(3))

    answer = client.post("/v1/prompts", content=rows + b"\r\n", headers={"content-type": "application/x-ndjson"})

    assert answer.json()["added"] == 3


HUNDRED_THOUSAND = 100_000
BOUNDED: dict[str, tuple[str, Any]] = {
    "parameters": ("/v1/sql", {"sql": "select 1", "params": [[]] * HUNDRED_THOUSAND}),
    "named parameters": ("/v1/sql", {"sql": "select 1", "params": {f"p{n}": [] for n in range(HUNDRED_THOUSAND)}}),
    "fields": ("/v1/sql", {f"f{n}": 1 for n in range(HUNDRED_THOUSAND)}),
    "fields within": (
        "/v1/datasets",
        {"name": "d", "recipe": {"runs": ["r"]} | {f"f{n}": 1 for n in range(HUNDRED_THOUSAND)}},
    ),
    "runs": ("/v1/datasets", {"name": "d", "recipe": {"runs": [1] * HUNDRED_THOUSAND}}),
    "runs to inherit": ("/v1/runs", GRESO_RUN | {"inherit": {"runs": [1] * HUNDRED_THOUSAND}}),
    "prompts": ("/v1/runs/r/rollouts", {"prompts": [1] * HUNDRED_THOUSAND}),
    "prompts to judge": ("/v1/runs/r/rescore", {"where": {"prompts": [1] * HUNDRED_THOUSAND}}),
    "outcomes": ("/v1/runs/r/rescore", {"where": {"outcomes": [1] * HUNDRED_THOUSAND}}),
    "selectors": ("/v1/replay", {"run": "r", "selectors": [1] * HUNDRED_THOUSAND}),
    "fields of a row": ("/v1/prompts", [GOOD | {f"f{n}": 1 for n in range(HUNDRED_THOUSAND)}]),
}


@pytest.mark.parametrize(("path", "body"), BOUNDED.values(), ids=BOUNDED)
def test_what_is_wrong_a_hundred_thousand_times_is_told_in_few_words(client: TestClient, path: str, body: Any) -> None:
    """Each word would take the service a kilobyte and everybody else the time."""
    answer = client.post(path, json=body)

    assert answer.status_code == 422
    assert len(answer.text) < 2000


BAD_RUNS = {
    "n = 0": {"sampling": {"n": 0}},
    "a temperature below zero": {"sampling": {"temperature": -1}},
    "an unknown selector": {"selector": {"kind": "magic"}},
    "an unknown field": {"sede": 1},
    "a name with a path in it": {"name": "../r"},
    "no prompts in a round": {"batch": {"prompts": 0}},
    "explore at 1": {"selector": {"kind": "greso", "explore_easy": 1}},
}


@pytest.mark.parametrize("change", BAD_RUNS.values(), ids=BAD_RUNS.keys())
def test_a_senseless_run_is_refused(client: TestClient, change: dict[str, Any]) -> None:
    answer = client.post("/v1/runs", json=GRESO_RUN | change)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert client.get("/v1/runs").json() == []


NO_NAMES = {
    "nothing": "",
    "a way up": "../r",
    "a way down": "a/b",
    "a hidden file": ".r",
    "NUL": "r\0",
    "a new line": "r\n",
    "10 KB": "r" * 10_240,
    "a letter that looks like another": "\u0430dmin",
    "wide letters": "\uff52",
    "letters from right to left": "r\u202e",
    "a dash that is none": "r\u2010",
    "half a character": "r\ud800",
}


@pytest.mark.parametrize("name", NO_NAMES.values(), ids=NO_NAMES)
def test_what_is_no_name_is_refused_wherever_a_name_is_asked_for(client: TestClient, name: str) -> None:
    prepare(client)
    before = everything(client)
    asked: list[tuple[str, Any]] = [
        *(("/v1/runs", GRESO_RUN | {field: name}) for field in ("name", "policy", "prompt_set")),
        ("/v1/policies", {"name": name, "checkpoint": "/nowhere"}),
        ("/v1/datasets", {"name": name, "recipe": {"runs": ["r"]}}),
        ("/v1/runs/r/leases", {"groups": 1, "consumer": name}),
        *((f"{path}={quote(name, errors='surrogatepass')}", [GOOD]) for path in NAMED_IN_THE_QUERY),
    ]

    headers = {"content-type": "application/json"}
    answers = [client.post(path, content=json.dumps(body), headers=headers) for path, body in asked]

    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(422, "invalid_request")] * len(
        asked
    )
    assert everything(client) == before


NAMED_IN_THE_QUERY = ("/v1/prompts?set", "/v1/rollouts/import?run")


@pytest.mark.parametrize("name", [name for name in NO_NAMES.values() if name], ids=[key for key in NO_NAMES][1:])
def test_what_is_no_name_names_nothing(client: TestClient, name: str) -> None:
    told = quote(name, safe="", errors="surrogatepass")

    for path in ("/v1/runs/", "/v1/policies/", "/v1/datasets/", "/v1/jobs/", "/v1/groups/", "/v1/leases/"):
        answer = client.get(path + told)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), answer.text


def test_a_run_of_an_unknown_policy_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/runs", json=GRESO_RUN | {"policy": "nobody"})

    assert (answer.status_code, answer.json()["code"]) == (404, "policy_not_found")


def test_a_run_keeps_its_configuration(client: TestClient) -> None:
    prepare(client)

    same = client.post("/v1/runs", json=GRESO_RUN)
    changed = client.post("/v1/runs", json=GRESO_RUN | {"seed": 7})

    assert same.status_code == 200
    assert (changed.status_code, changed.json()["code"]) == (409, "run_differs")


BAD_REQUESTS = {
    "nothing asked for": ({}, "invalid_request"),
    "two things asked for": ({"groups": 1, "passes": 1}, "invalid_request"),
    "no groups": ({"groups": 0}, "invalid_request"),
    "a prompt twice": ({"prompts": ["p_1", "p_1"]}, "invalid_request"),
    "an unknown prompt": ({"prompts": ["p_1"]}, "prompt_not_found"),
    "an unknown budget": ({"groups": 1, "budget": {"dollars": 3}}, "invalid_request"),
}


@pytest.mark.parametrize(("request_body", "code"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_a_senseless_request_for_rollouts_makes_no_job(
    client: TestClient, request_body: dict[str, Any], code: str
) -> None:
    prepare(client)

    answer = client.post("/v1/runs/r/rollouts", json=request_body)

    assert answer.json()["code"] == code
    assert client.get("/v1/jobs").json() == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"sampling": {"n": 1}}, "group_too_small"),
        ({"sampling": {"n": 8, "temperature": 0}}, "greedy_group"),
        ({"prompt_set": "nothing-in-it"}, "empty_prompt_set"),
    ],
    ids=["n = 1", "greedy", "an empty prompt set"],
)
def test_informative_groups_that_cannot_exist_are_refused(
    client: TestClient, change: dict[str, Any], code: str
) -> None:
    prepare(client)
    client.post("/v1/runs", json=GRESO_RUN | {"name": "q"} | change)

    answer = client.post("/v1/runs/q/rollouts", json={"groups": 1})

    assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_pairs_of_a_run_that_samples_one_rollout_are_refused(client: TestClient) -> None:
    prepare(client)
    client.post("/v1/runs", json=GRESO_RUN | {"name": "q", "sampling": {"n": 1}, "retain": "all"})
    sample(client, "q", passes=1)

    answer = client.post("/v1/datasets", json={"name": "d", "recipe": {"runs": ["q"]}})

    assert (answer.status_code, answer.json()["code"]) == (422, "group_too_small")


def test_a_dataset_of_nothing_is_refused_with_the_reasons(client: TestClient) -> None:
    prepare(client)
    client.post("/v1/prompts?set=easy", json=[{"prompt": "easy 1", "reference": "4", "verifier": "numeric"}])
    client.post("/v1/runs", json=GRESO_RUN | {"name": "q", "prompt_set": "easy", "retain": "all"})
    sample(client, "q", passes=1)

    answer = client.post("/v1/datasets", json={"name": "d", "recipe": {"runs": ["q"]}})

    assert (answer.status_code, answer.json()["code"]) == (422, "no_rows")
    assert answer.json()["dropped"] == {"easy": 1}
    assert client.get("/v1/datasets").json() == []


BAD_RECIPES = {
    "no run": {"runs": []},
    "an unknown rule": {"runs": ["r"], "pairs": {"kind": "vibes"}},
    "a margin over 1": {"runs": ["r"], "pairs": {"kind": "best_with_worst", "margin": 2}},
    "keep 1": {"runs": ["r"], "down_sampling": {"kind": "max_variance", "keep": 1}},
    "a misspelt field": {"runs": ["r"], "sead": 1},
}


@pytest.mark.parametrize("recipe", BAD_RECIPES.values(), ids=BAD_RECIPES.keys())
def test_a_senseless_recipe_is_refused(client: TestClient, recipe: dict[str, Any]) -> None:
    answer = client.post("/v1/datasets", json={"name": "d", "recipe": recipe})

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


NO_CHECKPOINTS = {
    "missing": "/nowhere",
    "empty": "",
    "NUL": "a\0b",
    "long": "x" * 5000,
    "nobody's home": "~nobody-of-this-name",
    "the home of a NUL": "~\0",
    "no name on the Hub": "a..b/c",
    "no name on the Hub either": "-a/b.git",
}


@pytest.mark.parametrize("path", NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS)
def test_a_checkpoint_that_is_not_there_is_refused_before_any_job(client: TestClient, path: str) -> None:
    before = everything(client)

    answer = client.post("/v1/policies/policy/versions", json={"checkpoint": path})

    assert answer.status_code == 422
    assert everything(client) == before


def test_a_folder_that_is_no_checkpoint_is_refused_with_what_it_lacks(client: TestClient, tmp_path: Any) -> None:
    answer = client.post("/v1/policies/policy/versions", json={"checkpoint": str(tmp_path)})

    assert answer.json()["code"] == "checkpoint_incomplete"
    assert "config.json" in answer.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/runs/nope",
        "/v1/jobs/nope",
        "/v1/jobs/nope/events",
        "/v1/groups/nope",
        "/v1/prompts/nope",
        "/v1/policies/nope",
        "/v1/datasets/nope",
        "/v1/datasets/nope@1",
        "/v1/datasets/nope@latest/train.parquet",
        "/v1/nothing/here",
    ],
)
def test_what_is_not_there_is_404_as_a_problem_document(client: TestClient, path: str) -> None:
    answer = client.get(path)

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    "path",
    ["/v1/groups?cursor=nonsense", "/v1/groups?limit=0", "/v1/prompts?limit=100000", "/v1/datasets/d@x"],
)
def test_a_senseless_query_is_422(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 422


def test_a_file_outside_the_manifest_is_not_served(client: TestClient) -> None:
    prepare(client)
    sample(client, groups=5)
    freeze(client)

    for name in ("..%2f..%2fstore.duckdb", "manifest.json", "test.parquet", "%00"):
        assert client.get(f"/v1/datasets/d@1/{name}").status_code == 404


def test_a_failed_publication_leaves_the_old_version_serving(client: TestClient, checkpoint: Any) -> None:
    job = client.post("/v1/policies/policy/versions", json={"checkpoint": str(checkpoint)}).json()
    assert finish(client, job)["result"]["version"] == 2

    (checkpoint / "model.safetensors").unlink()
    refused = client.post("/v1/policies/policy/versions", json={"checkpoint": str(checkpoint)})

    assert refused.status_code == 422
    assert client.get("/v1/policies/policy").json()["live"] == 2


ODD_TEXTS = ["\x00", "a\x00b", "\u202e", "<script>alert(1)</script>", "'; drop table prompts; --", "x" * 100_000, "😀"]


@pytest.mark.parametrize("text", ODD_TEXTS, ids=[ascii(text)[:20] for text in ODD_TEXTS])
def test_an_odd_prompt_is_text_like_any_other(client: TestClient, text: str) -> None:
    answer = client.post("/v1/prompts?set=s", json=[GOOD | {"prompt": text, "metadata": {"x": text}}])

    [stored] = client.get("/v1/prompts?set=s").json()["items"]
    assert answer.status_code == 201
    assert (stored["prompt"], stored["metadata"]) == (text, {"x": text})


def test_what_looks_like_a_page_is_told_as_what_it_is(client: TestClient) -> None:
    page = "<html><script>alert(1)</script></html>"
    group = GOOD | {"prompt": page, "metadata": {"x": page}, "rollouts": [{"text": page}, {"text": "4"}]}
    assert client.post("/v1/rollouts/import?run=r", json=[group]).status_code == 201
    freeze(client)
    [group_id] = [one["id"] for one in client.get("/v1/groups?run=r").json()["items"]]
    sql = f"/v1/sql?q={quote(f'select {page!r} as x')}"
    files = ("train.jsonl", "train.parquet", "train.arrow", "rows", "statistics", "card", "croissant", "manifest")
    paths = ["/v1/prompts", "/v1/groups?run=r", f"/v1/groups/{group_id}", f"/v1/runs/{quote(page, safe='')}", "/v1/sql"]
    paths += [f"/v1/datasets/d@1/{file}" for file in files]
    answers = [client.get(path) for path in paths]
    answers += [client.get(sql, headers={"accept": accept}) for accept in ("text/html, */*", "text/csv", "*/*")]

    assert sum(page in answer.text or json.dumps(page)[1:-1] in answer.text for answer in answers) >= 8
    assert not [answer.url for answer in answers if "html" in answer.headers["content-type"]]
    assert {answer.headers["x-content-type-options"] for answer in answers} == {"nosniff"}


HOSTILE = {
    "half a character in a recipe": ("/v1/datasets", {"name": "d", "recipe": {"runs": ["\ud800"]}}),
    "half a character as verifier": ("/v1/datasets", {"name": "d", "recipe": {"runs": ["r"], "verifier": "\ud800"}}),
    "half a character in a replay": ("/v1/replay", {"run": "\ud800", "selectors": [{"kind": "all"}]}),
    "too many candidates": ("/v1/replay", {"run": "r", "selectors": [{"kind": "mopps", "candidates": 1e308}]}),
    "too much optimism": ("/v1/replay", {"run": "r", "selectors": [{"kind": "posterior", "optimism": 1e308}]}),
    "no selectors": ("/v1/replay", {"run": "r", "selectors": []}),
    "an endless step": ("/v1/policies/policy/versions", {"checkpoint": "/nowhere", "step": 2**63}),
    "an endless step of a new policy": ("/v1/policies", {"name": "q", "checkpoint": "/nowhere", "step": 2**63}),
    "endless staleness": ("/v1/runs/r/leases", {"groups": 1, "max_staleness": 10**400}),
    "an endless top_k": ("/v1/runs", GRESO_RUN | {"name": "x", "sampling": {"top_k": 10**30}}),
}


@pytest.mark.parametrize(("path", "body"), HOSTILE.values(), ids=HOSTILE)
def test_what_no_machine_could_do_is_refused_before_anything_is_done(
    path: str, body: dict[str, Any], client: TestClient
) -> None:
    prepare(client)
    before = everything(client)

    answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})

    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] == "invalid_request"
    assert everything(client) == before


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("/v1/groups?cursor=" + base64.urlsafe_b64encode(b"[" * 3000).decode(), 422),
        ("/v1/prompts?cursor=" + base64.urlsafe_b64encode(b'"\\ud800"').decode(), 422),
        ("/v1/groups?run=nobody", 404),
        (f"/v1/datasets/d@1/rows?offset={2**63}", 422),
        ("/v1/runs/r/informativeness?price=inf", 422),
    ],
)
def test_a_query_that_makes_no_sense_is_refused(query: str, status: int, client: TestClient) -> None:
    prepare(client)

    assert client.get(query).status_code == status


@pytest.mark.parametrize("version", ["9" * 50, "9" * 400, "1.0", "-1", "+1", "latest", "%D9%A1"])
def test_a_version_is_deleted_by_its_number_alone(client: TestClient, version: str) -> None:
    prepare(client)
    sample(client, groups=5)
    frozen = freeze(client)

    answer = client.delete(f"/v1/datasets/d@{version}")

    assert (answer.status_code, answer.json()["code"]) == (422, "bad_version")
    assert client.get("/v1/datasets/d@1").json() == frozen


def test_what_is_asked_for_in_a_wrong_way_is_told_all_the_right_ones(client: TestClient) -> None:
    allowed = {path: client.put(path) for path in ("/v1/runs", "/v1/jobs/j", "/v1/datasets/d@1", "/livez")}

    assert {(answer.status_code, answer.json()["code"]) for answer in allowed.values()} == {(405, "method_not_allowed")}
    assert {path: answer.headers["allow"] for path, answer in allowed.items()} == {
        "/v1/runs": "GET, POST",
        "/v1/jobs/j": "GET, DELETE",
        "/v1/datasets/d@1": "GET, DELETE",
        "/livez": "GET",
    }


def test_what_nobody_foresaw_is_a_problem_document_too(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.store.runs.Runs.all", None)

    answer = client.get("/v1/runs")

    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert answer.json()["code"] == "internal"
