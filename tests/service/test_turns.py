"""Whoever asks for much at once waits, and nobody else does."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.access import Keyring, Role
from service.api import descriptions, replay, turns
from service.freezing import Freezer
from tests.service.steps import freeze, prepare, sample

REPLAY = {"run": "r", "selectors": [{"kind": "all"}], "seeds": 2}


class Gatekeeper:
    """Stands before something slow, and counts who is in there."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._counting = threading.Condition()
        self.inside = 0
        self.open = threading.Event()

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        with self._counting:
            self.inside += 1
            self._counting.notify_all()
        self.open.wait(60)
        return self._function(*arguments, **options)

    def until(self, inside: int) -> None:
        with self._counting:
            assert self._counting.wait_for(lambda: self.inside >= inside, 60)


@pytest.fixture
def sampled(client: TestClient) -> TestClient:
    prepare(client)
    sample(client, passes=1)
    freeze(client)
    return client


@pytest.fixture
def asking(sampled: TestClient, tmp_path: Path) -> Iterator[Any]:
    """A function that sends a request of somebody, and goes on."""
    keyring = Keyring(tmp_path / "data")
    tokens = {name: keyring.add(name, Role.WRITE)[1] for name in ("flood", "late")}
    with ThreadPoolExecutor(40) as pool:

        def ask(who: str, method: str, path: str, body: Any = None) -> Any:
            headers = {"Authorization": f"Bearer {tokens[who]}"}
            return pool.submit(sampled.request, method, path, json=body, headers=headers)

        yield ask


@pytest.mark.parametrize(
    ("place", "name", "request_of_flood"),
    [
        (replay, "replay", ("POST", "/v1/replay", REPLAY)),
        (descriptions, "statistics", ("GET", "/v1/datasets/d@1/statistics")),
    ],
)
def test_who_asks_what_takes_long_many_times_keeps_neither_threads_nor_turns_from_others(
    asking: Any, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, request_of_flood: tuple[Any, ...]
) -> None:
    slow = Gatekeeper(getattr(place, name))
    monkeypatch.setattr(place, name, slow)
    flood = [asking("flood", *request_of_flood) for _ in range(12)]
    slow.until(2)

    late = asking("late", *request_of_flood)

    slow.until(3)
    assert asking("late", "GET", "/v1/runs").result(30).status_code == 200
    assert slow.inside == 3
    slow.open.set()
    assert {answer.result(60).status_code for answer in (*flood, late)} == {200}


def test_who_asks_too_often_is_told_to_come_again(asking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MOST_WAITING", 3)
    slow = Gatekeeper(descriptions.statistics)
    monkeypatch.setattr(descriptions, "statistics", slow)
    flood = [asking("flood", "GET", "/v1/datasets/d@1/statistics") for _ in range(8)]
    slow.until(2)

    refused = [answer.result() for answer in islice(as_completed(flood, 60), 3)]
    slow.open.set()

    assert {(answer.status_code, answer.headers["retry-after"]) for answer in refused} == {(429, "5")}
    assert sorted(answer.result(60).status_code for answer in flood) == [200] * 5 + [429] * 3


def test_freezes_take_turns_too(asking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Gatekeeper(Freezer._make)
    monkeypatch.setattr(Freezer, "_make", lambda *arguments: slow(*arguments))
    bodies = [{"name": f"d{n}", "recipe": {"runs": ["r"], "seed": n}} for n in range(6)]
    flood = [asking("flood", "POST", "/v1/datasets", body) for body in bodies[:5]]
    slow.until(2)

    late = asking("late", "POST", "/v1/datasets", bodies[5])

    slow.until(3)
    assert slow.inside == 3
    slow.open.set()
    assert {answer.result(60).status_code for answer in (*flood, late)} == {201}
