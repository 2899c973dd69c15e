"""The rollouts job: from a request to stored groups and a funnel that adds up."""

import asyncio

import pytest
from fastapi.testclient import TestClient

from service.store.opening import Locked
from tests.service.conftest import OpenService, by_first_word
from tests.service.steps import GRESO_RUN, decisions, finish, freeze, prepare, sample


def test_a_job_samples_until_enough_informative_groups_are_stored(client: TestClient) -> None:
    prepare(client)

    result = sample(client, groups=20)

    assert result["stop"] == "enough"
    assert result["funnel"]["informative"] >= 20


def test_every_visit_in_the_funnel_ends_somewhere(client: TestClient) -> None:
    prepare(client)

    funnel = sample(client, groups=25)["funnel"]

    assert funnel["considered"] == funnel["skipped_easy"] + funnel["skipped_hard"] + funnel["sampled"]
    assert funnel["sampled"] == sum(funnel[k] for k in ("easy", "hard", "informative", "unscored", "failed"))
    assert funnel["rollouts"] == 4 * (funnel["sampled"] - funnel["failed"])
    assert funnel["rollouts"] == sum(funnel["outcomes"].values())
    assert funnel["skipped_easy"] > 0
    assert funnel["skipped_hard"] > 0


def test_a_stored_decision_says_why_and_how_likely_it_was(client: TestClient) -> None:
    prepare(client)

    sample(client, passes=3)

    skips = [v for visits in decisions(client).values() for v in visits if v[2].startswith("skipped")]
    assert skips
    assert all("in the last" in reason and 0 < float(keep) < 1 for _, _, _, keep, reason, _ in skips)


def test_passes_consider_each_prompt_that_many_times(client: TestClient) -> None:
    prepare(client)

    sample(client, passes=3)

    assert {len(visits) for visits in decisions(client).values()} == {3}


def test_prompts_asked_for_by_name_are_sampled_whatever_the_selector_thinks(client: TestClient) -> None:
    prepare(client)
    sample(client, passes=2)
    easy = [p["id"] for p in client.get("/v1/prompts?set=s").json()["items"] if p["prompt"].startswith("easy")]

    funnel = sample(client, prompts=easy)["funnel"]

    assert (funnel["considered"], funnel["sampled"], funnel["easy"]) == (10, 10, 10)


def test_a_budget_of_prompts_is_never_passed(client: TestClient) -> None:
    prepare(client)

    result = sample(client, groups=1000, budget={"prompts": 30})

    assert result["stop"] == "budget"
    assert result["funnel"]["sampled"] == 30


def test_a_set_without_anything_to_learn_ends_as_budget_not_as_a_hang(client: TestClient) -> None:
    prepare(client, each=1)
    client.post("/v1/prompts?set=easy", json=[{"prompt": "easy 1", "reference": "4", "verifier": "numeric"}])
    client.post("/v1/runs", json=GRESO_RUN | {"name": "easy", "prompt_set": "easy"})

    result = sample(client, "easy", groups=1)

    assert result["stop"] in {"exhausted", "budget"}
    assert result["funnel"]["informative"] == 0


def test_cancelling_stops_asking_and_keeps_what_is_stored(client: TestClient) -> None:
    prepare(client)
    job = client.post("/v1/runs/r/rollouts", json={"groups": 100_000}).json()
    client.get(f"/v1/jobs/{job['id']}?wait=0.5")

    client.delete(f"/v1/jobs/{job['id']}")
    job = finish(client, job)

    assert job["state"] == "cancelled"
    stored = client.get("/v1/runs/r").json()["funnel"]
    assert stored["sampled"] == stored["easy"] + stored["hard"] + stored["informative"]


def test_one_idempotency_key_is_one_job(client: TestClient) -> None:
    prepare(client)
    key = {"Idempotency-Key": "abc"}

    first = client.post("/v1/runs/r/rollouts", json={"passes": 1}, headers=key).json()
    again = client.post("/v1/runs/r/rollouts", json={"passes": 1}, headers=key).json()
    other = client.post("/v1/runs/r/rollouts", json={"passes": 2}, headers=key)

    assert first["id"] == again["id"]
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")


def test_events_stream_from_where_the_reader_stopped(client: TestClient) -> None:
    prepare(client)
    job = client.post("/v1/runs/r/rollouts", json={"groups": 20}).json()
    finish(client, job)

    whole = client.get(f"/v1/jobs/{job['id']}/events").text
    rest = client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": "2"}).text

    assert whole.startswith("id: 1\nevent: queued\n")
    assert rest == whole[whole.index("id: 3\n") :]
    assert rest.rstrip().splitlines()[-2] == "event: done"


def test_a_failing_engine_fails_its_visits_and_names_the_stage(open_service: OpenService) -> None:
    def fails_on_hard(prompt: str, seed: int, version: int) -> str:
        if prompt.startswith("hard"):
            raise RuntimeError("out of cheese")
        return by_first_word(prompt, seed, version)

    with open_service(fails_on_hard) as client:
        prepare(client)

        funnel = sample(client, passes=1)["funnel"]

        assert (funnel["failed"], funnel["easy"], funnel["sampled"]) == (10, 10, 30)


def test_a_job_whose_every_visit_fails_is_failed_with_the_reason(open_service: OpenService) -> None:
    def broken(prompt: str, seed: int, version: int) -> str:
        raise RuntimeError("out of cheese")

    with open_service(broken) as client:
        prepare(client)

        job = finish(client, client.post("/v1/runs/r/rollouts", json={"passes": 1}).json())

        assert (job["state"], job["result"]["error"]) == ("failed", "EngineFailed")
        assert "out of cheese" in job["result"]["detail"]


def test_the_same_seed_gives_the_same_decisions_and_the_same_bytes(open_service: OpenService) -> None:
    seen = []
    for data in ("one", "two"):
        with open_service(data=data) as client:
            prepare(client)
            sample(client, groups=30)
            seen.append((decisions(client), freeze(client)["manifest"]["files"]))

    assert seen[0] == seen[1]


def test_another_seed_gives_other_decisions(open_service: OpenService) -> None:
    seen = []
    for seed in (0, 1):
        with open_service(data=str(seed)) as client:
            prepare(client, seed=seed)
            sample(client, groups=30)
            seen.append(decisions(client))

    assert seen[0] != seen[1]


@pytest.mark.parametrize("answers", [1, 30, 100, 201])
def test_a_restart_in_the_middle_of_a_job_changes_no_decision(open_service: OpenService, answers: int) -> None:
    given = 0

    def dies(prompt: str, seed: int, version: int) -> str:
        """Ends the job's task where it stands, without a word to the store."""
        nonlocal given
        given += 1
        if given > answers:
            raise asyncio.CancelledError
        return by_first_word(prompt, seed, version)

    with open_service(data="whole") as client:
        prepare(client)
        sample(client, groups=30)
        undisturbed = decisions(client), freeze(client)["manifest"]["files"]
    with open_service(dies, data="broken") as client:
        prepare(client)
        job = client.post("/v1/runs/r/rollouts", json={"groups": 30}).json()
        assert client.get(f"/v1/jobs/{job['id']}?wait=1").json()["state"] == "running"
    with open_service(data="broken") as client:
        assert finish(client, job)["state"] == "done"
        resumed = decisions(client), freeze(client)["manifest"]["files"]

    assert resumed == undisturbed


def test_a_second_service_on_the_same_data_is_refused(open_service: OpenService) -> None:
    with open_service(), pytest.raises(Locked, match="another service"), open_service():
        pass
