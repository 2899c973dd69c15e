"""Many clients at once, slow ones and hostile ones at a real service: whoever behaves is served, memory has a limit,
and the service ends when it is told to."""

import json
import random
import signal
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from benchmarks.faults.processes import descendants
from tests.processes import serving
from tests.test_command import prompts_file
from trainers.client import Refinery

CROWD = 200
MIB = 1 << 20
PASSING = {429, 503}
GRACE_SECONDS = 10.0
"""That requests have to be answered in when the service is told to end."""


def a_group(number: int) -> dict[str, Any]:
    row = {"prompt": f"{number} + 1 =", "reference": str(number + 1), "verifier": "numeric"}
    return row | {"rollouts": [{"text": str(number + off)} for off in (1, 2)]}


def peak_mib(process: int) -> float:
    """The most memory that it ever had."""
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


# ---- many


def test_two_hundred_clients_at_once_are_all_answered_and_what_was_acknowledged_is_there(tmp_path: Path) -> None:
    ready = threading.Barrier(CROWD)

    def one(number: int) -> list[httpx2.Response]:
        with httpx2.Client(base_url=service.url, timeout=60) as client:
            ready.wait()
            key = {"Idempotency-Key": str(number)}
            imported = client.post("/v1/rollouts/import?run=r", json=[a_group(number)], headers=key)
            return [imported, client.get("/v1/runs/r"), client.get("/v1/groups?run=r&limit=10"), client.get("/livez")]

    with serving(tmp_path / "data") as service, ThreadPoolExecutor(CROWD) as crowd, Refinery(service.url) as client:
        client.import_groups([a_group(CROWD)], "r")
        answers = list(crowd.map(one, range(CROWD)))
        there = {group["prompt_id"] for group in client.groups("r")}

    refused = [answer for told in answers for answer in told if answer.status_code >= 400]
    assert all(answer.status_code in PASSING and answer.headers["retry-after"] for answer in refused)
    assert len(there) == 1 + sum(imported.status_code == 201 for imported, *_ in answers)
    assert {told[-1].status_code for told in answers} == {200}


# ---- hostile


