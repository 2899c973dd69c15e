"""Sealing: rows move from the database into segments and from small segments into large ones; nobody notices."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from service.stages import StoreFailed
from service.store import sealing
from service.store.duck import Duck
from service.store.layout import SCHEMA_1, SCHEMA_VERSION
from service.store.sealing import Sealer, mergeable
from service.store.segments import File, Manifest, Segment
from service.store.transaction import Transaction
from tests.service.conftest import OpenService
from tests.service.steps import freeze, prepare, sample


def put(duck: Duck, *names: str) -> None:
    rows = [{"prompt_set": "s", "prompt_id": name} for name in names]
    duck.write_now(lambda tx: tx.insert("prompt_sets", rows))


def names(duck: Duck) -> list[str]:
    return [row["prompt_id"] for row in asyncio.run(duck.read("select prompt_id from prompt_sets order by 1"))]


def everything(duck: Duck) -> dict[str, list[str]]:
    """The rows of every table, in words."""
    return {table: sorted(str(row) for row in asyncio.run(duck.read(f"from {table}"))) for table in sorted(duck.tables)}


def test_a_store_answers_the_same_before_and_after_it_was_sealed(open_service: OpenService) -> None:
    def answers(client: Any) -> list[Any]:
        groups = client.get("/v1/groups?run=r&limit=1000").json()
        first = client.get(f"/v1/groups/{groups['items'][0]['id']}").json()
        urls = ("/v1/runs/r", "/v1/prompts?limit=100", "/v1/jobs", "/v1/policies")
        return [groups, first, *(client.get(url).json() for url in urls)]

    def informativeness(client: Any) -> dict[str, float]:
        told = client.get("/v1/runs/r/informativeness").json()[0]
        return {name: value for name, value in told.items() if isinstance(value, float)}

    with open_service() as client:
        store = client.app_state["parts"].store
        prepare(client)
        sample(client, groups=20)
        before, rows, told = answers(client), everything(store.duck), informativeness(client)
        store.sealer.seal()
        assert answers(client) == before
        assert everything(store.duck) == rows
        assert informativeness(client) == pytest.approx(told)  # sums of floats, in whatever order
        assert store.duck.layout.manifest.segments
        frozen = freeze(client)

    with open_service() as client:
        store = client.app_state["parts"].store
        assert {table: lines for table, lines in everything(store.duck).items() if table != "datasets"} == {
            table: lines for table, lines in rows.items() if table != "datasets"
        }
        assert freeze(client)["dataset_id"] == frozen["dataset_id"]
        sample(client, groups=5)
        assert len(client.get("/v1/groups?run=r&limit=1000").json()["items"]) > len(before[0]["items"])


def test_sealing_again_and_again_keeps_every_row_once(duck: Duck) -> None:
    sealer = Sealer(duck)
    expected = []
    for i in range(20):
        put(duck, f"{i:02}a", f"{i:02}b")
        expected += [f"{i:02}a", f"{i:02}b"]
        sealer.seal()
        assert names(duck) == expected
    assert len(duck.layout.manifest.segments) == 20

    merged = sealer.compact()

    assert merged == 14
    assert names(duck) == expected
    assert len(duck.layout.manifest.segments) == 6
    assert len([folder for folder in duck.segments.root.iterdir() if folder.is_dir()]) == 6


def test_a_seal_with_nothing_to_seal_does_nothing(duck: Duck) -> None:
    sealer = Sealer(duck)
    put(duck, "a")
    sealer.seal()
    layout = duck.layout

    sealer.seal()
    sealer.seal(younger_than=2.0)

    assert duck.layout == layout


def test_rows_that_share_a_commit_with_a_rotation_are_sealed_the_next_time(duck: Duck) -> None:
    sealer = Sealer(duck)
    put(duck, "a")
    real, rows = duck.write_now, [{"prompt_set": "s", "prompt_id": "b"}]

    def with_a_neighbour(operation: Any) -> Any:
        """As a write that waited in the queue behind it would be committed."""

        def both(tx: Transaction) -> Any:
            result = operation(tx)
            tx.insert("prompt_sets", rows if len(tx.layout.generations) > 1 else [])
            return result

        return real(both)

    duck.write_now = with_a_neighbour  # type: ignore[method-assign]
    sealer.seal()
    duck.write_now = real  # type: ignore[method-assign]
    sealer.seal()

    sealed = sum(segment.files["prompt_sets"].rows for segment in duck.layout.manifest.segments)
    assert sealed == len(names(duck)) == 2


def test_readers_see_whole_commits_while_rows_are_sealed_and_merged(duck: Duck) -> None:
    sealer = Sealer(duck)
    stop = threading.Event()
    wrong: list[Any] = []

    def read() -> None:
        last = 0
        while not stop.is_set():
            [row] = duck._read("select count(*) as n, count(distinct prompt_id) as d from prompt_sets", ())
            if row["n"] % 2 or row["n"] != row["d"] or row["n"] < last:
                wrong.append((last, row))
            last = row["n"]

    def scan() -> None:
        while not stop.is_set():
            found = [name for batch in duck.scan("select prompt_id from prompt_sets") for name in batch[0].to_pylist()]
            if len(found) % 2 or len(set(found)) != len(found):
                wrong.append(found)

    def tend() -> None:
        while not stop.is_set():
            sealer.seal()
            sealer.compact()

    threads = [threading.Thread(target=work) for work in (read, read, scan, tend)]
    for thread in threads:
        thread.start()
    for i in range(300):
        put(duck, f"{i}a", f"{i}b")
    stop.set()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert len(names(duck)) == 600
    assert duck.layout.manifest.number > 10


@pytest.mark.parametrize("fails_in", ["write", "replace"])
def test_a_seal_that_breaks_off_anywhere_loses_and_doubles_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, fails_in: str
) -> None:
    duck = Duck(path)
    put(duck, "a", "b")

    def fail(*_: Any, **__: Any) -> None:
        raise StoreFailed("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(type(duck.segments) if fails_in == "write" else Transaction, fails_in, fail)
        with pytest.raises(StoreFailed):
            Sealer(duck).seal()
        put(duck, "c")
        assert names(duck) == ["a", "b", "c"]
        duck.close()

    duck = Duck(path)
    assert names(duck) == ["a", "b", "c"]
    Sealer(duck).seal()
    assert names(duck) == ["a", "b", "c"]
    assert len(duck.layout.generations) == 1
    duck.close()


def test_what_failed_to_be_sealed_is_sealed_the_next_time_although_nothing_new_came(
    duck: Duck, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealer = Sealer(duck)
    put(duck, "a")
    with monkeypatch.context() as patch:
        patch.setattr(sealing, "rows_of", lambda *_: "select nonsense")
        with pytest.raises(StoreFailed):
            sealer.seal()

    sealer.seal()

    assert len(duck.layout.generations) == 1
    assert names(duck) == ["a"]


def test_a_lost_database_begins_again_from_its_segments(path: Path) -> None:
    duck = Duck(path)
    put(duck, "a", "b")
    Sealer(duck).seal()
    put(duck, "c")
    duck.close()
    path.unlink()

    duck = Duck(path)

    assert names(duck) == ["a", "b"]
    duck.close()


def test_a_segment_in_use_stays_until_its_reader_is_done(duck: Duck) -> None:
    sealer = Sealer(duck)
    for i in range(8):
        put(duck, str(i))
        sealer.seal()

    with duck.pinned() as layout:
        sealer.compact()
        assert all(duck.segments.path(segment, "prompt_sets").exists() for segment in layout.manifest.segments)
        assert duck.layout.manifest.segments != layout.manifest.segments

    assert not any(duck.segments.path(segment, "prompt_sets").exists() for segment in layout.manifest.segments)


def test_rows_by_the_ten_thousand_go_straight_into_a_segment_or_nowhere(duck: Duck) -> None:
    many = pa.table({"prompt_set": ["s"] * 20_000, "prompt_id": [f"{i:05}" for i in range(20_000)]})

    def fail(tx: Transaction) -> None:
        tx.append({"prompt_sets": many})
        assert tx.rows("select count(*) from prompt_sets") == [(20_000,)]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        duck.write_now(fail)
    assert names(duck) == []
    assert list(duck.segments.root.iterdir()) == []

    duck.write_now(lambda tx: tx.append({"prompt_sets": many}))
    assert len(names(duck)) == 20_000
    assert duck.hot_bytes == 0


def test_only_neighbours_of_about_the_same_size_are_merged() -> None:
    def of_sizes(*mib: float) -> Manifest:
        files = [{"t": File(rows=1, bytes=int(size * 2**20), sha256="")} for size in mib]
        return Manifest(segments=tuple(Segment(number=i, schema_version=2, files=f) for i, f in enumerate(files)))

    assert len(mergeable(of_sizes(*[1] * 8))) == 8
    assert len(mergeable(of_sizes(*[1] * 7))) == 0
    assert [s.number for s in mergeable(of_sizes(100, *[1] * 9))] == list(range(1, 9))
    assert len(mergeable(of_sizes(*[1] * 4, 150, *[1] * 4))) == 0
    assert len(mergeable(of_sizes(*[1, 40] * 4))) == 8
    assert len(mergeable(of_sizes(150, *[40] * 8))) == 8
    assert len(mergeable(of_sizes(*[150] * 20))) == 0


def test_a_store_of_the_first_schema_is_upgraded(path: Path) -> None:
    old = duckdb.connect(str(path))
    old.execute(SCHEMA_1)
    old.execute("insert into meta values ('schema', '1')")
    old.execute("create view judged_groups as from groups")
    old.execute("insert into runs values ('r', '{}', now()::timestamp)")
    old.execute("insert into prompts values ('p', 'What is 2+2?', '4', 'math', '{}', now()::timestamp)")
    for seq, text in ((1, "'four'"), (2, "null")):
        old.execute(
            f"""insert into groups values ({seq}, 'g{seq}', 'r', 'p', {seq}, 'j', 'policy', 3, 1.0, 'informative',
                [1.0, 0.0], 2, 4, map {{'scored': 2}}, 0, 1.0, 0.1, now()::timestamp)"""
        )
        for idx in range(2):
            old.execute(
                f"""insert into rollouts values ('g{seq}', {idx}, {text}, [1, 2], [-0.5, -0.25], 2, 'stop', [],
                    'scored', {1.0 - idx}, 'math@1', 0.1, '4', null)"""
            )
    old.close()

    duck = Duck(path)
    rollouts = asyncio.run(duck.read("select * from rollouts order by seq, idx"))
    groups = asyncio.run(duck.read("select * from groups order by seq"))

    assert [(r["seq"], r["run"], r["prompt_id"], r["policy_version"]) for r in rollouts] == [
        (seq, "r", "p", 3) for seq in (1, 1, 2, 2)
    ]
    facts = [(r["characters"], r["text"], r["logprob"]) for r in rollouts]
    assert facts == [(4, "four", -0.75)] * 2 + [(None, None, -0.75)] * 2
    assert [g["has_text"] for g in groups] == [True, False]
    assert duck.write_now(lambda tx: tx.next_seq("groups", "rescores")) == 3
    Sealer(duck).seal()
    assert asyncio.run(duck.read("select * from rollouts order by seq, idx")) == rollouts
    duck.close()
    Duck(path).close()


def test_a_store_of_the_second_schema_gets_the_tables_that_it_lacks_in_every_generation(path: Path) -> None:
    duck = Duck(path)
    put(duck, "a")
    Sealer(duck).seal()
    put(duck, "b")
    duck.write_now(lambda tx: tx.rotate())
    put(duck, "c")
    generations = duck.layout.generations
    duck.close()
    old = duckdb.connect(str(path))
    for view in ("current_leases", "leases", "lease_events"):
        old.execute(f"drop view {view}")
    for generation in generations:
        old.execute(f"drop table hot_{generation}.leases; drop table hot_{generation}.lease_events")
    old.execute("update meta set value = '2' where name = 'schema'")
    old.close()

    duck = Duck(path)
    assert (len(generations), duck.layout.generations) == (2, generations)
    assert names(duck) == ["a", "b", "c"]
    event = {"lease": "l", "seq": 1, "state": "open", "seconds": 1.0}
    duck.write_now(lambda tx: tx.insert("leases", [{"seq": tx.next_seq("leases"), "lease": "l"}]))
    duck.write_now(lambda tx: tx.insert("lease_events", [event]))
    leases = asyncio.run(duck.read("select lease, state, seconds from current_leases"))
    assert leases == [{"lease": "l", "state": "open", "seconds": 1.0}]
    Sealer(duck).seal()
    assert names(duck) == ["a", "b", "c"]
    assert asyncio.run(duck.read("select lease, state, seconds from current_leases")) == leases
    assert [segment.schema_version for segment in duck.layout.manifest.segments] == [SCHEMA_VERSION] * 2
    assert asyncio.run(duck.read("select value from meta where name = 'schema'")) == [{"value": str(SCHEMA_VERSION)}]
    duck.close()
    Duck(path).close()


ROOT = str(Path(__file__).parents[2])
KILLED = """
import sys, threading
from pathlib import Path
from service.store.duck import Duck
from service.store.sealing import Sealer

