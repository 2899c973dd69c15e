"""What the store adds up about runs and datasets is what the algorithms say of the same groups."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any

import pytest
from fastapi.testclient import TestClient

from curation.history import past_group
from curation.informativeness import outcome_entropy, summarize, wasted_again
from tests.service.steps import decisions, freeze, prepare, sample


@pytest.fixture
def sampled(client: TestClient) -> TestClient:
    prepare(client, retain="all", selector={"kind": "all"})
    sample(client, passes=3)
    return client


def groups(client: TestClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/v1/groups?run=r&limit=1000").json()["items"]
    return found


def test_a_runs_figures_are_those_of_its_groups(sampled: TestClient) -> None:
    whole, version = sampled.get("/v1/runs/r/informativeness").json()

    rewards = [group["rewards"] for group in groups(sampled)]
    said = summarize([reward for of_group in rewards for reward in of_group], [len(g) for g in rewards])
    assert (whole["run"], whole["policy_version"], version["policy_version"]) == ("r", None, 1)
    assert {k: v for k, v in whole.items() if k != "policy_version"} == {
        k: v for k, v in version.items() if k != "policy_version"
    }
    for field in ("groups", "informative", "easy", "hard", "unscored"):
        assert whole[field] == getattr(said, field)
    for field in ("mean_reward", "reward_variance", "outcome_entropy", "goldilocks_share"):
        assert whole[field] == pytest.approx(getattr(said, field))
    assert whole["pass_rate_histogram"] == list(said.pass_rate_histogram)
    mixed = [r for r in rewards if len(set(r)) > 1]
    assert whole["outcome_entropy_of_pairs"] == pytest.approx(fmean(outcome_entropy(fmean(r)) for r in mixed))
    assert whole["margin_histogram"] == [0] * 9 + [len(mixed)]
    assert fmean(pvariance(r) for r in rewards) == pytest.approx(whole["reward_variance"])


def test_waste_after_waste_is_counted_along_each_prompts_history(sampled: TestClient) -> None:
    whole, _ = sampled.get("/v1/runs/r/informativeness").json()

    histories = [[json.loads(visit[-1]) for visit in visits] for visits in decisions(sampled).values()]
    counts = [wasted_again([past_group(rewards).kind for rewards in history]) for history in histories]
    assert whole["wasted_again"] == pytest.approx(sum(n for n, _ in counts) / sum(n for _, n in counts))


def test_answers_completions_and_costs_are_counted(sampled: TestClient) -> None:
    whole, _ = sampled.get("/v1/runs/r/informativeness?price=2.5").json()

    listed = groups(sampled)
    members = [sampled.get(f"/v1/groups/{g['id']}").json()["members"] for g in listed]
    texts = [[m["text"] for m in of_group] for of_group in members]
    logprobs = [p for of_group in members for m in of_group for p in m["logprobs"]]
    repeated = sum(len(t) - len(set(t)) for t in texts) / sum(map(len, texts))
    assert whole["duplicate_completion_share"] == pytest.approx(repeated)
    assert whole["unique_answer_share"] == pytest.approx(1 - repeated)
    assert whole["tokens"] == sum(g["tokens"] for g in listed)
    assert whole["tokens_per_informative_group"] == pytest.approx(whole["tokens"] / whole["informative"])
    assert whole["price_per_informative_group"] == pytest.approx(2.5e-6 * whole["tokens_per_informative_group"])
    assert whole["token_entropy"] == pytest.approx(-fmean(logprobs))


def test_a_datasets_figures_are_those_of_the_groups_that_gave_rows(sampled: TestClient) -> None:
    freeze(sampled, max_pairs=5)

    everything, run, version = sampled.get("/v1/datasets/d@1/informativeness").json()

    assert [row["groups"] for row in (everything, run, version)] == [5, 5, 5]
    assert (everything["informative"], everything["run"]) == (5, None)
    assert (run["run"], run["policy_version"], version["policy_version"]) == ("r", None, 1)


def test_a_run_without_groups_has_nothing_to_report(client: TestClient) -> None:
    prepare(client)

    assert client.get("/v1/runs/r/informativeness").json() == []
    assert client.get("/v1/runs/r/warmup").json()["code"] == "one_policy_version"


def test_later_verdicts_count(sampled: TestClient) -> None:
    before, _ = sampled.get("/v1/runs/r/informativeness").json()
    job = sampled.post("/v1/runs/r/rescore", json={"verifier": "choice"}).json()
    sampled.get(f"/v1/jobs/{job['id']}?wait=30")

    after, _ = sampled.get("/v1/runs/r/informativeness").json()

    assert before["informative"] > 0
    assert after["informative"] == 0
    assert after["tokens_right"] is None


def test_the_advisor_compares_the_versions_that_a_run_sampled(sampled: TestClient, checkpoint: Path) -> None:
    published = sampled.post("/v1/policies/policy/versions", json={"checkpoint": str(checkpoint)}).json()
    sampled.get(f"/v1/jobs/{published['id']}?wait=30")
    sample(sampled, passes=2)

    advice = sampled.get("/v1/runs/r/warmup?measure=pair_share").json()

    assert [(one["version"], one["groups"]) for one in advice["versions"]] == [(1, 90), (2, 60)]
    assert advice["best"] is None
    assert "thin evidence" in advice["reason"]


def test_the_commands_answer_in_one_line_when_there_is_no_service() -> None:
    for verb in ("report", "warmup"):
        command = [sys.executable, "-m", "refinery", verb, "r", "--service", "http://127.0.0.1:9"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)

        assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
        assert "no service answers" in ended.stderr
