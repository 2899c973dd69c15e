"""What asking costs: ten questions of a researcher, through REST against DuckDB in the asking process itself.

Both see the same views over the same files, with the same threads and memory; they take turns. Then the time of a
commit while nobody asks and while somebody asks heavy questions without a pause.
"""

import asyncio
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import httpx2

from benchmarks.report import Figure, spread
from benchmarks.rows import GROUP_SIZE, Size
from benchmarks.store import fill
from service.parts import Store
from service.sql.inside.database import make_views
from service.sql.views import DATASETS, SEGMENTS, definitions
from service.store.layout import tables_of

REPEATS = 9
COMMITS = 200
ALLOWED_MS = 20.0
"""That REST may add to a fifth more."""

QUESTIONS = {
    "pass_rate_by_version": """
        select run, policy_version, avg(reward) as pass_rate, count(*) as rollouts
        from rollouts group by all order by all""",
    "became_solvable": """
        select prompt_id, min(policy_version) filter (pass_rate > 0) as first_solved, max(pass_rate) as best
        from groups where run = 'run3' group by 1
        having arg_min(pass_rate, visit) = 0 and max(pass_rate) >= 0.5 order by best desc, prompt_id limit 100""",
    "zero_variance_over_time": """
        select date_trunc('hour', stored_at) as hour, avg((not informative)::int) as zero_variance, count(*) as groups
        from groups group by 1 order by 1""",
    "cost_per_pair": """
        select run, sum(tokens) / sum(len(list_filter(rewards, r -> r = 1)) * len(list_filter(rewards, r -> r = 0)))
            as tokens_per_pair, sum(sampling_seconds) as seconds
        from groups group by 1 order by 1""",
    "longest_right_answers": """
        select group_id, idx, tokens, left(text, 200) as beginning from rollouts
        where run = 'run5' and reward = 1 order by tokens desc, group_id, idx limit 20""",
    "duplicate_completions": """
        select text_hash, count(*) as times, min(group_id) as example from rollouts
        where run = 'run1' group by 1 having count(*) > 1 order by times desc, text_hash limit 50""",
    "reward_by_verifier": """
        select verifier, outcome, count(*) as verdicts, avg(reward) as mean, quantile_cont(elapsed, 0.99) as p99
        from rollouts group by all order by all""",
    "length_of_right_and_wrong": """
        select policy_version, avg(tokens) filter (reward = 1) as tokens_right, avg(tokens) filter (reward = 0) as wrong
        from rollouts group by 1 order by 1""",
    "hardest_prompts": """
        select prompt_id, count(*) as visits, avg(pass_rate) as pass_rate, any_value(left(p.text, 80)) as text
        from groups g join prompts p using (prompt_id) group by 1
        having count(*) >= 20 order by pass_rate, visits desc, prompt_id limit 50""",
    "one_prompt": """
        select visit, policy_version, rewards from groups
        where prompt_id = (select min(prompt_id) from prompts) order by run, visit""",
}
HEAVY = """
    select prompt_id, text_hash % 1000 as bucket, count(*), avg(logprob)
    from rollouts group by all order by 3 desc"""


