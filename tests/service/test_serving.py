"""Frozen files from a real service process: every reader gets the very same, and no reader can spoil it for another."""

import asyncio
import os
import random
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import datasets
import duckdb
import httpx2
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn
from uvicorn.server import ServerState

from curation.keys import rng_for
from service import sending
from service.api.datasets import _arrow as arrow_stream
from service.sending import SendingFiles
from tests.extensions import extension
from tests.processes import Service, serving
from trainers.client import Refinery

PROMPTS, BYTES = 100, 30_000


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: a", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n"]
)
def test_whoever_does_not_come_to_the_point_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """Also between two requests, and where the rest of a body that nobody wants to have comes byte by byte."""
    monkeypatch.setattr(sending, "HEAD_SECONDS", 0.3)

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.6 if scope["path"] == "/slow" else 0)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def scenario() -> bytes:
        config = uvicorn.Config(answer, lifespan="off", log_config=None)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: SendingFiles(config, ServerState(), {}), "127.0.0.1", 0)
        async with server, asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n" + sent)
            told = b""
            while not reader.at_eof():
                with suppress(ConnectionError):
                    writer.write(b"x" if sent else b"")
                    await writer.drain()
                with suppress(TimeoutError):
                    told += await asyncio.wait_for(reader.read(2**16), 0.05)
            writer.close()
        return told

    assert asyncio.run(scenario()).startswith(b"HTTP/1.1 204")


