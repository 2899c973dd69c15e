"""The store: committed before acknowledged, all or nothing, one process."""

import asyncio
import builtins
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from curation.records import Prompt
from service.parts import utc_now
from service.stages import StoreFailed
from service.store.duck import Duck
from service.store.opening import Locked
from service.store.prompts import Prompts
from service.store.transaction import Transaction
from tests.service.conftest import OpenService
from tests.service.steps import freeze, prepare, sample


def member(name: str) -> dict[str, str]:
    return {"prompt_set": "s", "prompt_id": name}


def members(duck: Duck) -> list[str]:
    return [row["prompt_id"] for row in asyncio.run(duck.read("select prompt_id from prompt_sets order by 1"))]


def test_prompts_by_the_ten_thousand_are_known_again_as_fast_as_they_were_added(duck: Duck) -> None:
    """Nobody else can write meanwhile."""
    prompts = Prompts(duck)
    many = [Prompt(f"p_{n:032x}", "2 + 2 =", "4", "numeric", {}) for n in range(40_000)]
    names = [prompt.id for prompt in many]

    def seconds(work: Callable[[], Coroutine[Any, Any, Any]]) -> float:
        began = time.monotonic()
        asyncio.run(work())
        return time.monotonic() - began

    first = seconds(lambda: prompts.add(many, "s", utc_now()))
    again = seconds(lambda: prompts.add(many, "s", utc_now()))
    found = seconds(lambda: prompts.get(names))

    assert max(again, found) < 2 * first + 2


def test_a_failing_write_leaves_no_trace_and_spares_its_neighbours(duck: Duck) -> None:
    def failing(tx: Transaction) -> None:
        tx.insert("prompt_sets", [member("bad")])
        raise ZeroDivisionError

    def writing(name: str) -> Any:
        return lambda tx: tx.insert("prompt_sets", [member(name)])

    async def together() -> list[Any]:
        operations = [writing("a"), failing, writing("b"), failing, writing("c")]
        return await asyncio.gather(*(duck.write(o) for o in operations), return_exceptions=True)

    results = asyncio.run(together())

    assert [isinstance(result, ZeroDivisionError) for result in results] == [False, True, False, True, False]
    assert members(duck) == ["a", "b", "c"]


def test_a_write_sees_what_it_inserted_even_while_it_inserts(duck: Duck) -> None:
    def counting(tx: Transaction) -> None:
        def rows() -> Iterator[dict[str, str]]:
            for _ in range(3):
                [(n,)] = tx.rows("select count(*) from prompt_sets")
                yield member(f"after {n}")

        tx.insert("prompt_sets", rows())
        tx.insert("prompt_sets", rows())

    asyncio.run(duck.write(counting))

    assert members(duck) == ["after 0"] * 3 + ["after 3"] * 3


def test_many_readers_and_a_writer_see_only_whole_commits(duck: Duck) -> None:
    async def write_pairs() -> None:
        for i in range(50):
            await duck.write(lambda tx, i=i: tx.insert("prompt_sets", [member(f"{i}a"), member(f"{i}b")]))

    async def read() -> list[int]:
        counts = []
        for _ in range(50):
            [row] = await duck.read("select count(*) as n from prompt_sets")
            counts.append(row["n"])
        return counts

    async def at_once() -> list[Any]:
        return await asyncio.gather(write_pairs(), *(read() for _ in range(6)))

    _, *seen = asyncio.run(at_once())

    for counts in seen:
        assert counts == sorted(counts)
        assert all(n % 2 == 0 for n in counts)


def test_no_reader_waits_for_a_commit(duck: Duck) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(tx: Transaction) -> None:
        tx.insert("prompt_sets", [member("a")])
        tx.flush()
        begun.set()
        assert go_on.wait(30)

    writer = threading.Thread(target=duck.write_now, args=(slowly,))
    writer.start()
    assert begun.wait(30)
    during = [members(duck) for _ in range(20)]
    go_on.set()
    writer.join()

    assert during == [[]] * 20
    assert members(duck) == ["a"]


