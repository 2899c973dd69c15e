"""SQL over the store: right answers in every format, from a place where a question can do nothing else."""

import asyncio
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from service.parts import Store
from service.sql import console as console_module
from service.sql.console import Busy, Console, Format, Limits, Question, SqlFailed, TimedOut
from service.sql.views import NAMES
from service.stages import Invalid
from tests.service.conftest import OpenService
from tests.service.sql_attacks import HEAVY, REFUSED, SETTINGS, WRITES
from tests.service.steps import finish, freeze, groups_of, leased, prepare, sample

ENDLESS = "select count(*) from range(1000000000000)"


def rows(client: TestClient, sql: str, **body: Any) -> list[list[Any]]:
    answer = client.post("/v1/sql", json={"sql": sql} | body)
    assert answer.status_code == 200, answer.text
    found: list[list[Any]] = answer.json()["rows"]
    return found


@pytest.fixture
def filled(open_service: OpenService) -> Iterator[TestClient]:
    with open_service() as client:
        prepare(client)
        sample(client, groups=20)
        seal(client)
        yield client


def seal(client: TestClient) -> None:
    """Afterwards every answer holds what is stored now; without it, what was stored two seconds ago."""
    assert client.post("/v1/store/compact").status_code == 200


def test_what_was_stored_can_be_asked_for(filled: TestClient) -> None:
    groups = filled.get("/v1/groups?limit=1000").json()["items"]

    asked = rows(filled, "select group_id, kind, rewards from groups order by seq")

    assert asked == [[group["id"], group["kind"], group["rewards"]] for group in groups]
    assert rows(filled, "select count(*), sum(rollouts) from visits") == [
        [sum(filled.get("/v1/runs/r").json()["funnel"][k] for k in ("considered",)), len(groups) * 4]
    ]
    [[texts, tokens]] = rows(filled, "select count(text), count(*) from rollouts")
    assert 0 < texts < tokens == len(groups) * 4


def test_answers_are_at_most_two_seconds_old(filled: TestClient) -> None:
    rows(filled, "select 1")
    for _ in range(3):
        sample(filled, groups=3)
        stored = len(filled.get("/v1/groups?limit=1000").json()["items"])
        time.sleep(2.0)
        assert rows(filled, "select count(*) from groups") == [[stored]]


def test_every_view_is_as_the_docs_say(filled: TestClient) -> None:
    freeze(filled)
    views = filled.get("/v1/sql/views").json()
    text = (Path(__file__).parents[2] / "docs" / "sql.md").read_text()

    assert sorted(views) == sorted(NAMES)
    for view, columns in views.items():
        section = text.partition(f"### `{view}`")[2].partition("###")[0]
        documented = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
        assert documented == list(columns), view


def test_a_view_without_rows_has_the_columns_of_one_with_rows(client: TestClient) -> None:
    empty = client.get("/v1/sql/views").json()
    prepare(client)
    sample(client, groups=3)
    freeze(client)
    assert client.get("/v1/sql/views").json() == empty


def test_rescored_rollouts_show_the_verdict_that_counts_and_keep_the_others(filled: TestClient) -> None:
    before = rows(filled, "select count(*), count(*) filter (counts), count(distinct verifier) from verdicts")
    again = filled.post("/v1/runs/r/rescore", json={"verifier": "exact"}).json()
    finish(filled, again)
    seal(filled)

    [[n, counting, verifiers]] = rows(
        filled, "select count(*), count(*) filter (counts), count(distinct verifier) from verdicts"
    )
    [[all_rollouts]] = rows(filled, "select count(*) from rollouts")
    newest = rows(
        filled,
        """select count(*) from rollouts r join verdicts v using (group_id, idx)
           where v.counts and (v.reward is distinct from r.reward or v.verifier != r.verifier)""",
    )

    assert before == [[all_rollouts, all_rollouts, 1]]
    assert n > counting == all_rollouts
    assert verifiers == 2
    assert newest == [[0]]


