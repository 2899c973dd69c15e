"""Selectors in a running service: what they decide is stored, survives a restart and can be replayed."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.service.conftest import OpenService
from tests.service.steps import decisions, prepare, sample

SELECTORS: list[dict[str, Any]] = [
    {"kind": "random", "share": 0.5},
    {"kind": "greso"},
    {"kind": "pools"},
    {"kind": "band"},
    {"kind": "retire"},
    {"kind": "mopps"},
    {"kind": "learnability"},
    {"kind": "posterior"},
]


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda selector: selector["kind"])
def test_a_restart_between_jobs_changes_no_decision(selector: dict[str, Any], open_service: OpenService) -> None:
    with open_service(data="whole") as client:
        prepare(client, selector=selector)
        for _ in range(3):
            result = sample(client, passes=2)
        undisturbed = decisions(client)

    for part in range(3):
        with open_service(data="parts") as client:
            if part == 0:
                prepare(client, selector=selector)
            sample(client, passes=2)
            restarted = decisions(client)

    assert restarted == undisturbed
    assert result["funnel"]["considered"] == 2 * 30
    skipped = sum(result["funnel"][kind] for kind in ("skipped_easy", "skipped_hard", "passed_over"))
    assert skipped + result["funnel"]["sampled"] == result["funnel"]["considered"]
    assert skipped > 0


def test_a_run_begins_with_what_older_runs_knew(client: TestClient) -> None:
    prepare(client)
    sample(client, passes=3)
    inheriting = {"selector": {"kind": "greso"}, "inherit": {"runs": ["r"], "weight": 1.0}, "name": "later"}
    run = {"policy": "policy", "prompt_set": "s", "sampling": {"n": 4, "max_tokens": 32}} | inheriting
    assert client.post("/v1/runs", json=run).status_code == 201

    sample(client, run="later", passes=1)

    first = [visits[0] for visits in decisions(client, "later").values()]
    assert {action for _, _, action, *_ in first} == {"sampled", "skipped_easy", "skipped_hard"}
    assert {visit for visit, *_ in first} == {"0"}


def test_what_older_runs_learn_later_is_not_inherited(client: TestClient) -> None:
    prepare(client)
    run = {"policy": "policy", "prompt_set": "s", "sampling": {"n": 4, "max_tokens": 32}, "selector": {"kind": "greso"}}
    client.post("/v1/runs", json=run | {"name": "later", "inherit": {"runs": ["r"]}})
    sample(client, passes=3)

    sample(client, run="later", passes=1)

    assert {visits[0][2] for visits in decisions(client, "later").values()} == {"sampled"}


def test_verdicts_that_older_runs_get_later_are_not_inherited(client: TestClient) -> None:
    prepare(client, retain="all")
    sample(client, passes=3)
    run = {"policy": "policy", "prompt_set": "s", "sampling": {"n": 4, "max_tokens": 32}, "selector": {"kind": "greso"}}
    for name in ("before", "after"):
        client.post("/v1/runs", json=run | {"name": name, "inherit": {"runs": ["r"]}})
    sample(client, run="before", passes=1)
    job = client.post("/v1/runs/r/rescore", json={"verifier": "choice"}).json()
    client.get(f"/v1/jobs/{job['id']}?wait=30")
    sample(client, run="after", passes=1)

    assert decisions(client, "after") == decisions(client, "before")


def test_a_run_that_inherits_from_nobody_known_is_refused(client: TestClient) -> None:
    run = {"name": "x", "policy": "policy", "prompt_set": "s", "inherit": {"runs": ["nobody"]}}

    assert client.post("/v1/runs", json=run).json()["code"] == "run_not_found"


def test_selectors_are_replayed_on_what_a_run_earned(client: TestClient) -> None:
    prepare(client, selector={"kind": "all"})
    sample(client, passes=6)
    question = {"run": "r", "selectors": [{"kind": "all"}, {"kind": "greso"}, {"kind": "posterior"}], "seeds": 3}

    answer = client.post("/v1/replay", json=question).json()

    everything, greso, ours = answer["selectors"]
    assert (answer["prompts"], answer["visits"]) == (30, 180)
    assert everything["sampled"]["mean"] == 180
    assert (everything["recall"]["mean"], everything["precision"]["mean"]) == (1.0, answer["informative"] / 180)
    assert greso["precision"]["mean"] > everything["precision"]["mean"]
    assert ours["selector"] == {"kind": "posterior"}
    assert ours["groups_per_informative"]["mean"] < everything["groups_per_informative"]["mean"]


def test_a_run_without_groups_has_nothing_to_replay(client: TestClient) -> None:
    prepare(client)

    answer = client.post("/v1/replay", json={"run": "r", "selectors": [{"kind": "greso"}]})

    assert (answer.status_code, answer.json()["code"]) == (422, "nothing_recorded")


def replayed(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "refinery", "replay", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_file_is_replayed_without_a_service(tmp_path: Path) -> None:
    file, chart = tmp_path / "history.json", tmp_path / "chart.png"
    file.write_text(json.dumps({"a": [1.0] * 20, "b": [0.5] * 20, "c": [0.0] * 12}))

    ended = replayed("--file", str(file), "--selector", "greso", "--seeds", "2", "--chart", str(chart), "--json")

    [greso] = json.loads(ended.stdout)["selectors"]
    assert greso["recall"]["mean"] == 1.0
    assert 20 / 52 < greso["precision"]["mean"] < 1.0
    assert chart.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("content", "selector", "said"),
    [
        ('{"a": [2.0]}', "greso", "no mean of rewards"),
        ("[", "greso", "history.json"),
        ('{"a": [1.0]}', "gresso", "gresso"),
        ('{"a": [1.0]}', "{", "not JSON"),
    ],
)
def test_a_replay_that_cannot_be_is_refused_in_one_line(content: str, selector: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text(content)

    ended = replayed("--file", str(tmp_path / "history.json"), "--selector", selector)

    assert ended.returncode == 1
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


# ---- how many rollouts a prompt gets


def test_a_probe_goes_on_only_where_the_first_rollouts_disagree(client: TestClient) -> None:
    prepare(client, selector={"kind": "all"}, sampling={"n": 12}, allocation={"kind": "probe", "first": 4})

    result = sample(client, passes=1)

    listed = client.get("/v1/groups?run=r&limit=100").json()["items"]
    assert {(g["kind"], g["rollouts"]) for g in listed} <= {("easy", 4), ("hard", 4), ("informative", 12)}
    assert result["funnel"]["rollouts"] == sum(g["rollouts"] for g in listed) < 30 * 12
    assert result["funnel"]["informative"] > 0


def test_a_probe_samples_the_completions_that_a_whole_group_would_have(client: TestClient) -> None:
    prepare(client, selector={"kind": "all"}, sampling={"n": 8}, retain="all")
    sample(client, passes=1)
    probing = {"name": "probing", "sampling": {"n": 8}, "allocation": {"kind": "probe", "first": 3}, "retain": "all"}
    client.post("/v1/runs", json={"policy": "policy", "prompt_set": "s"} | probing)
    sample(client, run="probing", passes=1)

    def texts(run: str) -> dict[str, list[str]]:
        listed = client.get(f"/v1/groups?run={run}&limit=100").json()["items"]
        members = {g["prompt_id"]: client.get(f"/v1/groups/{g['id']}").json()["members"] for g in listed}
        return {prompt: [m["text"] for m in of_prompt] for prompt, of_prompt in members.items()}

    whole = texts("r")
    assert all(some == whole[prompt][: len(some)] for prompt, some in texts("probing").items())


def test_a_knapsack_spends_the_same_on_other_prompts_after_a_restart_too(open_service: OpenService) -> None:
    with open_service() as client:
        prepare(client, selector={"kind": "all"}, sampling={"n": 6}, allocation={"kind": "knapsack", "most": 24})
        sample(client, passes=1)
    with open_service() as client:
        sample(client, passes=2)
        listed = client.get("/v1/groups?run=r&limit=1000").json()["items"]
        names = {p["id"]: p["prompt"].split()[0] for p in client.get("/v1/prompts?set=s").json()["items"]}

    first, later = listed[:30], listed[30:]
    assert {g["rollouts"] for g in first} == {6}
    assert sum(g["rollouts"] for g in later) == 60 * 6
    mean = {kind: fmean(g["rollouts"] for g in later if names[g["prompt_id"]] == kind) for kind in ("easy", "mixed")}
    assert mean["mixed"] > 2 * mean["easy"]


@pytest.mark.parametrize(
    "allocation",
    [
        {"kind": "probe", "first": 8},
        {"kind": "probe", "first": 1},
        {"kind": "knapsack", "least": 9, "most": 8},
        {"kind": "knapsack", "least": 9, "most": 20},
        {"kind": "knapsack", "most": 7},
        {"kind": "half"},
    ],
)
def test_an_allocation_that_cannot_be_is_refused(allocation: dict[str, Any], client: TestClient) -> None:
    run = {"name": "x", "policy": "policy", "prompt_set": "s", "sampling": {"n": 8}, "allocation": allocation}

    assert client.post("/v1/runs", json=run).status_code == 422
