"""Keys, roles and limits: nobody gets in who should not, and whoever gets in sees what is its own."""

import asyncio
import gzip
import json
import logging
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import httpx2
import pytest
from fastapi import FastAPI, WebSocket
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

from service.access import Caller, Keyring, Role, is_loopback, refuse_open_door
from service.api import gate
from service.api.routes import ADMINISTERS, ASKS_SQL, OWN_READS, OWN_WRITES, READS, WRITES
from service.app import ROUTES
from service.checkpoints import EMBEDDED
from service.engines.addresses import parse_worker
from service.engines.link import Fault, Link
from service.shares import Shares
from service.stages import Conflict, Overloaded
from service.verifiers.declared import parse_declared
from service.verifiers.remote import Failed, Line
from tests.processes import serving
from tests.service.conftest import OpenService
from tests.service.steps import GRESO_RUN, freeze, leased, prepare, sample

HEALTH = {"/livez", "/readyz"}


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    """Of the folder that `open_service` opens."""
    return Keyring(tmp_path / "data")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@contextmanager
def asked_by(client: TestClient, token: str) -> Iterator[TestClient]:
    client.headers.update(bearer(token))
    yield client
    del client.headers["Authorization"]


# ---- who gets in


def test_whoever_reaches_a_service_without_keys_is_its_operator(client: TestClient) -> None:
    assert client.get("/v1/store").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "gpu1", "::", ""])