def bomb(size: int) -> bytes:
    """So many blanks."""
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    part = b" " * MIB
    return b"".join([*(packer.compress(part) for _ in range(size // MIB)), packer.flush()])


def test_bombs_at_once_are_refused_within_their_room_and_others_are_served(tmp_path: Path) -> None:
    packed = bomb(1 << 30)
    headers = {"content-type": "application/x-ndjson", "content-encoding": "gzip"}

    def throw(_: int) -> tuple[int, str]:
        answer = httpx2.post(f"{service.url}/v1/rollouts/import?run=r", content=packed, headers=headers, timeout=120)
        return answer.status_code, answer.json()["code"]

    with (
        serving(tmp_path / "data", body_mib=64, bodies_mib=128) as service,
        Refinery(service.url) as client,
        ThreadPoolExecutor(8) as throwers,
    ):
        client.import_groups([a_group(0)], "r")
        before = peak_mib(service.process.pid)
        thrown = [throwers.submit(throw, number) for number in range(8)]
        waits = []
        while not all(one.done() for one in thrown):
            began = time.monotonic()
            assert client.get("/v1/groups", run="r")["items"]
            waits.append(time.monotonic() - began)
        grown = peak_mib(service.process.pid) - before
        told = {one.result() for one in thrown}
        client.import_groups([a_group(1)], "r")

    assert len(packed) < 8 * MIB
    assert (413, "body_too_large") in told <= {(413, "body_too_large"), (503, "no_room")}
    assert grown < 400, grown  # two in their room at a time, each twice: as it grows, and whole
    assert max(waits) < 5, max(waits)


# ---- the end


class Load:
    """Clients of every kind, each with a thread of its own, until the service is gone."""

    def __init__(self, url: str, path: str) -> None:
        """`path` is that of a file to read slowly."""
        self._url, self._path = url, path
        self.acknowledged: set[int] = set()
        """Numbers of imported groups."""
        self.strange: list[str] = []
        """Answers that should not be."""
        self._numbers = count()
        self._gone = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        acts = [*[self._import] * 6, *[self._look] * 4, self._wait, self._ask, self._read_slowly]
        threads = [threading.Thread(target=self._again, args=(act,)) for act in acts]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._gone.set()
            for thread in threads:
                thread.join()

    def _again(self, act: Callable[[httpx2.Client], None]) -> None:
        with httpx2.Client(base_url=self._url, timeout=60) as client:
            while not self._gone.is_set():
                try:
                    act(client)
                except httpx2.TransportError:  # it ends, or has ended
                    self._gone.wait(0.05)

    def _import(self, client: httpx2.Client) -> None:
        number = next(self._numbers)
        headers = {"Idempotency-Key": str(number)}
        answer = client.post("/v1/rollouts/import?run=recorded", json=[a_group(number)], headers=headers)
        if self._is_good(answer):
            self.acknowledged.add(number)

    def _look(self, client: httpx2.Client) -> None:
        self._is_good(client.get("/v1/groups?run=recorded&limit=50"))
        self._is_good(client.get("/v1/runs/r"))

    def _wait(self, client: httpx2.Client) -> None:
        self._is_good(client.post("/v1/runs/recorded/leases", json={"groups": 100_000, "wait": 300}))

    def _ask(self, client: httpx2.Client) -> None:
        endless = {"sql": "select count(*) from range(1000000000000)", "timeout_ms": 60_000}
        self._is_good(client.post("/v1/sql", json=endless))

    def _read_slowly(self, _: httpx2.Client) -> None:
        """A kilobyte a second."""
        address = urlsplit(self._url)
        with socket.create_connection((str(address.hostname), address.port or 80), timeout=60) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(f"GET {self._path} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
            while connection.recv(1024) and not self._gone.wait(1.0):
                pass

    def _is_good(self, answer: httpx2.Response) -> bool:
        if answer.status_code >= 400 and not (answer.status_code in PASSING and "retry-after" in answer.headers):
            self.strange.append(f"{answer.request.url}: {answer.status_code} {answer.text}")
        return answer.status_code < 400


def test_a_service_that_is_told_to_end_under_load_ends_in_time_and_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in prompts_file(tmp_path).read_text().splitlines()]
    noise = [random.Random(n).randbytes(MIB // 2).hex() for n in range(8)]
    wide = [a_group(-n) | {"rollouts": [{"text": noise[n]}, {"text": str(1 - n)}]} for n in range(8)]
    run = {"name": "r", "policy": "policy", "prompt_set": "s", "sampling": {"n": 4, "max_tokens": 80}}
    with serving(tmp_path / "data") as service, Refinery(service.url) as client:
        client.add_prompts(rows, "s")
        client.post("/v1/runs", run)
        client.import_groups(wide, "wide")
        client.import_groups([a_group(-100)], "recorded")
        frozen = client.post("/v1/datasets", {"name": "d", "recipe": {"runs": ["wide"]}})
        job = client.post("/v1/runs/r/rollouts", {"passes": 4})
        load = Load(service.url, frozen["urls"]["train.parquet"])
        with load.running():
            while len(load.acknowledged) < 50 or not client.get("/v1/runs/r")["funnel"]["rollouts"]:
                time.sleep(0.05)
            lease = client.lease("recorded", 20, key="mine")
            family = descendants(service.process.pid)
            began = time.monotonic()
            code = service.end(signal.SIGTERM)
            seconds = time.monotonic() - began

    with serving(tmp_path / "data") as service, Refinery(service.url) as client:
        again = client.lease("recorded", 20, key="mine")
        done = client.wait(client.get(f"/v1/jobs/{job['id']}"))
        stored = [group["prompt_id"] for group in client.groups("recorded")]
        prompts = {prompt["id"]: prompt["prompt"] for prompt in client.prompts("recorded")}
        damages = client.get("/v1/store/check")["damages"]

    assert (code, load.strange) == (0, [])
    assert seconds < GRACE_SECONDS + 10, seconds
    assert [one.title for one in family if one.is_there] == []
    assert len(stored) == len(set(stored))
    assert {f"{number} + 1 =" for number in load.acknowledged} <= {prompts[prompt_id] for prompt_id in stored}
    assert (again["group_ids"], again["rows"]) == (lease["group_ids"], lease["rows"])
    assert (done["state"], damages) == ("done", [])
    assert "Traceback" not in (tmp_path / "service.log").read_text()
