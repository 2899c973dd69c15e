"""SQL asked of a real service: what its questions cost, who else notices, and what their processes know.

`refinery bench sql` has the times of good questions, and of commits beside heavy ones.
"""

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from benchmarks.faults.processes import Process, of_service
from benchmarks.faults.schedule import Target
from tests.processes import Service, serving
from tests.test_command import RECORDED
from trainers.client import Refinery

MIB, GIB = 1 << 20, 1 << 30
SECRET = "hf_what_nobody_may_see"
SECONDS = 2.0
BOMBS = {
    "a long text": "select length(repeat('a', 4000000000))",
    "a text that is filled up": "select length(lpad('a', 2000000000, 'b'))",
    "a long list": "select len(list_transform(range(300000000), x -> x * 2))",
    "a sorted list": "select list_sort(range(100000000))[1]",
    "a matrix of a function": "select damerau_levenshtein(repeat('ab', 30000), repeat('ba', 30000))",
    "a long condition": f"select 1 where 1 in ({','.join(map(str, range(500_000)))})",
}
WIDE = "select i, repeat('x', 1000) as wide from range(100000000) r(i)"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data = tmp_path_factory.mktemp("asking") / "data"
    with serving(data, environment={"HF_TOKEN": SECRET, "REFINERY_ENGINE_API_KEY": SECRET}) as service:
        with Refinery(service.url) as client:
            client.import_groups([RECORDED | {"prompt": f"{n} + 1 ="} for n in range(20)], "r")
            client.post("/v1/store/compact", {})
        yield service


def status(pid: int, name: str) -> int:
    """Bytes that a process has in memory (VmRSS), or had at most (VmHWM); 0 where it is gone."""
    try:
        told = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(rf"^{name}:\s+(\d+) kB$", told, re.MULTILINE)
    return int(found[1]) << 10 if found else 0


class Memory:
    """The most that the service took more than before, and the most that any process of a question had."""

    service = questions = 0


@contextmanager
def watched(service: Service) -> Iterator[Memory]:
    over, seen = threading.Event(), Memory()
    before = status(service.process.pid, "VmRSS")

    def watch() -> None:
        while not over.wait(0.02):
            seen.service = max(seen.service, status(service.process.pid, "VmRSS") - before)
            each = [status(one.pid, "VmHWM") for one in of_service(service.process.pid, Target.SQL)]
            seen.questions = max(seen.questions, *each, 0)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield seen
    finally:
        over.set()
        watching.join()


def rows(client: httpx2.Client) -> list[list[int]]:
    found: list[list[int]] = client.post("/v1/sql", json={"sql": "select count(*) from groups"}).json()["rows"]
    return found


@pytest.mark.parametrize("name", BOMBS)
def test_a_question_that_wants_all_memory_ends_in_time_and_the_service_does_not_grow(
    service: Service, name: str
) -> None:
    asked = {"sql": BOMBS[name], "timeout_ms": 1000 * SECONDS}
    with httpx2.Client(base_url=service.url, timeout=60) as client, watched(service) as memory:
        assert rows(client) == [[20]]
        began = time.monotonic()
        answer = client.post("/v1/sql", json=asked)
        seconds = time.monotonic() - began
        assert rows(client) == [[20]]

    assert (answer.status_code, answer.json()["code"]) in {
        (408, "sql_timeout"),
        (422, "sql_out_of_memory"),
        (422, "sql_too_long"),
    }
    assert seconds < SECONDS + 3.0  # half a second, and the rest for a busy machine
    assert 0 < memory.questions <= 3 * GIB
    assert memory.service < 64 * MIB


def test_an_endless_answer_begins_at_once_needs_no_memory_and_ends_with_its_reader(service: Service) -> None:
    before = set(of_service(service.process.pid, Target.SQL))
    with httpx2.Client(base_url=service.url, timeout=60) as client, watched(service) as memory:
        began, size, first = time.monotonic(), 0, 0.0
        asked = {"sql": WIDE, "format": "csv", "timeout_ms": 60_000}
        with client.stream("POST", "/v1/sql", json=asked) as answer:
            for chunk in answer.iter_raw():
                first = first or time.monotonic() - began
                size += len(chunk)
                if size > 64 * MIB:
                    break
        left = time.monotonic()
        while before <= set(of_service(service.process.pid, Target.SQL)):
            time.sleep(0.05)
            assert time.monotonic() < left + 10
        assert rows(client) == [[20]]

    assert first < 5.0
    assert memory.service < 64 * MIB
    assert memory.questions < GIB


def test_a_long_answer_is_cut_and_a_huge_cell_is_passed_on_bit_by_bit(service: Service) -> None:
    with httpx2.Client(base_url=service.url, timeout=60) as client, watched(service) as memory:
        cut = client.post("/v1/sql", json={"sql": WIDE, "limit": 100_000}).json()
        size = 0
        asked = {"sql": "select repeat('x', 100_000_000) as cell", "format": "ndjson"}
        with client.stream("POST", "/v1/sql", json=asked) as answer:
            for chunk in answer.iter_raw():
                size += len(chunk)

    assert cut["truncated"]
    assert len(cut["rows"]) * 1000 < 32 * MIB < (len(cut["rows"]) + 100) * 1010
    assert size == 100_000_000 + len('{"cell": ""}\n')
    assert memory.service < 96 * MIB
    assert memory.questions < GIB


def test_processes_of_questions_know_no_secret(service: Service) -> None:
    """The outermost of a container is in nobody's way when it is looked at from inside; so it must know nothing."""
    with httpx2.Client(base_url=service.url, timeout=60) as client:
        assert rows(client) == [[20]]
        asked = {"sql": "select count(*) from range(1000000000000)", "timeout_ms": 2000}
        with ThreadPoolExecutor(1) as thread:
            asking = thread.submit(client.post, "/v1/sql", json=asked)
            time.sleep(1.0)
            known = {one: environment(one) for one in of_service(service.process.pid, Target.SQL)}
            assert asking.result().status_code == 408

    assert SECRET in Path(f"/proc/{service.process.pid}/environ").read_text()
    assert len(known) >= 3
    assert {name for names in known.values() for name in names} <= {"HOME", "PATH", "PWD", "LC_CTYPE"}
    assert any(names == [] for names in known.values())


def environment(process: Process) -> list[str]:
    """The names in it."""
    text = Path(f"/proc/{process.pid}/environ").read_text()
    assert SECRET not in text
    return [line.partition("=")[0] for line in text.split("\0") if line]


def test_an_answer_that_cannot_be_finished_breaks_off_and_the_log_has_a_line_of_it(service: Service) -> None:
    slow = "damerau_levenshtein(repeat('ab', 30000 + i % 2), repeat('ba', 30000))"
    asked = {
        "sql": f"select i, case when i < 100000 then 0 else {slow} end from range(200000) r(i)",
        "timeout_ms": 2000,
    }
    logged = len(service.log.read_text())

    with httpx2.stream("POST", f"{service.url}/v1/sql", json=asked, headers={"accept": "text/csv"}) as answer:
        status = answer.status_code
        with pytest.raises(httpx2.RemoteProtocolError):
            answer.read()

    told = service.log.read_text()[logged:]
    assert status == 200
    assert "an answer broke off: the answer could not be finished in time" in told
    assert "Traceback" not in told
    assert "ASGI callable" not in told