def test_leases_can_be_asked_for_with_what_became_of_them(filled: TestClient) -> None:
    first, second = leased(filled, 4), leased(filled, 3, consumer="other")
    filled.post(f"/v1/leases/{first['lease']}/ack")
    seal(filled)

    found = rows(filled, "select lease, run, consumer, state, groups, group_ids from leases order by leased_at")

    assert found == [
        [first["lease"], "r", "trainer", "acknowledged", 4, groups_of(first)],
        [second["lease"], "r", "other", "open", 3, groups_of(second)],
    ]
    unseen = "select count(*) from groups where informative and group_id not in (select unnest(group_ids) from leases)"
    [[unleased]] = rows(filled, unseen)
    assert unleased == first["available"]


def test_the_pairs_of_every_dataset_can_be_asked_for(filled: TestClient) -> None:
    first, second = freeze(filled), freeze(filled, "e", pairs={"kind": "best_with_worst"})
    count = "select dataset, version, count(*) from pairs group by all order by all"

    seal(filled)
    n, m = first["manifest"]["rows"], second["manifest"]["rows"]
    assert rows(filled, count) == [["d", 1, n], ["e", 1, m]]
    assert rows(filled, "select name, train_rows + test_rows from datasets order by 1") == [["d", n], ["e", m]]
    filled.delete("/v1/datasets/e@1?reason=test")
    seal(filled)
    assert rows(filled, count) == [["d", 1, n]]
    right = "select count(*) from pairs p join rollouts r on r.group_id = p.group_id and r.idx = p.chosen_index"
    assert rows(filled, f"{right} where r.text = p.chosen and r.reward = p.chosen_reward") == [[n]]


def test_every_format_says_the_same(filled: TestClient) -> None:
    sql = """select seq, group_id, kind, rewards, outcomes, informative, pass_rate, stored_at, null as nothing,
                    'a,"b"' || chr(10) || 'é' as text from groups order by seq"""
    [columns, *_] = [filled.post("/v1/sql", json={"sql": sql}).json()["columns"]]
    expected = rows(filled, sql)

    def get(accept: str) -> bytes:
        answer = filled.post("/v1/sql", json={"sql": sql}, headers={"accept": accept})
        assert answer.headers["content-type"].startswith(accept)
        return answer.content

    lines = [json.loads(line) for line in get("application/x-ndjson").splitlines()]
    csv = pl.read_csv(io.BytesIO(get("text/csv")))
    arrow = pa.ipc.open_stream(get("application/vnd.apache.arrow.stream")).read_all()
    parquet = pl.read_parquet(io.BytesIO(get("application/vnd.apache.parquet")))

    assert lines == [dict(zip(columns, row, strict=True)) for row in expected]
    assert csv.columns == arrow.column_names == parquet.columns == columns
    for name in ("seq", "group_id", "kind", "informative", "pass_rate", "text"):
        values = [row[columns.index(name)] for row in expected]
        assert csv[name].to_list() == arrow[name].to_pylist() == parquet[name].to_list() == values


@pytest.mark.parametrize("sql", ["select 1 where false", "from groups limit 0"])
@pytest.mark.parametrize("format", list(Format))
def test_no_rows_are_an_answer_too(filled: TestClient, sql: str, format: str) -> None:
    answer = filled.post("/v1/sql", json={"sql": sql, "format": format})
    assert answer.status_code == 200
    assert answer.content if format != "ndjson" else not answer.content


def test_values_that_json_does_not_have_arrive_as_something_that_it_has(client: TestClient) -> None:
    sql = """select 'nan'::double, 'infinity'::double, 170141183460469231731687303715884105727::hugeint,
                    1.5::decimal(9, 2), date '2026-01-01', time '12:00:00', interval 1 day,
                    'a'::blob, {'a': [1, null]}, map {'k': 1},
                    uuid '00000000-0000-0000-0000-000000000001', true, 9007199254740993"""
    [row] = rows(client, sql)
    assert row[:6] == [None, None, 170141183460469231731687303715884105727, 1.5, "2026-01-01", "12:00:00"]
    assert row[7:] == [
        "YQ==",
        {"a": [1, None]},
        {"k": 1},
        "00000000-0000-0000-0000-000000000001",
        True,
        9007199254740993,
    ]