duck = Duck(Path(sys.argv[1]))
sealer = Sealer(duck)

def tend():
    while True:
        sealer.seal()
        sealer.compact()

threading.Thread(target=tend, daemon=True).start()
for i in range(1_000_000):
    name = f"{sys.argv[2]}-{i}"
    rows = [{"prompt_set": name, "prompt_id": str(k)} for k in range(4)]
    duck.write_now(lambda tx: tx.insert("prompt_sets", rows))
    print(name, flush=True)
"""


def test_killed_at_any_moment_it_has_every_acknowledged_row_once(path: Path) -> None:
    acknowledged: list[str] = []
    program = path.with_name("killed.py")  # under -c DuckDB shows its progress where the names are told
    program.write_text(KILLED)
    for attempt in range(8):
        command = [sys.executable, str(program), str(path), str(attempt)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": ROOT})
        assert process.stdout is not None
        acknowledged += [process.stdout.readline().strip() for _ in range(1 + 4 * attempt)]
        time.sleep(0.01 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
        process.wait()
        process.stdout.close()

    duck = Duck(path)
    stored = {
        row["prompt_set"]: (row["n"], row["d"])
        for row in asyncio.run(
            duck.read("select prompt_set, count(*) as n, count(distinct prompt_id) as d from prompt_sets group by 1")
        )
    }
    damages = list(duck.segments.damages(duck.layout.manifest))
    duck.close()

    assert [name for name in acknowledged if name not in stored] == []
    assert set(stored.values()) == {(4, 4)}
    assert damages == []
    assert len(acknowledged) > 100