def test_no_reader_waits_for_a_checkpoint(duck: Duck) -> None:
    for _ in range(5):
        many = [member(os.urandom(500).hex()) for _ in range(10_000)]
        duck.write_now(lambda tx, rows=many: tx.insert("prompt_sets", rows))
    reads: list[tuple[float, float]] = []
    checkpoint: list[float] = []

    def write() -> None:
        checkpoint.append(time.monotonic())
        duck._store.connection.execute("checkpoint")
        checkpoint.append(time.monotonic())

    writer = threading.Thread(target=write)
    writer.start()
    while len(checkpoint) < 2:
        began = time.monotonic()
        asyncio.run(duck.read("select count(*) from runs"))
        reads.append((began, time.monotonic()))
    writer.join()

    began, ended = checkpoint
    assert sum(began < start and end < ended for start, end in reads) > 5


def test_sequence_numbers_go_on_after_a_restart(open_service: OpenService) -> None:
    seqs = []
    for _ in range(2):
        with open_service() as client:
            if not seqs:
                prepare(client)
            sample(client, passes=1)
            seqs = [g["id"] for g in client.get("/v1/groups?limit=1000").json()["items"]]

    assert len(seqs) == len(set(seqs))
    assert len(seqs) > 30


def test_another_process_is_refused_while_this_one_lives(duck: Duck, path: Path) -> None:
    attempt = f"from service.store.duck import Duck; from pathlib import Path; Duck(Path({str(path)!r}))"

    other = subprocess.run([sys.executable, "-c", attempt], capture_output=True, text=True, check=False)

    assert other.returncode != 0
    assert "Locked" in other.stderr
    with pytest.raises(Locked):
        Duck(path)


def test_a_closed_store_says_so(path: Path) -> None:
    duck = Duck(path)
    duck.close()
    duck.close()

    with pytest.raises(StoreFailed, match="closed"):
        asyncio.run(duck.write(lambda tx: None))


def test_a_file_of_another_schema_is_refused_with_what_to_do(path: Path) -> None:
    duck = Duck(path)
    asyncio.run(duck.write(lambda tx: tx.rows("update meta set value = '999' where name = 'schema'")))
    duck.close()

    with pytest.raises(StoreFailed, match="999"):
        Duck(path)


def test_nothing_in_the_service_opens_the_database_file(
    open_service: OpenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening and closing it would drop DuckDB's lock without a word."""
    opened: list[str] = []

    def spy(original: Any) -> Any:
        def call(file: Any, *arguments: Any, **named: Any) -> Any:
            opened.append(str(file))
            return original(file, *arguments, **named)

        return call

    monkeypatch.setattr(builtins, "open", spy(builtins.open))
    monkeypatch.setattr(os, "open", spy(os.open))
    monkeypatch.setattr("io.open", spy(open))

    with open_service() as client:
        prepare(client)
        sample(client, groups=10)
        url = freeze(client)["urls"]["train.parquet"]
        assert client.get(url).status_code == 200

    assert any("train.parquet" in name for name in opened)
    assert [name for name in opened if name.endswith(".duckdb")] == []


def test_retention_keeps_the_numbers_of_all_and_the_text_of_the_informative(open_service: OpenService) -> None:
    for retain in ("informative", "all"):
        with open_service(data=retain) as client:
            prepare(client, retain=retain)
            sample(client, passes=2)
            groups = client.get("/v1/groups?run=r&limit=1000").json()["items"]
            details = [client.get(f"/v1/groups/{group['id']}").json() for group in groups[:30]]

        assert all(len(group["members"]) == 4 for group in details)
        assert all(member["reward"] is not None for group in details for member in group["members"])
        for group in details:
            has_text = all(member["text"] is not None for member in group["members"])
            assert has_text == (retain == "all" or group["kind"] == "informative")


def test_closing_ends_a_scan_and_refuses_the_next(duck: Duck) -> None:
    scan = duck.scan("select * from range(1_000_000_000)")
    next(scan)
    failed: list[str] = []

    def read() -> None:
        try:
            for _ in scan:
                time.sleep(0.01)
        except StoreFailed as error:
            failed.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    duck.close()
    reader.join(10)

    assert failed
    assert not reader.is_alive()
    with pytest.raises(StoreFailed):
        next(duck.scan("select 1"))