def run(rollouts: int, folder: Path | None) -> dict[str, Figure]:
    with tempfile.TemporaryDirectory() as made:
        data = folder or Path(made)
        if folder is None or not (folder / "segments").exists():
            fill(data, Size(rollouts // GROUP_SIZE))
        figures = _questions(data)
        figures |= _commits(data)
    return figures


def _questions(data: Path) -> dict[str, Figure]:
    directly = _direct(data)
    times: dict[str, tuple[list[float], list[float]]] = {}
    with served(data) as url, httpx2.Client(timeout=600) as client:
        for name, sql in QUESTIONS.items():
            by_rest, direct = [], []
            for turn in range(REPEATS + 1):
                began = time.perf_counter()
                answer = client.post(f"{url}/v1/sql", json={"sql": sql, "limit": 100_000, "timeout_ms": 600_000})
                rest = time.perf_counter()
                answer.raise_for_status()
                rows = directly(sql)
                done = time.perf_counter()
                if len(rows) != len(answer.json()["rows"]):
                    raise AssertionError(f"{name}: {len(rows)} rows, and {len(answer.json()['rows'])} through REST")
                if turn:  # the first one warms both
                    by_rest.append(1000 * (rest - began))
                    direct.append(1000 * (done - rest))
            times[name] = by_rest, direct
    figures: dict[str, Figure] = {}
    for name, (by_rest, direct) in times.items():
        figures[f"{name}_rest_ms"] = spread(by_rest, "ms")
        figures[f"{name}_duckdb_ms"] = spread(direct, "ms")
    worst = [_p95(by_rest) / _p95(direct) for by_rest, direct in times.values()]
    beyond = [(_p95(by_rest) - ALLOWED_MS) / _p95(direct) for by_rest, direct in times.values()]
    figures["p95_ratio"] = spread(worst, "x")
    figures["p95_ratio_after_20_ms"] = spread(beyond, "x")
    return figures


def _p95(values: list[float]) -> float:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def _direct(data: Path) -> Callable[[str], list[Any]]:
    """Asks a DuckDB in this process that has the very same views."""
    store = Store.open(data)
    store.sealer.seal()
    datasets = asyncio.run(store.datasets.versions())
    layout = store.duck.layout
    views = definitions(layout, datasets, data / "datasets", None)
    store.close()
    real = {str(SEGMENTS): str((data / "segments").absolute()), str(DATASETS): str((data / "datasets").absolute())}
    for of_schema in views.values():
        for name, (sql, needs) in of_schema.items():
            for inside, outside in real.items():
                sql = sql.replace(f"'{inside}/", f"'{outside}/")
            of_schema[name] = (sql, needs)
    connection = duckdb.connect(":memory:", config={"threads": os.cpu_count() or 1, "memory_limit": "1024MiB"})
    connection.execute(tables_of(0))
    connection.execute("create schema store")
    make_views(connection, views, sorted(views["main"]))
    return lambda sql: connection.execute(sql).fetchall()


@contextmanager
def served(data: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "refinery", "serve", "--data", str(data), "--port", "0"]
    environment = os.environ | {"REFINERY_SQL_SECONDS": "600"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("listening on "):
                yield line.split()[-1]
                return
        raise RuntimeError("the service did not start")
    finally:
        process.terminate()
        process.wait()


def _commits(data: Path) -> dict[str, Figure]:
    """Prompts of one group are added one after another, each a commit."""
    with served(data) as url, httpx2.Client(timeout=600) as client:
        quiet = _commit_times(client, url, "quiet")
        stop = threading.Event()
        asked: list[float] = []

        def ask() -> None:
            with httpx2.Client(timeout=600) as asking:
                while not stop.is_set():
                    began = time.perf_counter()
                    asking.post(f"{url}/v1/sql", json={"sql": HEAVY, "limit": 10, "timeout_ms": 600_000})
                    asked.append(time.perf_counter() - began)

        heavy = threading.Thread(target=ask)
        heavy.start()
        time.sleep(1.0)
        busy = _commit_times(client, url, "busy")
        stop.set()
        heavy.join()
    return {
        "commit_quiet_p50_ms": spread([statistics.median(quiet)], "ms"),
        "commit_quiet_p95_ms": spread([_p95(quiet)], "ms"),
        "commit_busy_p50_ms": spread([statistics.median(busy)], "ms"),
        "commit_busy_p95_ms": spread([_p95(busy)], "ms"),
        "heavy_question_seconds": spread(asked, "s"),
    }


def _commit_times(client: httpx2.Client, url: str, name: str) -> list[float]:
    times = []
    for i in range(COMMITS):
        rows = [{"prompt": f"{name} {os.getpid()} {time.time_ns()} {i} {k}", "reference": "4"} for k in range(8)]
        began = time.perf_counter()
        client.post(f"{url}/v1/prompts?set=bench", json=rows).raise_for_status()
        times.append(1000 * (time.perf_counter() - began))
    return times
