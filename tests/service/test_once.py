"""A POST with an Idempotency-Key happens once, and is answered the same by whomever and whenever it is repeated."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.access import Keyring, Role
from service.stages import StoreFailed
from service.store.answers import BEGUN, Answer, Answers
from tests.service.conftest import OpenService
from tests.service.steps import GRESO_RUN, finish, prepare, sample

KEY = {"Idempotency-Key": "k"}
ROW = {"prompt": "2 + 2 =", "reference": "4", "verifier": "numeric"}
GROUP = ROW | {"rollouts": [{"text": "4"}, {"text": "5"}]}
RUN = GRESO_RUN | {"name": "second", "prompt_set": "s"}
CREATING: dict[str, tuple[Any, Any]] = {
    "/v1/prompts?set=new": ([ROW], [ROW, ROW | {"prompt": "3 + 1 ="}]),
    "/v1/runs": (RUN, RUN | {"name": "third"}),
    "/v1/runs/r/rollouts": ({"passes": 1}, {"passes": 2}),
    "/v1/runs/r/rescore": ({}, {"verifier": "exact"}),
    "/v1/rollouts/import?run=recorded": ([GROUP], [GROUP | {"prompt": "1 + 3 ="}]),
    "/v1/datasets": ({"name": "d", "recipe": {"runs": ["r"]}}, {"name": "e", "recipe": {"runs": ["r"]}}),
}
"""A path with a body, and another one for the same key."""


def everything(client: TestClient) -> dict[str, Any]:
    lists = ("prompts", "policies", "runs", "groups", "datasets")
    return {name: client.get(f"/v1/{name}").json() for name in lists} | {
        "jobs": [job["id"] for job in client.get("/v1/jobs").json()]
    }


@pytest.mark.parametrize(("path", "body", "other"), [(at, *bodies) for at, bodies in CREATING.items()])
def test_the_same_post_three_times_at_once_and_after_a_restart_is_one(
    open_service: OpenService, path: str, body: Any, other: Any
) -> None:
    with open_service() as client:
        prepare(client)
        sample(client, passes=1)
        with ThreadPoolExecutor(3) as at_once:
            told = list(at_once.map(lambda _: client.post(path, json=body, headers=KEY), range(3)))
        for job in client.get("/v1/jobs").json():
            finish(client, job)
        after = everything(client)
        told.append(client.post(path, json=body, headers=KEY))
    with open_service() as client:
        told.append(client.post(path, json=body, headers=KEY))

        assert {(answer.status_code, answer.text) for answer in told} == {(told[0].status_code, told[0].text)}
        assert told[0].status_code in {201, 202}
        assert sorted(answer.headers.get("idempotency-replayed", "") for answer in told) == ["", *["true"] * 4]
        refused = client.post(path, json=other, headers=KEY)
        assert (refused.status_code, refused.json()["code"]) == (409, "idempotency_conflict")
        assert everything(client) == after


def test_publishing_and_new_policies_are_answered_the_same_too(client: TestClient, checkpoint: Path) -> None:
    for path, body in (("/v1/policies", {"name": "q"}), ("/v1/policies/policy/versions", {"step": 1})):
        told = [client.post(path, json=body | {"checkpoint": str(checkpoint)}, headers=KEY) for _ in range(3)]
        finish(client, told[0].json())
        told.append(client.post(path, json=body | {"checkpoint": str(checkpoint)}, headers=KEY))

        assert {answer.text for answer in told} == {told[0].text}, told[0].text
    assert [len(policy["versions"]) for policy in client.get("/v1/policies").json()] == [2, 1]


def test_what_was_refused_is_tried_again_with_the_same_key(client: TestClient) -> None:
    first = client.post("/v1/runs", json=RUN | {"policy": "q"}, headers=KEY)
    second = client.post("/v1/runs", json=RUN, headers=KEY)

    assert (first.status_code, second.status_code) == (404, 201)


@pytest.mark.parametrize(("path", "body"), [(at, body) for at, (body, _) in CREATING.items()])
def test_a_deed_whose_answer_was_never_stored_is_not_done_again(
    open_service: OpenService, monkeypatch: pytest.MonkeyPatch, path: str, body: Any
) -> None:
    """As if the service were killed between the two; and meanwhile the store has grown."""
    add = Answers.add

    async def killed(answers: Answers, answer: Answer) -> None:
        if answer.status != BEGUN:
            raise StoreFailed("killed")
        await add(answers, answer)

    with open_service() as client:
        prepare(client)
        sample(client, passes=1)
        monkeypatch.setattr(Answers, "add", killed)
        assert client.post(path, json=body, headers=KEY).status_code == 503
        monkeypatch.setattr(Answers, "add", add)
        for job in client.get("/v1/jobs").json():
            finish(client, job)
        sample(client, passes=1)
        before = everything(client)
    with open_service() as client:
        answer = client.post(path, json=body, headers=KEY)

        assert answer.status_code in {200, 201, 202}, answer.text
        assert everything(client) == before


def test_keys_of_two_senders_and_of_two_paths_are_not_the_same(client: TestClient, tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "data")
    senders = [{"Authorization": f"Bearer {keyring.add(name, Role.WRITE)[1]}"} for name in ("alice", "bob")]

    first = client.post("/v1/prompts?set=a", json=[ROW], headers=KEY | senders[0])
    of_another = client.post("/v1/prompts?set=a", json=[ROW], headers=KEY | senders[1])
    elsewhere = client.post("/v1/prompts?set=b", json=[ROW], headers=KEY | senders[0])

    assert [answer.json()["added"] for answer in (first, of_another, elsewhere)] == [1, 0, 1]


def test_two_senders_who_send_the_same_key_have_a_job_each(client: TestClient, tmp_path: Path) -> None:
    prepare(client)
    keyring = Keyring(tmp_path / "data")
    senders = [{"Authorization": f"Bearer {keyring.add(name, Role.WRITE)[1]}"} for name in ("alice", "bob")]

    told = [
        client.post("/v1/runs/r/rollouts", json={"passes": passes}, headers=KEY | sender)
        for sender, passes in zip([*senders, senders[0]], [1, 2, 1], strict=True)
    ]

    assert [answer.status_code for answer in told] == [202] * 3
    assert told[0].json()["id"] == told[2].json()["id"] != told[1].json()["id"]


@pytest.mark.parametrize(("role", "names"), [(Role.READ, ()), (Role.WRITE, ("mine",))])
def test_a_key_that_may_less_than_before_gets_no_answer_of_before(
    client: TestClient, tmp_path: Path, role: Role, names: tuple[str, ...]
) -> None:
    prepare(client)
    sample(client, passes=1)
    keyring = Keyring(tmp_path / "data")

    def send(token: str) -> list[int]:
        headers = KEY | {"Authorization": f"Bearer {token}"}
        posts = {path: CREATING[path] for path in ("/v1/prompts?set=new", "/v1/datasets")}
        answers = [client.post(path, json=body, headers=headers) for path, bodies in posts.items() for body in bodies]
        return [answer.status_code for answer in answers]

    assert send(keyring.add("alice", Role.WRITE)[1]) == [201, 409] * 2
    keyring.remove("alice")

    assert send(keyring.add("alice", role, names)[1]) == [403] * 4


def test_every_post_that_creates_takes_the_header(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    posts = {path: methods["post"] for path, methods in paths.items() if "post" in methods}
    keyed = {
        path
        for path, post in posts.items()
        if any(one["name"] == "idempotency-key" for one in post.get("parameters", []))
    }

    questions = {"/v1/sql", "/v1/replay"}
    said_again = {"/v1/store/compact", *(f"/v1/leases/{{lease_id}}/{what}" for what in ("ack", "release", "renew"))}
    assert posts.keys() - keyed == questions | said_again