def test_parameters_are_values_and_never_sql(filled: TestClient) -> None:
    evil = "r' or 1=1; drop view groups; --"
    assert rows(filled, "select count(*) from groups where run = $run", params={"run": evil}) == [[0]]
    assert rows(filled, "select ?, ? + 1", params=["'; --", 4]) == [["'; --", 5]]
    by_url = filled.get("/v1/sql", params={"q": "select $run, count(*) > 0 from groups where run = $run", "run": "r"})
    assert by_url.json()["rows"] == [["r", True]]
    for params in ({"other": 1}, [1, 2], {"run": {"deep": 1}}, "run"):
        assert filled.post("/v1/sql", json={"sql": "select $run", "params": params}).status_code == 422


def test_a_long_answer_is_cut_and_goes_on_where_it_was_cut(client: TestClient) -> None:
    found: list[int] = []
    cursor = None
    while True:
        answer = client.post("/v1/sql", json={"sql": "from range(10000)", "limit": 3000, "cursor": cursor}).json()
        found += [row[0] for row in answer["rows"]]
        cursor = answer["next"]
        assert answer["truncated"] is (cursor is not None)
        if cursor is None:
            break
    assert found == list(range(10_000))
    assert len(rows(client, "from range(10000)")) == 1000
    assert len(rows(client, "from range(1000000)", limit=10**9)) == 100_000
    wide = client.post("/v1/sql", json={"sql": "select repeat('x', 1000000) from range(100)"}).json()
    assert wide["truncated"]
    assert 0 < len(wide["rows"]) <= 33
    assert wide["next"] == str(len(wide["rows"]))
    refused = client.post("/v1/sql", json={"sql": "select repeat('x', 40000000)"})
    assert (refused.status_code, refused.json()["code"]) == (422, "not_told")


@pytest.mark.parametrize("format", [format for format in Format if format is not Format.JSON])
def test_a_part_of_an_answer_is_the_same_part_in_every_format(client: TestClient, format: str) -> None:
    body = {"sql": "select range as n from range(10000)", "format": format, "limit": 5000, "cursor": "3000"}
    content = io.BytesIO(client.post("/v1/sql", json=body).content)
    match format:
        case Format.CSV:
            numbers = pl.read_csv(content)["n"].to_list()
        case Format.NDJSON:
            numbers = [json.loads(line)["n"] for line in content]
        case Format.ARROW:
            numbers = pa.ipc.open_stream(content).read_all()["n"].to_pylist()
        case Format.PARQUET:
            numbers = pl.read_parquet(content)["n"].to_list()
    assert numbers == list(range(3000, 8000))


def test_endless_answers_begin_at_once_and_need_no_memory(client: TestClient) -> None:
    began = time.monotonic()
    assert rows(client, "select * from range(1000000000000)", limit=5) == [[0], [1], [2], [3], [4]]
    assert time.monotonic() - began < 5


def test_what_is_asked_for_by_accept_and_cannot_be_had_is_refused(client: TestClient) -> None:
    for accept, status in {"*/*": 200, "text/html,*/*;q=0.8": 200, "image/png": 422, "text/csv;q=0.9": 200}.items():
        assert client.post("/v1/sql", json={"sql": "select 1"}, headers={"accept": accept}).status_code == status


# ------------------------------------------------------------------------------------------------- what it withstands