def test_a_service_that_others_can_reach_does_not_start_without_keys(keyring: Keyring, host: str) -> None:
    with pytest.raises(Conflict, match="refinery keys add"):
        refuse_open_door(keyring, host, unsafe=False)

    keyring.add("alice", Role.ADMIN)
    refuse_open_door(keyring, host, unsafe=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_one_that_only_this_machine_reaches_needs_none(keyring: Keyring, host: str) -> None:
    assert is_loopback(host)
    refuse_open_door(keyring, host, unsafe=False)


def test_from_the_first_key_on_everybody_needs_one(client: TestClient, keyring: Keyring) -> None:
    _, token = keyring.add("alice", Role.READ)

    assert client.get("/v1/runs").json()["code"] == "key_missing"
    refused = client.get("/v1/runs", headers=bearer("rr_00000000_nonsense"))
    assert (refused.status_code, refused.json()["code"]) == (401, "key_unknown")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert client.get("/v1/runs", headers=bearer(token)).status_code == 200


def test_a_key_that_is_removed_is_refused_from_the_next_request_on(client: TestClient, keyring: Keyring) -> None:
    _, token = keyring.add("alice", Role.READ)
    assert client.get("/v1/runs", headers=bearer(token)).status_code == 200

    keyring.remove("alice")

    assert client.get("/v1/runs", headers=bearer(token)).status_code == 401
    assert client.get("/v1/runs").status_code == 401  # the last key that goes opens no door


def test_a_key_is_good_until_its_time_is_over(tmp_path: Path) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    keyring = Keyring(tmp_path, now=lambda: now)
    _, token = keyring.add("alice", Role.READ, expires_at=now + timedelta(days=1))
    assert keyring.caller(token) == Caller("alice", Role.READ)

    now += timedelta(days=1)

    assert keyring.caller(token) is None


def test_half_a_key_is_no_key(keyring: Keyring) -> None:
    key, token = keyring.add("alice", Role.ADMIN)
    others = ["", "_", key.id, f"rr_{key.id}", f"rr_{key.id}_", token[:-1], token + "x", token.upper(), f" {token}"]

    assert [keyring.caller(other) for other in [*others, token[2:], key.sha256, f"rr_{key.id}_{key.sha256}"]] == [
        None
    ] * (len(others) + 3)


@pytest.fixture(scope="module")
def alices(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    keyring = Keyring(tmp_path_factory.mktemp("keys"))
    keyring.add("alice", Role.ADMIN)
    return keyring


@given(st.text(max_size=80))
def test_no_text_is_a_key(alices: Keyring, text: str) -> None:
    assert alices.caller(text) is None


def test_the_file_of_the_keys_holds_none_and_is_its_owners_alone(keyring: Keyring) -> None:
    _, token = keyring.add("alice", Role.ADMIN)

    assert keyring.path.stat().st_mode & 0o777 == 0o600
    assert token not in keyring.path.read_text()
    assert token.rpartition("_")[2] not in keyring.path.read_text()


@pytest.mark.parametrize("damage", ["", "[", '{"keys": 1}', '[{"id": "00000000"}]', "\x00"])
def test_while_the_file_of_the_keys_is_damaged_nobody_gets_in_and_the_service_lives(
    client: TestClient, keyring: Keyring, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    _, token = keyring.add("alice", Role.ADMIN)
    whole = keyring.path.read_text()

    keyring.path.write_text(damage)

    assert client.get("/v1/runs", headers=bearer(token)).status_code == 503
    refused = client.get("/v1/runs")
    assert (refused.status_code, refused.json()["code"]) == (503, "keys_unreadable")
    assert "00000000" not in refused.text  # nobody is told what is in it
    assert str(keyring.path.parent) not in refused.text  # nor where it is, but the operator
    assert str(keyring.path) in caplog.text
    assert client.get("/livez").status_code == 200
    keyring.path.write_text(whole)
    assert client.get("/v1/runs", headers=bearer(token)).status_code == 200


def test_keys_that_go_away_make_nobody_the_operator(client: TestClient, keyring: Keyring) -> None:
    _, token = keyring.add("alice", Role.ADMIN)
    assert client.get("/v1/store", headers=bearer(token)).status_code == 200

    keyring.path.rename(keyring.path.with_name("elsewhere"))

    for headers in ({}, bearer(token)):
        refused = client.get("/v1/store", headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (503, "keys_unreadable")
    keyring.path.with_name("elsewhere").rename(keyring.path)
    assert client.get("/v1/store", headers=bearer(token)).status_code == 200


def test_keys_that_were_there_at_the_start_are_asked_for_also_where_nobody_asked_yet(
    open_service: OpenService, keyring: Keyring
) -> None:
    keyring.add("alice", Role.ADMIN)
    with open_service() as client:
        keyring.path.unlink()

        assert client.get("/v1/store").status_code == 503


def test_two_who_add_keys_at_once_both_have_one(keyring: Keyring) -> None:
    adding = [threading.Thread(target=keyring.add, args=(f"k{i}", Role.READ)) for i in range(8)]
    for thread in adding:
        thread.start()
    for thread in adding:
        thread.join()

    assert {key.name for key in keyring.keys or ()} == {f"k{i}" for i in range(8)}


def test_readers_of_plain_urls_send_their_key_as_a_password(client: TestClient, keyring: Keyring) -> None:
    _, token = keyring.add("alice", Role.READ)

    assert client.get("/v1/runs", auth=("anything", token)).status_code == 200
    assert client.get("/v1/runs", auth=(token, "")).status_code == 401


def test_who_has_no_key_is_told_whether_the_service_is_ready_and_nothing_else(
    client: TestClient, keyring: Keyring
) -> None:
    _, token = keyring.add("alice", Role.READ)

    assert client.get("/readyz").json() == {"policies": {}}
    assert client.get("/readyz", headers=bearer(token)).json() == {"policies": {"policy": 1}}
    assert client.get("/metrics").status_code == 401


def test_no_way_in_leads_around_the_gate(client: TestClient) -> None:
    async def open_to_all(websocket: WebSocket) -> None:
        await websocket.accept()

    assert isinstance(client.app, FastAPI)
    client.app.add_api_websocket_route("/v1/live", open_to_all)

    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/v1/live"):
        pass


PATHS = [
    *("//v1/runs", "/v1//runs", "/v1/runs/", "/v1/runs%2f", "/%76%31/runs", "/v1/runs;x", "/v1/runs%00", "/V1/runs"),
    *("/livez/../v1/runs", "/livez/..%2fv1/runs", "/livez/", "/LIVEZ", "/docs/x", "/openapi.json/", "/metrics", "*"),
]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "DELETE", "PUT", "TRACE", "BREW"])
def test_no_spelling_of_a_path_and_no_method_gets_in_without_a_key(
    client: TestClient, keyring: Keyring, method: str
) -> None:
    keyring.add("alice", Role.READ)

    answers = {path: client.request(method, path, follow_redirects=False).status_code for path in PATHS}

    assert set(answers.values()) == {401}, answers


def test_no_key_is_written_into_a_log_or_an_answer(
    client: TestClient, keyring: Keyring, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _, token = keyring.add("alice", Role.ADMIN)
    sent = [bearer(token), bearer(token + "x"), {"Authorization": f"Basic {token}"}, {"Authorization": token}]

    answers = [client.get(path, headers=headers) for headers in sent for path in ("/v1/runs", "/metrics", "/nowhere")]

    secret = token.rpartition("_")[2]
    assert secret not in caplog.text
    assert not any(secret in answer.text or secret in str(answer.headers) for answer in answers)


# ---- roles


ASKING = [ADMINISTERS, ASKS_SQL, OWN_READS, OWN_WRITES, READS, WRITES]


@pytest.mark.parametrize("route", [route for module in ROUTES for route in module.router.routes], ids=str)
def test_every_route_says_which_role_it_takes(route: APIRoute) -> None:
    asked = [check for check in route.dependencies if check in ASKING]

    assert len(asked) == (0 if route.path in HEALTH else 1)


LADDER: dict[Role, list[tuple[str, str, Any]]] = {
    Role.READ: [("GET", "/v1/runs", None), ("POST", "/v1/replay", {"run": "r", "selectors": [{"kind": "all"}]})],
    Role.SQL: [("POST", "/v1/sql", {"sql": "select 1"})],
    Role.WRITE: [("POST", "/v1/prompts", [{"prompt": "2 + 2 =", "reference": "4"}]), ("DELETE", "/v1/jobs/j", None)],
    Role.ADMIN: [("GET", "/v1/store", None), ("GET", "/v1/store/check", None), ("DELETE", "/v1/datasets/d@1", None)],
}


@pytest.mark.parametrize("role", Role)
def test_a_role_may_do_what_those_before_it_may_and_no_more(client: TestClient, keyring: Keyring, role: Role) -> None:
    _, token = keyring.add("alice", role)

    for needed, requests in LADDER.items():
        for method, path, body in requests:
            answer = client.request(method, path, json=body, headers=bearer(token))
            assert (answer.status_code != 403) == role.includes(needed), (method, path, answer.text)
            if answer.status_code == 403:
                assert answer.json()["code"] == "role_too_low"


# ---- limits


@pytest.fixture
def others(client: TestClient) -> dict[str, str]:
    """Everything that there is of somebody else, by the name of the parameter that asks for it."""
    prepare(client, name="other", selector={"kind": "all"})
    job = client.post("/v1/runs/other/rollouts", json={"passes": 1}).json()
    while client.get(f"/v1/jobs/{job['id']}?wait=30").json()["state"] != "done":
        pass
    freeze(client, "other", runs=["other"])
    lease = leased(client, 1, run="other")
    group = client.get("/v1/groups?run=other").json()["items"][0]
    named = {"run": "other", "name": "other", "version": "1", "split": "train", "file": "train.parquet"}
    return named | {
        "job_id": job["id"],
        "lease_id": lease["lease"],
        "group_id": group["id"],
        "prompt_id": group["prompt_id"],
    }


RUN = GRESO_RUN | {"selector": {"kind": "all"}}
BODIES: dict[str, Any] = {
    "/v1/runs": RUN | {"name": "other-2"},
    "/v1/policies": {"name": "other-2", "checkpoint": "x"},
    "/v1/datasets": {"name": "mine", "recipe": {"runs": ["other"]}},
    "/v1/replay": {"run": "other", "selectors": [{"kind": "all"}]},
    "/v1/runs/other/leases": {"groups": 1},
    "/v1/runs/other/rollouts": {"passes": 1},
    "/v1/policies/other/versions": {"checkpoint": "x"},
    "/v1/datasets/other@1/push": {"repo_id": "a/b"},
    "/v1/prompts": [{"prompt": "2 + 2 =", "reference": "4"}],
}
LISTS = {"/v1/runs", "/v1/jobs", "/v1/policies", "/v1/datasets", "/v1/sql/views"}
TO_BE_NAMED = {"/v1/sql", "/v1/groups"}


@pytest.mark.parametrize("role", [Role.READ, Role.SQL, Role.WRITE])
def test_a_key_with_limits_gets_nothing_of_others_from_any_route(
    client: TestClient, keyring: Keyring, others: dict[str, str], role: Role
) -> None:
    _, token = keyring.add("mine", role, ("mine", "mine-*"))
    told = {}
    with asked_by(client, token):
        for module in ROUTES:
            for route in module.router.routes:
                assert isinstance(route, APIRoute)
                for method in route.methods:
                    path = route.path.format(**others)
                    query = {"run": "other"} if path == "/v1/rollouts/import" else {}
                    answer = client.request(method, path, json=BODIES.get(path, {}), params=query)
                    told[method, path] = answer

    refused = {at for at, answer in told.items() if answer.status_code in {403, 404}}
    assert {path for _, path in told.keys() - refused} <= HEALTH | LISTS | TO_BE_NAMED
    assert not any(
        "other" in answer.text for (method, path), answer in told.items() if method == "GET" and path in LISTS
    )
    assert told["GET", "/v1/groups"].json()["code"] == "run_missing"


def test_a_key_with_limits_works_on_what_is_its_own(client: TestClient, keyring: Keyring) -> None:
    prepare(client, name="other", selector={"kind": "all"})
    _, token = keyring.add("mine", Role.WRITE, ("mine", "mine-*"))
    with asked_by(client, token):
        assert client.post("/v1/runs", json=RUN | {"name": "mine-1"}).status_code == 201
        sample(client, "mine-1", passes=1)
        frozen = freeze(client, "mine", runs=["mine-1"])
        lease = leased(client, 2, run="mine-1")
        group = client.get("/v1/groups?run=mine-1").json()["items"][0]

        assert client.get(f"/v1/groups/{group['id']}").status_code == 200
        assert client.post(f"/v1/leases/{lease['lease']}/ack").status_code == 200
        assert client.get(frozen["urls"]["train.parquet"]).status_code == 200
        assert [run["name"] for run in client.get("/v1/runs").json()] == ["mine-1"]
        assert {job["on"] for job in client.get("/v1/jobs").json()} == {"mine-1"}
        why = client.get(f"/v1/datasets/mine@1/explain?prompt_id={group['prompt_id']}")
        assert why.status_code == 200


def test_sql_shows_a_key_with_limits_its_own_runs(client: TestClient, keyring: Keyring) -> None:
    prepare(client, name="other", selector={"kind": "all"})
    assert client.post("/v1/runs", json=RUN | {"name": "mine"}).status_code == 201
    for run in ("other", "mine"):
        sample(client, run, passes=1)
    _, token = keyring.add("mine", Role.SQL, ("mine",))
    everything = "select distinct run from groups union select run from runs union select distinct run from visits"

    seen = client.post("/v1/sql", json={"sql": everything}, headers=bearer(token)).json()["rows"]
    by_url = client.get("/v1/sql", params={"q": everything}, headers=bearer(token)).json()["rows"]

    assert seen == by_url == [["mine"]]


def test_sql_shows_a_key_with_limits_policies_and_datasets_of_its_names_alone(
    client: TestClient, keyring: Keyring
) -> None:
    prepare(client, name="mine", selector={"kind": "all"})
    sample(client, "mine", passes=1)
    for dataset in ("mine", "others"):
        freeze(client, dataset, runs=["mine"])
    tokens = {names: keyring.add(f"of{len(names)}", Role.SQL, names)[1] for names in (("mine",), ("mine", "policy"))}
    sql = (
        "select name from datasets union select dataset from pairs union select policy from policy_versions order by 1"
    )

    seen = {
        names: client.post("/v1/sql", json={"sql": sql}, headers=bearer(token)).json()["rows"]
        for names, token in tokens.items()
    }

    assert seen == {("mine",): [["mine"]], ("mine", "policy"): [["mine"], ["policy"]]}


def test_explain_does_not_tell_a_key_with_limits_of_prompts_that_its_runs_never_saw(
    client: TestClient, keyring: Keyring
) -> None:
    prepare(client, name="mine", selector={"kind": "all"})
    sample(client, "mine", passes=1)
    freeze(client, "mine", runs=["mine"])
    assert client.post("/v1/prompts?set=o", json=[{"prompt": "secret", "reference": "4"}]).status_code == 201
    [secret] = client.get("/v1/prompts?set=o").json()["items"]
    _, token = keyring.add("mine", Role.READ, ("mine",))

    answer = client.get(f"/v1/datasets/mine@1/explain?prompt_id={secret['id']}", headers=bearer(token))

    assert (answer.status_code, "secret" in answer.text) == (404, False)


def test_explain_does_not_tell_a_key_with_limits_whether_others_have_a_group(
    client: TestClient, keyring: Keyring
) -> None:
    prepare(client, name="mine", selector={"kind": "all"})
    sample(client, "mine", passes=1)
    freeze(client, "mine", runs=["mine"])
    assert client.post("/v1/prompts?set=o", json=[{"prompt": "mixed o", "reference": "4"}]).status_code == 201
    assert client.post("/v1/runs", json=RUN | {"name": "other", "prompt_set": "o"}).status_code == 201
    sample(client, "other", passes=1)
    [group] = client.get("/v1/groups?run=other").json()["items"]
    _, token = keyring.add("mine", Role.READ, ("mine",))

    theirs, nobodys = (
        client.get(f"/v1/datasets/mine@1/explain?group_id={one}", headers=bearer(token))
        for one in (group["id"], "g_of_nobody")
    )

    assert (theirs.status_code, theirs.json()["code"]) == (404, "group_not_found")
    assert theirs.text == nobodys.text.replace("g_of_nobody", group["id"])


# ---- pages of others


FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://[::1"},
    {"Origin": "http://localhost:9999"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_what_a_browser_sends_for_a_page_of_another_site_is_refused(
    client: TestClient, headers: dict[str, str]
) -> None:
    answer = client.post("/v1/prompts", json=[{"prompt": "2 + 2 =", "reference": "4"}], headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (403, "cross_site")
    assert client.get("/v1/prompts").json()["items"] == []


def test_a_link_on_another_site_may_be_followed_but_not_fetched(client: TestClient) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}

    assert client.get("/v1/runs", headers=link).status_code == 200
    assert client.get("/v1/runs", headers=link | {"Sec-Fetch-Mode": "no-cors"}).status_code == 403


def test_the_services_own_page_may_do_everything(client: TestClient) -> None:
    for own in ({"Sec-Fetch-Site": "same-origin", "Origin": "https://public.name"}, {"Origin": "http://127.0.0.1"}):
        answer = client.post("/v1/prompts", json=[{"prompt": "2 + 2 =", "reference": "4"}], headers=own)
        assert answer.status_code == 201


def test_a_name_that_somebody_pointed_at_this_machine_is_not_answered(open_service: OpenService) -> None:
    with open_service(allow_host=["gpu1"]) as client:
        answers = {
            host: client.get("/v1/runs", headers={"Host": host}).status_code
            for host in (
                "evil.example",
                "evil.example:8700",
                "gpu1",
                "gpu1:8700",
                "localhost:1",
                "[::1",
                "10.0.0.1",
            )
        }

    assert answers == {
        "evil.example": 403,
        "evil.example:8700": 403,
        "gpu1": 200,
        "gpu1:8700": 200,
        "localhost:1": 200,
        "[::1": 403,
        "10.0.0.1": 200,
    }


# ---- bodies


def parts_of(size: int, *, part: int = 2**16) -> Iterator[bytes]:
    """A body that does not say how long it is."""
    for _ in range(size // part):
        yield b" " * part


def test_a_body_without_a_length_is_refused_once_it_is_too_long(open_service: OpenService) -> None:
    with open_service(body_mib=1) as client:
        for path in ("/v1/prompts", "/v1/sql"):
            answer = client.post(path, content=parts_of(32 << 20), headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large"), path


def test_only_rows_may_be_large(client: TestClient) -> None:
    padded = json.dumps({"sql": "select 1"}) + " " * gate.SMALL_BODY

    answer = client.post("/v1/sql", content=padded, headers={"content-type": "application/json"})

    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_bodies_wait_for_room_and_are_told_when_there_is_none(tmp_path: Path) -> None:
    rows = json.dumps([{"prompt": "2 + 2 =", "reference": "4"}]).encode()
    with serving(tmp_path / "data", bodies_mib=4) as service, httpx2.Client(base_url=service.url, timeout=60) as client:
        headers = {"content-type": "application/json"}
        address = urlsplit(service.url)
        with socket.create_connection((str(address.hostname), address.port or 80), timeout=30) as slow:
            length = (3 << 20) + len(rows)
            slow.sendall(f"POST /v1/prompts HTTP/1.1\r\nHost: {address.netloc}\r\n".encode())
            slow.sendall(f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode())
            slow.sendall(b" " * (3 << 20))

            while (refused := client.post("/v1/prompts", content=b" " * (2 << 20), headers=headers)).status_code != 503:
                pass  # until the slow one has come so far
            small = client.post("/v1/prompts", content=rows, headers=headers)
            slow.sendall(rows)
            answered = slow.recv(2**16)
        accepted = client.post("/v1/prompts", content=b" " * (3 << 20) + rows, headers=headers)

    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "no_room", "5")
    assert (small.status_code, answered.split()[1], accepted.status_code) == (201, b"201", 201)


def test_what_could_be_read_as_two_requests_is_refused_and_the_connection_closed(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as service:
        address = urlsplit(service.url)
        smuggled = f"GET /v1/store HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n"
        lengths = f"Content-Length: {len(smuggled) + 5}\r\nTransfer-Encoding: chunked\r\n"
        with socket.create_connection((str(address.hostname), address.port or 80), timeout=30) as connection:
            head = f"POST /v1/sql HTTP/1.1\r\nHost: {address.netloc}\r\n{lengths}\r\n"
            connection.sendall(f"{head}0\r\n\r\n{smuggled}".encode())
            told = b"".join(iter(lambda: connection.recv(2**16), b""))

    assert told.startswith(b"HTTP/1.1 400")
    assert b"two_lengths" in told
    assert told.count(b"HTTP/1.1") == 1


def test_a_packed_body_finds_room_where_there_is_only_enough_for_one(open_service: OpenService) -> None:
    rows = json.dumps([{"prompt": "x" * 2**18, "reference": "4"}] * 3).encode()
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    with open_service(body_mib=1, bodies_mib=1) as client:
        for content in (gzip.compress(rows), gzip.compress(rows, compresslevel=0)):
            answer = client.post("/v1/prompts", content=content, headers=headers)
            assert answer.status_code == 201, answer.text


def body_of(parts: AsyncIterator[bytes], *, length: int, room: Shares, sender: str = "alice") -> gate.Body:
    async def receive() -> Message:
        return {"type": "http.request", "body": await anext(parts), "more_body": True}

    return gate.Body({"content-length": str(length)}, receive, 2**30, 0, room, sender)


async def trickle(part: bytes) -> AsyncIterator[bytes]:
    while True:
        await asyncio.sleep(0.01)
        yield part


def test_a_body_is_as_fast_as_it_comes_however_large_it_says_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "STALLED_SECONDS", 0.2)

    async def read(part: bytes, seconds: float) -> None:
        with body_of(trickle(part), length=2**28, room=Shares(lambda: 2**29)) as body:
            async with asyncio.timeout(seconds):
                while True:
                    await body.receive()

    with pytest.raises(gate.TooSlow):
        asyncio.run(read(b" ", 5))
    with pytest.raises(TimeoutError):  # of the test
        asyncio.run(read(b" " * 2**16, 1))


def test_small_bodies_wait_for_no_room_and_large_ones_find_what_one_caller_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "ROOM_SECONDS", 0.1)
    room = Shares(lambda: 2**22, most_of_one=lambda: 2**21)

    async def scenario() -> int:
        with ExitStack() as stack:

            async def read(length: int, sender: str) -> None:
                await stack.enter_context(body_of(trickle(b" "), length=length, room=room, sender=sender)).receive()

            await read(2**21, "hoarder")
            with pytest.raises(Overloaded):
                await read(2**21, "hoarder")
            await read(gate.FREE_BODY, "hoarder")
            await read(2**21, "alice")
            await read(gate.FREE_BODY, "bob")
            return room.held

    assert asyncio.run(scenario()) == 2**22
    assert room.held == 0


def test_every_answer_tells_browsers_not_to_guess_and_not_to_frame(client: TestClient) -> None:
    for answer in (client.get("/v1/runs"), client.get("/nowhere"), client.get("/livez")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors" in answer.headers["content-security-policy"]


# ---- checkpoints


def test_who_has_a_key_names_checkpoints_within_the_roots_and_learns_nothing_of_others(
    open_service: OpenService, keyring: Keyring, tmp_path: Path
) -> None:
    inside, outside = (shutil.copytree(EMBEDDED, tmp_path / name / "c") for name in ("inside", "outside"))
    (tmp_path / "inside" / "link").symlink_to(outside)
    adapter = tmp_path / "inside" / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").touch()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(outside)}))
    _, token = keyring.add("trainer", Role.WRITE)
    with open_service(checkpoint_root=[tmp_path / "inside"]) as client, asked_by(client, token):

        def publish(checkpoint: Path | str) -> tuple[int, str]:
            answer = client.post("/v1/policies/policy/versions", json={"checkpoint": str(checkpoint)})
            return answer.status_code, answer.json().get("code", "")

        assert publish(inside) == (202, "")
        refused = [
            outside,
            tmp_path / "inside" / "link",
            adapter,
            inside / ".." / ".." / "outside" / "c",
            "/nowhere",
            "/",
        ]
        assert {publish(checkpoint) for checkpoint in refused} == {(422, "checkpoint_outside")}


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254",
        "http://169.254.169.254:80/latest",
        "http://[fe80::1]",
        "http://metadata.google.internal",
        "http://METADATA.google.internal.",
        "http://[fd00:ec2::254]",
        "http://[FD00:EC2:0::254]",
        "http://[::ffff:169.254.169.254]",
        "http://2852039166",
        "http://0xa9.254.43518",
    ],
)
def test_an_engine_or_a_verifier_is_not_where_clouds_keep_their_secrets(url: str) -> None:
    with pytest.raises(ValueError, match="secrets"):
        parse_declared(f"gym=nemo_gym:{url}")
    with pytest.raises(ValueError, match="secrets"):
        parse_worker(url)
    with pytest.raises(ValueError, match="secrets"):
        parse_worker(f"http://gpu1:8000,admin={url}")


def test_a_password_in_an_address_is_told_nobody() -> None:
    with pytest.raises(ValueError, match="engine_api_key"):
        parse_worker("http://user:secret@gpu1:8000")
    with pytest.raises(ValueError, match="engine_api_key"):
        parse_worker("http://gpu1:8000,admin=http://secret@gpu1:8001")

    async def ask() -> str:
        line = Line("http://user:secret@127.0.0.1:1/gym/")
        with pytest.raises(Failed) as failed:
            await line.post("/verify", {})
        await line.close()
        return str(failed.value)

    told = asyncio.run(ask())

    assert told.startswith("POST http://127.0.0.1:1/gym/verify: ")
    assert "secret" not in told


def test_no_server_sends_the_service_elsewhere() -> None:
    asked: list[str] = []

    class Redirecting(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(307)
            self.send_header("Location", "/secrets")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    async def ask(url: str) -> None:
        async with aiohttp.ClientSession() as session:
            link = Link(session, url, "key")
            with pytest.raises(Fault, match="307"):
                await link.post("/generate", {})
            with pytest.raises(Fault, match="307"):
                await link.get("/model_info")
        line = Line(url)
        with pytest.raises(Failed, match="307"):
            await line.post("/verify", {})
        await line.close()

    with ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as server:
        threading.Thread(target=server.serve_forever).start()
        asyncio.run(ask(f"http://127.0.0.1:{server.server_port}"))
        server.shutdown()

    assert asked == ["/generate", "/model_info", "/verify", "/verify"]
