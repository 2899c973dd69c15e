"""The store leans on nothing that DuckLake lacks. With its catalog in PostgreSQL, over files that the store wrote:

- The same tables hold the same rows, and the same SQL gives the same answers.
- Several writers lose and double nothing, also when one is killed.
- A version answers the same whatever came later.
"""

import asyncio
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import duckdb
import pyarrow as pa
import pytest
from duckdb import DuckDBPyConnection as Connection

from service.sql.views import INTERNAL, NAMES, NOW_RESCORED, PRIVATE, PUBLISHED, SCOPE
from service.store.duck import Duck
from service.store.groups import Groups
from service.store.judged import Judged
from service.store.layout import TABLES, quoted
from service.store.leases import Leases
from service.store.segments import Segments
from tests.service.conftest import OpenService
from tests.service.lake import MISSING, add, attached, postgres, written
from tests.service.steps import finish, freeze, leased, prepare, sample

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

Files = Mapping[str, Path]
FLOAT = re.compile(r"\d+\.\d+(e-?\d+)?")


class OneConnection:
    """As much of a `Duck` as the questions of the store need, over any database."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def read(self, sql: str, parameters: Any = ()) -> list[dict[str, Any]]:
        answer = self._connection.execute(sql, parameters)
        names = [column[0] for column in answer.description or ()]
        return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]

    def scan(self, sql: str, parameters: Any = (), rows_per_batch: int = 10_000) -> Iterator[pa.RecordBatch]:
        yield from self._connection.execute(sql, parameters).to_arrow_reader(rows_per_batch)


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    with postgres() as server:
        yield server


@pytest.fixture
def lake(server: Path, tmp_path: Path) -> Iterator[Connection]:
    """The empty tables of the store in a lake that is called like the folder of the test."""
    with attached(server, tmp_path.name) as connection:
        connection.execute(TABLES)
        yield connection


@pytest.fixture
def plain() -> Iterator[Connection]:
    """The same in a database of DuckDB that goes by the same name."""
    with duckdb.connect() as connection:
        connection.execute("attach ':memory:' as lake; use lake")
        connection.execute(TABLES)
        yield connection


@pytest.fixture
def sealed(open_service: OpenService) -> list[Files]:
    """The files of a store by table: of what was sampled, then of what came of it."""
    with open_service() as client:
        store = client.app_state["parts"].store
        prepare(client, 4)
        sample(client, groups=8)
        store.sealer.seal()
        finish(client, client.post("/v1/runs/r/rescore", json={"verifier": "exact"}).json())
        sample(client, groups=4)
        leased(client, 3)
        freeze(client)
        freeze(client, "gone")
        assert client.delete("/v1/datasets/gone@1").status_code == 200
        store.sealer.seal()
        duck = store.duck
        return [{table: duck.segments.path(s, table) for table in s.files} for s in duck.layout.manifest.segments]


def make_views(connection: Connection) -> None:
    """Those of the store and the published ones, where the SQL of users has them."""
    connection.begin()
    connection.execute("create schema store; use lake.store")
    tables = [f"create view {table} as from lake.hot.{table}" for table in SCOPE]
    for sql in (*tables, *INTERNAL, NOW_RESCORED, "use lake.main", *PUBLISHED):
        connection.execute(sql)
    connection.commit()


def in_words(answer: Any) -> str:
    """Sums of floats are made in whatever order."""
    return FLOAT.sub(lambda found: f"{float(found[0]):.9g}", str(answer))


def everything(connection: Connection) -> dict[str, list[str]]:
    """The rows of every table and view."""
    listed = "select table_schema || '.' || table_name from information_schema.tables where table_catalog = 'lake'"
    names = sorted(name for (name,) in connection.execute(listed).fetchall())
    return {name: sorted(map(in_words, connection.execute(f"from {name}").fetchall())) for name in names}


def answers(connection: Connection) -> list[str]:
    """To what the service asks when it plans, reports and freezes."""
    connection.execute("use lake.store")
    duck = cast(Duck, OneConnection(connection))
    judged, scope = Judged(duck), (["r"], 10**6)

    async def asked(groups: Groups) -> list[Any]:
        page, job = await groups.page(run="r", informative=None, after=0, limit=1000), await groups.last_job("r")
        whole = [await groups.get(row["group_id"]) for row in page]
        of_run = [await ask("r") for ask in (groups.seen, groups.epochs, groups.recorded)]
        known, unfinished = await groups.known_before("r", ["r"]), await groups.open_visits(str(job))
        queue = Leases(duck).candidates("r", "trainer", over=[], oldest=0, contrasting=True)
        leases = [await Leases(duck).page("r", 0, 10), await queue]
        return [
            leases,
            page,
            whole,
            *of_run,
            known,
            unfinished,
            await groups.funnel(run="r"),
            await groups.watermark(["r"]),
        ]

    told = [
        list(judged.groups(*scope, digests=True)),
        list(judged.groups(*scope, "exact@1", references=True)),
        judged.informativeness(*scope),
        judged.spent(*scope),
        sorted(judged.contaminated(*scope, lambda text: text.startswith("mixed"))),
        *asyncio.run(asked(Groups(duck))),
    ]
    return [in_words(answer) for answer in told]


def test_every_table_of_the_store_is_one_that_ducklake_can_hold(lake: Connection, plain: Connection) -> None:
    columns = """select table_name, column_name, data_type from duckdb_columns()
                 where database_name = 'lake' and schema_name = 'hot' order by table_name, column_index"""

    held = lake.execute(columns).fetchall()

    assert held == plain.execute(columns).fetchall()
    assert {table for table, *_ in held} == SCOPE.keys() | PRIVATE


def test_the_same_sql_over_the_same_files_gives_the_same_answers(
    lake: Connection, plain: Connection, sealed: list[Files]
) -> None:
    for files in sealed:
        add(lake, files)
        for table, path in files.items():
            plain.execute(f"insert into hot.{table} by name from read_parquet({quoted(str(path))})")
    make_views(lake)
    make_views(plain)

    found, expected = everything(lake), everything(plain)

    assert [name for name in expected if found[name] != expected[name]] == []
    assert {f"main.{name}" for name in NAMES if name != "pairs"} | {f"hot.{table}" for table in SCOPE} < set(found)
    assert {name for name, rows in expected.items() if not rows} <= {"hot.failures", "store.failures", "hot.answers"}
    assert answers(lake) == answers(plain)


def test_writers_at_once_lose_and_double_nothing_even_if_some_are_killed(
    lake: Connection, server: Path, tmp_path: Path
) -> None:
    places = [str(server), tmp_path.name, str(tmp_path)]

    def started(writer: int, batches: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.service.lake", *places, str(writer), str(batches)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    processes = [started(0, 6), started(1, 6), started(2, 300), started(3, 300)]
    acknowledged: list[str] = []
    for writer, process in reversed(list(enumerate(processes))):
        with process:
            assert process.stdout is not None
            if writer > 1:
                acknowledged += [process.stdout.readline().strip() for _ in range(3)]
                time.sleep(writer / 50)
                process.kill()
            acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
    written(Segments(tmp_path / "nobody"), "never added")
    members = "select prompt_set, count(*), count(distinct prompt_id) from hot.prompt_sets group by 1"

    stored = {batch: (rows, different) for batch, rows, different in lake.execute(members).fetchall()}

    assert [batch for batch in acknowledged if batch not in stored] == []
    assert set(stored.values()) == {(4, 4)}
    assert Counter(run for (run,) in lake.execute("select run from hot.runs").fetchall()) == Counter(stored.keys())
    assert [sum(batch.startswith(f"{writer}-") for batch in acknowledged) for writer in (0, 1)] == [6, 6]
    assert "never added" not in stored


def test_a_version_answers_the_same_whatever_comes_later(
    lake: Connection, server: Path, tmp_path: Path, sealed: list[Files]
) -> None:
    first, *later = sealed
    make_views(lake)
    add(lake, first)
    before = everything(lake)
    [(version,)] = lake.execute("select max(snapshot_id) from ducklake_snapshots('lake')").fetchall()

    for files in later:
        add(lake, files)

    assert len(lake.execute("from hot.rescores").fetchall()) > len(before["hot.rescores"]) == 0
    for table in SCOPE:
        rows = lake.execute(f"from hot.{table} at (version => {version})").fetchall()
        assert sorted(map(in_words, rows)) == before[f"hot.{table}"]
    with attached(server, tmp_path.name, version) as replica:
        assert everything(replica) == before