def tree_of(folder: Path) -> dict[str, str]:
    files = [path for part in ("segments", "datasets") for path in (folder / part).rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


Opened = Callable[..., Any]


@pytest.fixture
def stored(open_service: OpenService, tmp_path: Path) -> Path:
    """A data folder with rows, segments and a dataset, of two runs."""
    with open_service() as client:
        prepare(client)
        sample(client, groups=20)
        client.post("/v1/runs", json=client.get("/v1/runs/r").json()["config"] | {"name": "secret"})
        sample(client, "secret", groups=5)
        freeze(client)
        freeze(client, "secret", runs=["secret"])
        leased(client, 5)
        leased(client, 2, "secret")
        client.app_state["parts"].store.sealer.seal()  # type: ignore[attr-defined]
    return tmp_path / "data"


@asynccontextmanager
async def opened(data: Path, **limits: Any) -> AsyncIterator[Console]:
    store = Store.open(data)
    console = Console(store.duck, store.sealer, data / "datasets", Limits(**{"memory_mib": 512, "threads": 1} | limits))
    try:
        yield console
    finally:
        await console.close()
        store.close()


async def asked(console: Console, sql: str, **question: Any) -> list[list[Any]]:
    body = b"".join([chunk async for chunk in console.ask(Question(sql, **question))])
    found: list[list[Any]] = json.loads(body)["rows"]
    return found


def test_no_attack_is_even_run(stored: Path) -> None:
    async def attack() -> None:
        async with opened(stored) as console:
            for sql in REFUSED:
                try:
                    await asked(console, sql)
                except Invalid:
                    continue
                pytest.fail(f"this was run: {sql[:200]}")
            assert await asked(console, "select count(distinct run) from groups") == [[2]]

    before = tree_of(stored)
    asyncio.run(attack())
    assert tree_of(stored) == before
    assert len(REFUSED) > 150


PERMISSIVE = """
class Refused(Exception):
    pass
class Look:
    def __call__(self, sql, views):
        return views
"""


@pytest.fixture
def without_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions go straight into the container: what holds without the outer wall?"""
    inside = tmp_path / "inside"
    inside.mkdir()
    for name in ("__main__.py", "database.py", "formats.py"):
        (inside / name).write_text((console_module.INSIDE / name).read_text())
    (inside / "look.py").write_text(PERMISSIVE)
    monkeypatch.setattr(console_module, "INSIDE", inside)


@pytest.mark.usefixtures("without_a_look")
def test_what_gets_past_the_look_reads_no_file_writes_nothing_and_does_not_stay(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token")

    async def attack() -> None:
        async with opened(stored) as console:
            right = await asked(console, "select count(*), sum(hash(group_id)::hugeint) from groups")
            for sql in REFUSED:
                try:
                    answer = str(await asked(console, sql, seconds=5))
                except (Invalid, TimedOut, SqlFailed) as refused:
                    answer = str(refused)
                for leaked in ("root:", "hf_secret_token", str(stored), str(Path.home())):
                    assert leaked not in answer, sql
                assert await asked(console, "select count(*), sum(hash(group_id)::hugeint) from groups") == right, sql
                assert await asked(console, "select lower('A')") == [["a"]], sql

    before = tree_of(stored)
    asyncio.run(attack())
    assert tree_of(stored) == before


LEFT = """
select 'table', table_name from duckdb_tables() where schema_name != 'hot_0'
union all select 'view', schema_name || '.' || view_name || ': ' || sql from duckdb_views() where not internal
union all select 'function', function_name from duckdb_functions() where not internal
union all select 'variable', name from duckdb_variables()
union all select 'database', database_name from duckdb_databases()
union all select 'schema', schema_name from duckdb_schemas() where not internal
union all select 'sequence', sequence_name from duckdb_sequences()
union all select 'setting', name || ' = ' || value from duckdb_settings()
order by all"""


@pytest.mark.usefixtures("without_a_look")
def test_what_a_question_makes_or_sets_is_not_there_for_the_next(stored: Path) -> None:
    async def attack() -> None:
        async with opened(stored, processes=1) as console:
            clean = await asked(console, LEFT)
            for sql in [*WRITES, *SETTINGS]:
                with contextlib.suppress(Invalid, TimedOut, SqlFailed):
                    await asked(console, sql, seconds=2)
                assert await asked(console, LEFT) == clean, sql

    asyncio.run(attack())


@pytest.mark.usefixtures("without_a_look")
def test_what_gets_past_the_look_meets_a_disk_that_cannot_be_written(stored: Path) -> None:
    """DuckDB lets a statement write where it may read: only the container does not."""

    async def attack() -> None:
        async with opened(stored) as console:
            for target in ("x.parquet", "00000001/rollouts.parquet"):
                with pytest.raises(Invalid, match="Read-only file system"):
                    await asked(console, f"copy (select 1) to '/store/segments/{target}' (use_tmp_file false)")

    before = tree_of(stored)
    asyncio.run(attack())
    assert tree_of(stored) == before


WATCHING = """#!/bin/sh
exec {strace} -f -qq -A -s 4096 -e trace=%file,%network,write -o {log} {bwrap} "$@"
"""
CALLED = re.compile(r"\d+ +(\w+)\((.*)")
PATH_IN = re.compile(r'"([^"]*)"')
MAY_BE_TOUCHED = ("/store", "/proc/self/cgroup", "/sys/fs/cgroup/memory")


def test_a_question_that_is_refused_reaches_for_no_file_and_no_network(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As strace sees its process: how much memory there may be is all that is looked at."""
    strace, bwrap = shutil.which("strace"), shutil.which("bwrap")
    if strace is None or subprocess.run([strace, "-o", "/dev/null", "true"], check=False).returncode:
        pytest.skip("strace may not trace here")
    log, program = tmp_path / "calls", tmp_path / "bwrap"
    program.write_text(WATCHING.format(strace=strace, log=log, bwrap=bwrap))
    program.chmod(0o755)
    monkeypatch.setattr(console_module, "path_of", lambda _: str(program))

    async def attack() -> None:
        async with opened(stored, processes=1) as console:
            assert await asked(console, "select count(distinct run) from groups") == [[2]]
            for sql in REFUSED:
                with pytest.raises(Invalid):
                    await asked(console, sql)
            assert await asked(console, "select count(distinct run) from groups") == [[2]]

    asyncio.run(attack())
    calls = [found.groups() for line in log.read_text().splitlines() if (found := CALLED.match(line))]
    answered = [n for n, (name, rest) in enumerate(calls) if name == "write" and rest.startswith('1, "z')]
    last = [n for n, (name, rest) in enumerate(calls) if name == "write" and rest.startswith('1, "h')][-2]
    refusing = calls[answered[0] + 1 : last]
    touched = {path for name, rest in refusing if name != "write" for path in PATH_IN.findall(rest)[:1]}

    assert len(refusing) > 2 * len(REFUSED)
    assert {name for name, _ in refusing} <= {"write", *("access", "newfstatat", "openat", "readlink", "stat")}
    assert {rest.partition(",")[0] for name, rest in refusing if name == "write"} == {"1"}
    assert [path for path in touched if not path.startswith(MAY_BE_TOUCHED)] == []


def test_heavy_questions_end_in_time_and_are_in_nobodys_way(stored: Path) -> None:
    slowest: list[float] = []

    async def attack() -> None:
        async with opened(stored) as console:
            await asyncio.gather(asked(console, "select 1"), asked(console, "select 1"))
            for sql in HEAVY:
                began = time.monotonic()
                try:
                    await asked(console, sql, seconds=1, limit=10)
                except (Invalid, TimedOut):
                    pass
                slowest.append(time.monotonic() - began)
                assert await asked(console, "select count(distinct run) from groups") == [[2]], sql

    asyncio.run(attack())
    assert max(slowest) < 2.0 + 1.0  # a second for the machine


HANGING = [
    "select levenshtein(repeat('ab', 100000), repeat('ba', 100000))",
    "select list_sort(range(100000000))[1]",
    ENDLESS,
]


def test_who_asks_what_hangs_pays_with_its_own_process_and_waits(stored: Path) -> None:
    """Another asker has the other process meanwhile, and of a flood it waits for what runs and not for what waits."""
    ended: list[float] = []

    def pids(console: Console) -> set[int]:
        return {child._process.pid for child in console._living if child.is_alive}

    async def hang(console: Console, sql: str, seconds: float) -> None:
        began = time.monotonic()
        with pytest.raises(TimedOut):
            await asked(console, sql, seconds=seconds, asker="alice")
        ended.append(time.monotonic() - began)

    async def good(console: Console) -> None:
        assert await asked(console, "select count(distinct run) from groups", asker="bob") == [[2]]

    async def ask() -> None:
        async with opened(stored, processes=2) as console:
            await asyncio.gather(good(console), good(console))
            for sql in HANGING:
                before = pids(console)
                hanging = asyncio.ensure_future(hang(console, sql, 2.0))
                answers = 0
                while not hanging.done():
                    await good(console)
                    answers += 1
                await hanging
                assert answers > 2
                assert len(before & pids(console)) == 1
            assert max(ended) < 2.0 + 3.0  # half a second, and the rest for a busy machine

            flood = [asyncio.ensure_future(hang(console, ENDLESS, 1.0)) for _ in range(8)]
            await asyncio.sleep(0.2)
            before_it = len(ended)
            await good(console)
            assert len(ended) - before_it <= 2
            await asyncio.gather(*flood)

    asyncio.run(ask())


def test_a_timeout_is_told_and_a_new_process_takes_the_next_question(client: TestClient) -> None:
    refused = client.post("/v1/sql", json={"sql": "select count(*) from range(1000000000000)", "timeout_ms": 300})
    assert (refused.status_code, refused.json()["code"]) == (408, "sql_timeout")
    assert rows(client, "select 1") == [[1]]


def test_whoever_stops_listening_ends_the_question(stored: Path) -> None:
    async def leave() -> None:
        async with opened(stored, processes=1) as console:
            question = Question("select * from range(1000000000000)", format=Format.CSV, seconds=60)
            for _ in range(3):
                async with aclosing(console.ask(question)) as answer:
                    await anext(answer)
                waiting = asyncio.ensure_future(asked(console, ENDLESS, seconds=60))
                await asyncio.sleep(0.3)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                began = time.monotonic()
                assert await asked(console, "select 1") == [[1]]
                assert time.monotonic() - began < 5

    asyncio.run(leave())


def test_whoever_reads_slowly_and_leaves_keeps_no_process(stored: Path) -> None:
    """More is buffered by then than is read ahead."""

    async def leave() -> None:
        async with opened(stored, processes=1) as console:
            question = Question("select repeat('x', 1000) from range(1000000)", format=Format.CSV, seconds=60)
            for _ in range(2):
                async with aclosing(console.ask(question)) as answer:
                    await anext(answer)
                    await asyncio.sleep(1.0)
                assert await asyncio.wait_for(asked(console, "select 1"), 10) == [[1]]

    asyncio.run(leave())


def test_the_time_is_over_also_for_whoever_does_not_read(stored: Path) -> None:
    async def stall() -> None:
        async with opened(stored, processes=1) as console:
            question = Question("select repeat('x', 1000) from range(1000000000)", format=Format.CSV, seconds=1)
            async with aclosing(console.ask(question)) as answer:
                await anext(answer)
                await asyncio.sleep(2.0)
                with pytest.raises(SqlFailed):
                    async for _ in answer:
                        pass

    asyncio.run(stall())


def test_nobody_is_left_when_questions_are_cancelled_at_any_moment(stored: Path) -> None:
    async def cancel() -> None:
        async with opened(stored, processes=2) as console:
            for seconds in (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5):
                waiting = asyncio.ensure_future(asked(console, ENDLESS, seconds=60))
                await asyncio.sleep(seconds)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            assert await asked(console, "select 1") == [[1]]
            still = asyncio.ensure_future(asked(console, ENDLESS, seconds=60))
            await asyncio.sleep(0.2)
        await asyncio.gather(still, return_exceptions=True)

    asyncio.run(cancel())
    assert left_of(stored) == set()


def test_nobody_is_left_when_a_question_is_cancelled_while_its_process_is_made(stored: Path) -> None:
    """The loop stands still meanwhile, so that the process is there and its maker does not know yet."""

    async def cancel() -> None:
        async with opened(stored, processes=1) as console:
            for milliseconds in (0.5, 1, 1.5, 2, 2.5, 3, 4, 6, 10):
                for child in console._idle:
                    child.kill()
                waiting = asyncio.ensure_future(asked(console, ENDLESS, seconds=60))
                for _ in range(3):
                    await asyncio.sleep(0)
                time.sleep(milliseconds / 1000)  # noqa: ASYNC251 - nothing must move meanwhile
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            assert await asyncio.wait_for(asked(console, "select 1"), 60) == [[1]]

    asyncio.run(cancel())
    assert left_of(stored) == set()


def test_closing_while_a_process_is_made_leaves_none(stored: Path) -> None:
    async def close() -> None:
        async with opened(stored, processes=2) as console:
            asking = [asyncio.ensure_future(asked(console, "select 1")) for _ in range(2)]
            await asyncio.sleep(0)
        await asyncio.gather(*asking, return_exceptions=True)
        assert console._idle == []

    asyncio.run(close())
    assert containers_of(stored) == set()


@pytest.mark.parametrize("part", [0, -1], ids=["the container", "the process in it"])
@pytest.mark.parametrize("when", [0.0, 0.5], ids=["idle", "at work"])
def test_a_question_whose_process_is_killed_is_asked_once_more(stored: Path, part: int, when: float) -> None:
    slow = "select count(*) from range(3000000000) r(i) where i % 7 = 5"

    async def ask() -> None:
        async with opened(stored, processes=1) as console:
            assert await asked(console, "select 1") == [[1]]
            if not when:
                kill(stored, part)
            asking = asyncio.ensure_future(asked(console, slow if when else "select 2", seconds=60))
            await asyncio.sleep(when)
            if when:
                kill(stored, part)
            assert len(await asking) == 1

    asyncio.run(ask())
    assert left_of(stored) == set()


def test_a_question_whose_process_is_killed_again_needs_too_much(stored: Path) -> None:
    async def ask() -> str:
        async with opened(stored, processes=1) as console:
            asking = asyncio.ensure_future(asked(console, ENDLESS, seconds=60))
            while not asking.done():
                await asyncio.sleep(1.0)
                kill(stored, 0)
            [refused] = await asyncio.gather(asking, return_exceptions=True)
            assert isinstance(refused, Invalid)
            return refused.code

    assert asyncio.run(ask()) == "sql_out_of_memory"


@pytest.mark.parametrize("part", [0, -1], ids=["the container", "the process in it"])
def test_a_question_whose_process_stands_still_ends_in_time(stored: Path, part: int) -> None:
    async def ask() -> float:
        async with opened(stored, processes=1) as console:
            assert await asked(console, "select 1") == [[1]]
            began = time.monotonic()
            asking = asyncio.ensure_future(asked(console, ENDLESS, seconds=2))
            await asyncio.sleep(0.5)
            kill(stored, part, signal.SIGSTOP)
            with pytest.raises(TimedOut):
                await asking
            lasted = time.monotonic() - began
            assert await asked(console, "select 2") == [[2]]
            return lasted

    assert asyncio.run(ask()) < 3
    assert left_of(stored) == set()


def kill(data: Path, part: int, how: signal.Signals = signal.SIGKILL) -> None:
    """One of the processes that a container is made of."""
    below = sorted(map(int, containers_of(data)))
    for pid in below:
        below += [int(child) for child in _read(Path(f"/proc/{pid}/task/{pid}/children")).split()]
    if below:
        with contextlib.suppress(ProcessLookupError):
            os.kill(list(dict.fromkeys(below))[part], how)


def left_of(data: Path) -> set[str]:
    """Containers that do not end by themselves; one that was still starting does, once it has started."""
    give_up = time.monotonic() + 30
    while (left := containers_of(data)) and time.monotonic() < give_up:
        time.sleep(0.1)
    return left


def containers_of(data: Path) -> set[str]:
    return {path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if str(data) in _read(path)}


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


@pytest.mark.parametrize("sql", ["select '290000-01-01'::timestamp", "select '-4000-01-01'::date", "select row(1, 2)"])
def test_a_value_that_a_format_does_not_have_is_refused_and_costs_no_process(stored: Path, sql: str) -> None:
    async def ask() -> None:
        async with opened(stored, processes=1) as console:
            await asked(console, "select 1")
            [child] = console._living
            with pytest.raises(Invalid) as refused:
                await asked(console, sql)
            assert refused.value.code in ("not_told", "bad_sql")
            assert await asked(console, "select 1") == [[1]]
            assert console._living == {child}

    asyncio.run(ask())


def test_columns_of_one_name_are_told_apart(stored: Path) -> None:
    async def ask() -> bytes:
        async with opened(stored) as console:
            question = Question("select 1 as a, 2 as a, 3 as a_1, 4 as a", format=Format.NDJSON)
            return b"".join([chunk async for chunk in console.ask(question)])

    assert json.loads(asyncio.run(ask())) == {"a": 1, "a_1": 2, "a_1_1": 3, "a_2": 4}


def test_an_answer_that_breaks_off_is_no_whole_answer(stored: Path) -> None:
    async def ask() -> bytes:
        async with opened(stored) as console:
            question = Question("select * from range(1000000000000)", format=Format.CSV, seconds=1)
            return b"".join([chunk async for chunk in console.ask(question)])

    with pytest.raises(SqlFailed):
        asyncio.run(ask())


def test_too_many_questions_are_told_to_come_again(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "MOST_WAITING", 2)

    async def ask() -> list[Any]:
        async with opened(stored, processes=1) as console:
            await asked(console, "select 1")
            many = [asked(console, "select count(*) from range(300000000)", seconds=30) for _ in range(6)]
            return await asyncio.gather(*many, return_exceptions=True)

    answers = asyncio.run(ask())
    told = [answer for answer in answers if not isinstance(answer, Busy)]
    assert len(told) in (2, 3)  # two wait, and one is being answered by then or waits, too
    assert told == [[[300_000_000]]] * len(told)


def test_a_restricted_caller_sees_what_has_its_names_and_nothing_of_others(stored: Path) -> None:
    async def ask(names: list[str] | None) -> dict[str, int]:
        reaches = None if names is None else names.__contains__
        async with opened(stored) as console:
            counts = {view: await asked(console, f"select count(*) from {view}", reaches=reaches) for view in NAMES}
        return {view: count for view, [[count]] in counts.items()}

    every, own, secret, none = (asyncio.run(ask(names)) for names in (None, ["r", "d"], ["secret"], []))

    for view in ("runs", "visits", "groups", "rollouts", "verdicts", "leases", "pairs", "datasets", "prompt_history"):
        assert own[view] + secret[view] == every[view], view
        assert 0 < own[view] < every[view], view
    assert set(none.values()) == {0}


@pytest.mark.parametrize(
    "sql",
    [
        "select count(*) from groups where run = 'secret'",
        "select count(*) from pairs where run = 'secret'",
        "select count(*) from datasets where list_contains(runs, 'secret')",
        "with groups as (select * from main.groups) select count(*) from groups where run != 'r'",
        "select count(*) from memory.main.rollouts where run = 'secret'",
        "select count(*) from informativeness where run = 'secret'",
        "select count(*) from verdicts where run != 'r'",
        "select count(*) from (summarize groups) where column_name = 'run' and max = 'secret'",
    ],
)
def test_no_way_around_the_runs_of_a_restricted_caller(stored: Path, sql: str) -> None:
    async def ask() -> list[list[Any]]:
        async with opened(stored) as console:
            return await asked(console, sql, reaches=["r", "d"].__contains__)

    assert asyncio.run(ask()) == [[0]]


@pytest.mark.parametrize(
    "view",
    [
        *("groups", "rollouts", "verdicts", "visits", "prompt_history", "runs", "leases", "pairs", "informativeness"),
        "datasets",
    ],
)
def test_a_condition_is_never_tried_on_the_rows_of_others(stored: Path, view: str) -> None:
    run = "runs[1]" if view == "datasets" else "run"

    def failing(where: str) -> str:
        return f"select count(*) from {view} where {where} case when {run} != 'r' then error('seen') else true end"

    async def ask() -> None:
        async with opened(stored) as console:
            [[own]] = await asked(console, f"select count(*) from {view} where {run} = 'r'")
            for where in ("", f"{run} = 'r' and", f"{run} != 'secret' and length({run}) > 0 and", "random() < 2 and"):
                assert await asked(console, failing(where), reaches=["r", "d"].__contains__) == [[own]], where
            with pytest.raises(Invalid, match="seen"):
                await asked(console, failing(""))

    asyncio.run(ask())


def test_without_a_container_there_is_no_sql(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(program: str) -> str:
        raise FileNotFoundError(f"there is no {program}")

    monkeypatch.setattr(console_module, "path_of", missing)

    async def ask() -> None:
        async with opened(stored) as console:
            await asked(console, "select 1")

    with pytest.raises(SqlFailed, match="install bubblewrap"):
        asyncio.run(ask())
