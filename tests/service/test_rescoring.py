"""Rescoring: new verdicts beside the old ones, and everything downstream says which it uses."""

import time
from typing import Any

from fastapi.testclient import TestClient

from service.verifiers.declared import parse_declared
from tests.service.conftest import OpenService
from tests.service.steps import finish

ROWS = [
    {
        "prompt": "70 + 75 + 96 =",
        "reference": "241",
        "verifier": "math",
        "rollouts": [{"text": "<answer>70+75+96</answer>"}, {"text": "<answer>241</answer>"}],
    },
    {
        "prompt": "2 + 2 =",
        "reference": "4",
        "verifier": "math",
        "rollouts": [{"text": "<answer>4</answer>"}, {"text": "<answer>5</answer>"}],
    },
]


def imported(client: TestClient, rows: list[dict[str, Any]] = ROWS) -> None:
    answer = client.post("/v1/rollouts/import?run=old", json=rows)
    assert answer.status_code == 201, answer.text


def rescored(client: TestClient, **request: Any) -> dict[str, Any]:
    job = client.post("/v1/runs/old/rescore", json=request).json()
    return dict(finish(client, job)["result"])


def frozen(client: TestClient, **recipe: Any) -> dict[str, Any]:
    return dict(client.post("/v1/datasets", json={"name": "pairs", "recipe": {"runs": ["old"]} | recipe}).json())


def test_a_reward_hack_becomes_wrong_and_its_group_informative(client: TestClient) -> None:
    imported(client)

    report = rescored(client, verifier="math?literal=true")

    assert (report["groups"], report["rollouts"], report["changed"], report["without_text"]) == (2, 4, 1, 0)
    assert report["classes"] == {"right -> right": 2, "right -> wrong": 1, "wrong -> wrong": 1}
    assert report["kinds"] == {"easy -> informative": 1, "informative -> informative": 1}
    [example] = report["examples"]["right -> wrong"]
    assert example["after"]["verifier"] == "math@2?literal=true"
    assert "70+75+96" in example["after"]["detail"]


def test_the_old_verdicts_stay_and_the_new_ones_count(client: TestClient) -> None:
    imported(client)
    rescored(client, verifier="math?literal=true")

    hacked = next(g for g in client.get("/v1/groups?run=old").json()["items"] if 0.0 in g["rewards"][:1])
    group = client.get(f"/v1/groups/{hacked['id']}").json()

    assert [m["reward"] for m in group["members"]] == [1.0, 1.0]
    [rescore] = group["rescores"]
    assert [v["reward"] for v in rescore["verdicts"]] == [0.0, 1.0]
    assert (group["kind"], group["rewards"]) == ("informative", [0.0, 1.0])
    assert client.get("/v1/runs/old").json()["funnel"]["informative"] == 2


def test_a_recipe_uses_the_newest_verdicts_or_those_it_names(client: TestClient) -> None:
    imported(client)
    before = frozen(client)
    rescored(client, verifier="math?literal=true")

    newest, old, none = frozen(client), frozen(client, verifier="math@2"), frozen(client, verifier="math@7")

    assert before["manifest"]["rows"] == 1
    assert (newest["manifest"]["rows"], newest["manifest"]["verifiers"]) == (2, {"math@2?literal=true": 2})
    assert (old["manifest"]["rows"], old["manifest"]["verifiers"]) == (1, {"math@2": 1})
    assert none["code"] == "no_rows"
    assert none["dropped"] == {"other_verifier": 2}


def test_where_selects_the_groups(client: TestClient) -> None:
    imported(client)
    ids = {g["prompt_id"]: g["id"] for g in client.get("/v1/groups?run=old").json()["items"]}
    one = next(iter(ids))

    assert rescored(client, where={"prompts": [one]})["groups"] == 1
    assert rescored(client, where={"outcomes": ["timeout"]})["groups"] == 0
    assert rescored(client, where={"verifier": "math@2"})["groups"] == 2
    assert rescored(client, where={"verifier": "math@1"})["groups"] == 0


def test_what_has_no_text_any_more_is_counted(open_service: OpenService) -> None:
    with open_service() as client:
        client.post(
            "/v1/prompts?set=s",
            json=[{"prompt": "easy 2 + 2", "reference": "4"}, {"prompt": "mixed 2 + 2", "reference": "4"}],
        )
        run = {"name": "old", "policy": "policy", "prompt_set": "s", "sampling": {"n": 8}}
        client.post("/v1/runs", json=run)
        finish(client, client.post("/v1/runs/old/rollouts", json={"passes": 1}).json())

        report = rescored(client)

    assert (report["groups"], report["without_text"]) == (1, 1)


SLOW = (parse_declared("slow=function:tests.service.rules_for_tests:slow_style"),)


def slow_rescore(client: TestClient) -> dict[str, Any]:
    """The job, just begun, of a run with 150 groups."""
    imported(client, [ROWS[1] | {"prompt": f"{i} + 2 =", "reference": str(i + 2)} for i in range(150)])
    return dict(client.post("/v1/runs/old/rescore", json={"verifier": "slow"}).json())


def test_an_interrupted_rescore_goes_on_and_judges_no_group_twice(open_service: OpenService) -> None:
    with open_service(verifier=SLOW) as client:
        job = slow_rescore(client)
        while not client.get(f"/v1/jobs/{job['id']}").json()["progress"].get("groups", {}).get("done"):
            time.sleep(0.01)
    with open_service(verifier=SLOW) as client:
        assert client.get(f"/v1/jobs/{job['id']}").json()["state"] in {"queued", "running"}
        report = finish(client, job)["result"]
        groups = [
            client.get(f"/v1/groups/{g['id']}").json() for g in client.get("/v1/groups?limit=1000").json()["items"]
        ]

    assert (report["groups"], report["rollouts"]) == (150, 300)
    assert [len(group["rescores"]) for group in groups] == [1] * 150


def test_a_rescore_can_be_cancelled(open_service: OpenService) -> None:
    with open_service(verifier=SLOW) as client:
        job = slow_rescore(client)
        client.delete(f"/v1/jobs/{job['id']}")
        job = finish(client, job)

    assert job["state"] == "cancelled"
    assert job["result"]["groups"] < 150


def test_rescoring_is_refused_for_what_is_not_there(client: TestClient) -> None:
    imported(client)

    assert client.post("/v1/runs/nobody/rescore", json={}).json()["code"] == "run_not_found"
    assert client.post("/v1/runs/old/rescore", json={"verifier": "vibes"}).json()["code"] == "unknown_verifier"
    assert client.post("/v1/runs/old/rescore", json={"where": {"color": "red"}}).status_code == 422