class Served(NamedTuple):
    url: str
    """Of the Parquet file."""
    path: Path
    log: Path
    process: int

    @property
    def body(self) -> bytes:
        return self.path.read_bytes()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return pl.read_parquet(self.path).to_dicts()

    def sibling(self, name: str) -> str:
        """URL of another file of the version."""
        return self.url.rpartition("/")[0] + "/" + name

    def resident_mib(self) -> float:
        pages = int(Path(f"/proc/{self.process}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 2**20

    def connect(self, url: str | None = None) -> socket.socket:
        address = urlsplit(url or self.url)
        connection = socket.create_connection((str(address.hostname), address.port or 80), timeout=30)
        connection.sendall(f"GET {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
        return connection

    def open_files(self) -> int:
        return sum(self._is_of_the_file(link) for link in Path(f"/proc/{self.process}/fd").iterdir())

    def _is_of_the_file(self, link: Path) -> bool:
        try:
            return os.readlink(link) == str(self.path.resolve())
        except FileNotFoundError:  # closed meanwhile
            return False


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A file that is larger than the buffers of a socket."""
    folder = tmp_path_factory.mktemp("served")
    rng = random.Random(0)
    rows = [
        {
            "prompt": f"{n} + 1?",
            "reference": str(n + 1),
            "verifier": "numeric",
            "rollouts": [{"text": f"{rng.randbytes(BYTES).hex()} <answer>{n + k}</answer>"} for k in (0, 1)],
        }
        for n in range(PROMPTS)
    ]
    with serving(folder / "data") as service, httpx2.Client(base_url=service.url, timeout=60) as client:
        client.post("/v1/rollouts/import?run=r", json=rows).raise_for_status()
        frozen = client.post("/v1/datasets", json={"name": "d", "recipe": {"runs": ["r"]}}).raise_for_status().json()
        path = folder / "data" / "datasets" / frozen["dataset_id"] / "train.parquet"
        assert (frozen["manifest"]["rows"], path.stat().st_size > 5_000_000) == (PROMPTS, True)
        yield Served(service.url + frozen["urls"]["train.parquet"], path, folder / "service.log", service.process.pid)


def test_datasets_loads_the_very_same_rows(served: Served, tmp_path: Path) -> None:
    loaded = datasets.load_dataset("parquet", data_files=served.url, split="train", cache_dir=str(tmp_path))

    assert loaded.to_list() == served.rows


def test_datasets_streams_the_very_same_rows(served: Served) -> None:
    assert list(datasets.load_dataset("parquet", data_files=served.url, split="train", streaming=True)) == served.rows


def test_polars_scans_the_very_same_rows_and_columns_of_them(served: Served) -> None:
    scanned = pl.scan_parquet(served.url)

    assert scanned.collect().to_dicts() == served.rows
    assert scanned.select("margin").head(3).collect()["margin"].to_list() == [row["margin"] for row in served.rows[:3]]


def test_duckdb_reads_the_very_same_rows(served: Served) -> None:
    pytest.importorskip("duckdb_extension_httpfs", reason="DuckDB reads no URL without duckdb-extension-httpfs")
    httpfs = extension("duckdb_extension_httpfs")
    with duckdb.connect() as connection:
        connection.execute(f"load '{httpfs}'")
        assert connection.sql(f"from '{served.url}'").pl().to_dicts() == served.rows
        assert connection.sql(f"select count(*) from '{served.url}' where margin > 0").fetchall() == [(PROMPTS,)]


def test_a_version_is_the_same_bytes_after_ten_thousand_rollouts_a_compaction_and_a_kill(tmp_path: Path) -> None:
    def groups(first: int, many: int) -> list[dict[str, Any]]:
        rollouts = [{"text": "4", "reward": 1.0}, {"text": "5", "reward": 0.0}]
        return [{"prompt": f"{n}?", "verifier": "recorded", "rollouts": rollouts} for n in range(first, first + many)]

    def sums(service: Service) -> dict[str, str]:
        names = [*frozen["manifest"]["files"], "train.arrow", "train.jsonl", "test.jsonl", "rows", "statistics"]
        answers = {name: httpx2.get(f"{service.url}/v1/datasets/d@1/{name}").raise_for_status() for name in names}
        return {name: sha256(answer.content).hexdigest() for name, answer in answers.items()}

    recipe = {"runs": ["r"], "test_share": 0.2}
    with serving(tmp_path / "data") as service, Refinery(service.url) as client:
        client.import_groups(groups(0, 200), "r")
        frozen = client.post("/v1/datasets", {"name": "d", "recipe": recipe})
        before = sums(service)
        for part in range(1, 6):
            client.import_groups(groups(1000 * part, 1000), "r")
        client.post("/v1/store/compact", {})
        newer = client.post("/v1/datasets", {"name": "d", "recipe": recipe})
        after = sums(service)
        service.end(signal.SIGKILL)
    with serving(tmp_path / "data") as service:
        again = sums(service)

    assert (frozen["manifest"]["rows"], newer["manifest"]["rows"], newer["version"]) == (200, 5_200, 2)
    assert before == after == again
    assert {name: said["sha256"] for name, said in frozen["manifest"]["files"].items()}.items() <= before.items()


def test_a_download_that_broke_off_goes_on_where_it_was(served: Served, tmp_path: Path) -> None:
    part = tmp_path / "part"
    with subprocess.Popen(["curl", "-s", "--limit-rate", "50K", "-o", part, served.url]) as broken:
        while not part.exists() or not part.stat().st_size:
            assert broken.poll() is None
            time.sleep(0.02)
        broken.kill()
    had = part.stat().st_size

    again = ["curl", "-s", "-C", "-", "-o", part, "-w", "%{http_code} %{size_download}", served.url]
    resumed = subprocess.run(again, capture_output=True, text=True, check=True).stdout

    assert 0 < had < len(served.body)
    assert resumed == f"206 {len(served.body) - had}"
    assert part.read_bytes() == served.body


def test_one_connection_carries_whole_files_ranges_heads_and_what_is_known_in_turn(served: Served) -> None:
    with httpx2.Client(limits=httpx2.Limits(max_connections=1)) as client:
        for _ in range(3):
            whole = client.get(served.url)
            head = client.head(served.url)
            part = client.get(served.url, headers={"Range": "bytes=1000-3000000"})
            two = client.get(served.url, headers={"Range": "bytes=0-3,-4"})
            beyond = client.get(served.url, headers={"Range": f"bytes={len(served.body)}-"})
            known = client.get(served.url, headers={"If-None-Match": whole.headers["etag"]})

            assert (whole.status_code, whole.content) == (200, served.body)
            assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(served.body)))
            assert (part.status_code, part.content) == (206, served.body[1000:3000001])
            assert (two.status_code, two.content.count(b"PAR1")) == (206, 2)
            assert (beyond.status_code, known.status_code, known.content) == (416, 304, b"")


def test_a_small_answer_does_not_wait_for_the_acknowledgement_of_its_head(served: Served) -> None:
    with httpx2.Client(base_url=served.url.partition("/v1")[0]) as client:
        waits = [client.get("/livez").elapsed.total_seconds() for _ in range(20)]

    assert min(waits[1:]) < 0.03  # a delayed acknowledgement takes 0.04


def test_requests_that_do_not_wait_for_answers_get_all_of_them(served: Served) -> None:
    with served.connect() as connection, served.connect():
        path = urlsplit(served.url).path
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answers = b"".join(iter(lambda: connection.recv(2**20), b""))

    for answer in answers.split(b"HTTP/1.1 200 OK\r\n")[1:]:
        assert answer.partition(b"\r\n\r\n")[2] == served.body
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 2


def test_readers_that_stand_still_or_vanish_harm_nobody_and_leave_nothing_open(served: Served) -> None:
    said = len(served.log.read_text())
    still = [served.connect() for _ in range(50)]
    while served.open_files() < 50:
        time.sleep(0.02)

    assert httpx2.get(served.url).content == served.body
    for number, connection in enumerate(still):
        if number % 2:  # half of them with a reset
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    until = time.monotonic() + 30
    while served.open_files() and time.monotonic() < until:
        time.sleep(0.02)
    assert served.open_files() == 0
    assert httpx2.get(served.url).content == served.body
    assert "Traceback" not in served.log.read_text()[said:]
    assert "ERROR" not in served.log.read_text()[said:]


def test_readers_at_a_kilobyte_a_second_get_what_is_there_and_cost_nobody_else_anything(served: Served) -> None:
    whole = {name: httpx2.get(served.sibling(name)).content for name in ("train.parquet", "train.jsonl")}
    before = served.resident_mib()
    over = threading.Event()

    def read(number: int) -> tuple[str, bytes]:
        name = list(whole)[number % len(whole)]
        got = bytearray()
        with served.connect(served.sibling(name)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            while not over.wait(1.0):
                got += connection.recv(1024)
        return name, got.partition(b"\r\n\r\n")[2]

    with ThreadPoolExecutor(30) as readers:
        reading = [readers.submit(read, number) for number in range(30)]
        began = time.monotonic()
        seconds = []
        while time.monotonic() < began + 4 or len(seconds) < 3:
            asked = time.monotonic()
            assert httpx2.get(served.url).content == served.body
            seconds.append(time.monotonic() - asked)
        held = served.resident_mib() - before
        over.set()

    for name, got in (one.result() for one in reading):
        assert 0 < len(got) < 8 * 1024
        assert whole[name].startswith(got)
    assert max(seconds) < 15
    assert held < 50, held


def test_a_reader_of_an_arrow_stream_that_stands_still_holds_a_few_pages_of_it(tmp_path: Path) -> None:
    text = [rng_for(0, "row", row).randbytes(1500).hex() for row in range(10_000)]
    table = pa.table({"prompt": text, "chosen": text[::-1], "margin": [float(row) for row in range(10_000)]})
    path = tmp_path / "train.parquet"
    pq.write_table(table, path, compression="zstd", row_group_size=10_000)  # of 57 MiB

    before = pa.total_allocated_bytes()
    standing = [arrow_stream([path]) for _ in range(10)]
    for reader in standing:
        next(reader), next(reader)
    held = pa.total_allocated_bytes() - before

    assert held < 10 * 57 * 2**20 / 3
    assert pa.ipc.open_stream(b"".join(arrow_stream([path]))).read_all() == table


@pytest.mark.parametrize("path", ["/v1/prompts", "/v1/rollouts/import?run=r", "/v1/datasets", "/v1/sql"])
def test_senders_that_vanish_in_the_middle_of_a_request_are_no_error(served: Served, path: str) -> None:
    said = len(served.log.read_text())
    address = urlsplit(served.url)
    head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nIdempotency-Key: k\r\nContent-Type: application/json\r\n"
    for sent in (b"", b"[{"):
        with socket.create_connection((str(address.hostname), address.port or 80), timeout=30) as vanishing:
            vanishing.sendall(head.encode() + b"Content-Length: 100\r\n\r\n" + sent)

    time.sleep(0.5)
    assert httpx2.get(served.url).content == served.body
    assert "Traceback" not in served.log.read_text()[said:]
    assert "ERROR" not in served.log.read_text()[said:]
