"""What operators see of a running service: metrics as Prometheus expects them, and lines that say what about."""

import json
import logging
import re
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from service import logs
from service.access import Keyring, Role
from service.logs import LogFormat
from service.store.runs import Runs
from tests.processes import Service, serving
from tests.service.conftest import OpenService
from tests.service.steps import finish, freeze, leased, prepare, sample
from trainers.client import Refinery

PROMPT = "12 + 16 ="


def measured(client: TestClient | httpx2.Client) -> dict[tuple[str, ...], float]:
    """By name and values of the labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "le")): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def test_metrics_count_what_was_done(client: TestClient) -> None:
    prepare(client)
    result = sample(client, groups=8)
    leased(client, 3)
    freeze(client)
    client.get("/v1/groups/nothing")
    kinds = client.get("/v1/runs/r").json()["funnel"]

    found = measured(client)

    assert found["refinery_groups_total", "informative"] == kinds["informative"] == result["funnel"]["informative"]
    assert found["refinery_rollouts_total",] == 4 * kinds["sampled"]
    assert found["refinery_tokens_total",] == kinds["tokens"]
    assert found["refinery_leases_open",] == 1
    assert found["refinery_policy_version", "policy"] == 1
    assert found["refinery_engine_workers", "policy", "live"] == 1
    assert found["refinery_store_commits_total",] > 5
    assert found["refinery_store_free_bytes",] > 0
    assert found["process_resident_memory_bytes",] > 1e6
    assert found["refinery_http_requests_total", "GET", "/v1/groups/{group_id}", "404"] == 1
    assert found["refinery_http_request_seconds_count", "POST", "/v1/runs/{run}/rollouts"] == 1
    assert found["refinery_http_requests_in_flight",] == 1  # this one


def test_an_unfinished_job_is_seen(open_service: OpenService) -> None:
    def slow(prompt: str, seed: int, version: int) -> str:
        return "5" * 4000

    with open_service(slow) as client:
        prepare(client, 100)
        job = client.post("/v1/runs/r/rollouts", json={"passes": 50}).json()
        found = measured(client)
        client.delete(f"/v1/jobs/{job['id']}")
        finish(client, job)

        assert sum(value for name, value in found.items() if name[0] == "refinery_jobs_unfinished") == 1
        assert not any(name[0] == "refinery_jobs_unfinished" for name in measured(client))


def test_no_label_is_what_somebody_sent(client: TestClient) -> None:
    for path in ("/v1/runs/secret", "/secret", "/v1/jobs/secret", "/v1/sql?q=secret", "/v1/datasets/secret@1/secret"):
        client.get(path)

    client.request("SECRET", "/v1/runs")

    assert "secret" not in client.get("/metrics").text.lower()


def test_options_of_verifiers_make_no_series_of_their_own(client: TestClient) -> None:
    text = [{"text": "4"}]
    for n in range(5):
        verifier = f"{n + 1}*numeric + math?decimals={n}"
        row = {"prompt": "2 + 2 =", "reference": "4", "verifier": verifier, "rollouts": text}
        answer = client.post("/v1/rollouts/import?run=r", json=[row])
        assert answer.status_code == 201, answer.text

    found = [name for name in measured(client) if name[0] == "refinery_verdicts_total"]

    assert found == [("refinery_verdicts_total", "scored", "numeric@1+math@2")]


def test_an_error_that_nobody_foresaw_is_counted_as_one(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: Runs) -> None:
        raise RuntimeError

    monkeypatch.setattr(Runs, "all", broken)
    answer = client.get("/v1/runs")
    assert (answer.status_code, answer.headers["x-content-type-options"]) == (500, "nosniff")

    assert measured(client)["refinery_http_requests_total", "GET", "/v1/runs", "500"] == 1


@pytest.fixture
def lines(tmp_path: Path) -> list[dict[str, object]]:
    """What a service that was told to log in JSON logged while it sampled, and while somebody tried to get in."""
    _, key = Keyring(tmp_path / "data").add("alice", Role.ADMIN)
    with serving(tmp_path / "data", log_format="json") as service, Refinery(service.url, key=key) as refinery:
        refinery.add_prompts([{"prompt": PROMPT, "reference": "28", "verifier": "numeric"}], "s")
        refinery.post("/v1/runs", {"name": "r", "policy": "policy", "prompt_set": "s", "sampling": {"max_tokens": 40}})
        refinery.wait(refinery.post("/v1/runs/r/rollouts", {"passes": 1}))
        refinery.get("/v1/sql", q=f"select '{PROMPT}' as asked")
        httpx2.get(f"{service.url}/v1/runs", headers={"authorization": "Bearer rr_nonsense_key"})
        assert service.end(15) == 0
    logged = (tmp_path / "service.log").read_text()
    assert key not in logged
    assert "rr_" not in logged
    assert PROMPT not in logged
    return [json.loads(line) for line in logged.splitlines()]


def test_each_line_is_a_document_that_says_what_it_is_about(lines: list[dict[str, object]]) -> None:
    requests = [line for line in lines if line["logger"] == "service.requests"]
    jobs = [line for line in lines if "job" in line]

    assert all(line["at"] and line["level"] and line["message"] for line in lines)
    assert {line["caller"] for line in requests} == {"alice", None}
    assert {line["status"] for line in requests if line["caller"] is None} == {401}
    assert {line["route"] for line in requests} >= {"/v1/prompts", "/v1/runs/{run}/rollouts", "/v1/sql"}
    assert [(line["on"], line["message"]) for line in jobs] == [("r", "rollouts job ended as done")]


@pytest.mark.parametrize("format", LogFormat)
def test_what_others_said_makes_no_line_of_its_own(capsys: pytest.CaptureFixture[str], format: LogFormat) -> None:
    said = "no\r\n2026-01-01 00:00:00,000 INFO service.access all keys removed\x1b[2J\x1b]0;\u2028\x85"
    before = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        logs.configure(format)
        with logs.about(job="j\nk"):
            logging.getLogger("service.engines").warning("worker failed: %s", said)
        try:
            raise ValueError(said)
        except ValueError:
            logging.getLogger("service.jobs").exception("failed")
    finally:
        logging.getLogger().handlers[:], logging.getLogger().level = before

    first, *others = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert "keys removed" in first
    assert all(line.isprintable() for line in (first, *others))
    assert not any(line.startswith("2026-01-01") for line in others)


def test_a_service_says_what_it_takes_up_when_it_starts(tmp_path: Path) -> None:
    service = Service(tmp_path / "data")
    with Refinery(service.url) as refinery:
        rows = [{"prompt": f"{n} + {n} =", "reference": str(2 * n), "verifier": "numeric"} for n in range(200)]
        refinery.add_prompts(rows, "s")
        refinery.post("/v1/runs", {"name": "r", "policy": "policy", "prompt_set": "s", "sampling": {"max_tokens": 40}})
        job = refinery.post("/v1/runs/r/rollouts", {"passes": 50})
        while refinery.get(f"/v1/jobs/{job['id']}")["state"] != "running":
            pass
    service.end(9)
    unfinished = tmp_path / "data" / "segments" / "00000099.part"
    unfinished.mkdir()

    with serving(tmp_path / "data") as service, Refinery(service.url) as refinery:
        told = refinery.get("/v1/store")["taken_up"]
        refinery.delete(f"/v1/jobs/{job['id']}")

    assert told["jobs"] == [job["id"]]
    assert told["removed"] == ["segments/00000099.part"]
    logged = (tmp_path / "service.log").read_text()
    assert f"jobs taken up: {job['id']}" in logged
    assert "00000099.part" in logged


def test_every_metric_and_every_role_is_in_the_operators_page(client: TestClient) -> None:
    page = (Path(__file__).parents[2] / "docs/operating.md").read_text()
    told = set(re.findall(r"# TYPE (refinery_\w+)", client.get("/metrics").text))

    assert {name for name in told if name not in page and not name.endswith("_created")} == set()
    assert {f"`{role}`" for role in Role} <= set(re.findall(r"`[a-z]+`", page))
