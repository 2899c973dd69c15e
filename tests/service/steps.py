"""What a user does with the service, as phrases."""

from typing import Any

from fastapi.testclient import TestClient

GRESO_RUN = {
    "name": "r",
    "policy": "policy",
    "prompt_set": "s",
    "selector": {"kind": "greso"},
    "sampling": {"n": 4, "max_tokens": 32},
    "batch": {"groups": 8, "prompts": 12, "least": 4},
}


def some_prompts(each: int = 10) -> list[dict[str, Any]]:
    """Always solved, never solved and sometimes solved ones."""
    return [
        {"prompt": f"{kind} {i}", "reference": "4", "verifier": "numeric"}
        for kind in ("easy", "hard", "mixed")
        for i in range(each)
    ]


def prepare(client: TestClient, each: int = 10, **run: Any) -> None:
    """Fills the prompt set ``s`` and makes a run, by default the GRESO run ``r``."""
    assert client.post("/v1/prompts?set=s", json=some_prompts(each)).status_code == 201
    assert client.post("/v1/runs", json=GRESO_RUN | run).status_code == 201


def finish(client: TestClient, job: dict[str, Any]) -> dict[str, Any]:
    """The job in its final state."""
    while job["state"] in {"queued", "running"}:
        job = client.get(f"/v1/jobs/{job['id']}", params={"wait": 30}).json()
    return job


def sample(client: TestClient, run: str = "r", **request: Any) -> dict[str, Any]:
    """The result of a rollouts job."""
    answer = client.post(f"/v1/runs/{run}/rollouts", json=request)
    assert answer.status_code == 202, answer.text
    job = finish(client, answer.json())
    assert job["state"] == "done", job
    result: dict[str, Any] = job["result"]
    return result


def lease(client: TestClient, groups: int, run: str = "r", key: str | None = None, **request: Any) -> Any:
    """The answer to a request for a lease, whatever it is."""
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post(f"/v1/runs/{run}/leases", json={"groups": groups, **request}, headers=headers)


def leased(client: TestClient, groups: int, run: str = "r", key: str | None = None, **request: Any) -> dict[str, Any]:
    """The lease itself."""
    answer = lease(client, groups, run, key, **request)
    assert answer.status_code in {200, 201}, answer.text
    found: dict[str, Any] = answer.json()
    return found


def groups_of(lease: dict[str, Any]) -> list[str]:
    """Of a lease, in the order of its rows."""
    return list(dict.fromkeys(row["group_id"] for row in lease["rows"]))


def decisions(client: TestClient, run: str = "r") -> dict[str, list[tuple[Any, ...]]]:
    """Every prompt's visits in a run: what was decided, with which probability and why, and what came of it."""
    fields = ("visit", "epoch", "action", "keep_probability", "reason", "rewards")
    prompts = client.get("/v1/prompts", params={"set": "s", "limit": 1000}).json()["items"]
    history = {p["id"]: client.get(f"/v1/prompts/{p['id']}").json()["visits"] for p in prompts}
    return {
        prompt: [tuple(str(v[field]) for field in fields) for v in visits if v["run"] == run]
        for prompt, visits in history.items()
    }


def freeze(client: TestClient, name: str = "d", **recipe: Any) -> dict[str, Any]:
    answer = client.post("/v1/datasets", json={"name": name, "recipe": {"runs": ["r"]} | recipe})
    assert answer.status_code == 201, answer.text
    frozen: dict[str, Any] = answer.json()
    return frozen
