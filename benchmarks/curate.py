"""What it costs to curate a large store again with another recipe, against reading the columns that it decides on.

The store is made up: groups of 8, each prompt visited eight times under eight policy versions, a pass rate of its own
for each prompt, completions of about 200 characters and 40 tokens with logprobs. DuckDB may hold 1 GiB, less than the
rollouts take; everything is measured in a process of its own, whose peak memory is told.
"""

import asyncio
import multiprocessing
import resource
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import duckdb

from benchmarks.report import Figure, spread
from curation.curate import curate
from curation.recipe import FirstRightFirstWrong, MaxVariance, Recipe
from service.cli import relax_collector
from service.freezing import Freezer
from service.parts import Store
from service.run_config import Retain, RunConfig, Sampling

REPEATS = 3
MEMORY_MIB = 1024
RUN = RunConfig(name="r", policy="policy", prompt_set="s", sampling=Sampling(n=8), retain=Retain.ALL)
RECIPE = Recipe(runs=("r",), down_sampling=MaxVariance(keep=4), pairs=FirstRightFirstWrong(), per_prompt=4, seed=7)
NOW = datetime.fromisoformat("2026-01-01")


class Measured(NamedTuple):
    read_seconds: float
    curate_seconds: float
    freeze_seconds: float
    rows: int
    peak_mib: float


def run(groups: int) -> dict[str, Figure]:
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        with spawn.Pool(1) as pool:
            pool.apply(_fill, (Path(folder), groups))
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        with spawn.Pool(1, maxtasksperchild=1) as pool:
            measured = [pool.apply(_measure, (Path(folder),)) for _ in range(REPEATS)]
    return {
        "rollouts": spread([8.0 * groups], "rollouts"),
        "store_mib": spread([size / 2**20], "MiB"),
        "rows": spread([float(m.rows) for m in measured], "rows"),
        "read_seconds": spread([m.read_seconds for m in measured], "s"),
        "curate_seconds": spread([m.curate_seconds for m in measured], "s"),
        "curate_per_read": spread([m.curate_seconds / m.read_seconds for m in measured], "x"),
        "freeze_seconds": spread([m.freeze_seconds for m in measured], "s"),
        "freeze_per_read": spread([m.freeze_seconds / m.read_seconds for m in measured], "x"),
        "peak_memory": spread([m.peak_mib for m in measured], "MiB"),
    }


def _fill(folder: Path, groups: int) -> None:
    store = Store.open(folder)
    asyncio.run(store.runs.add(RUN, NOW))
    store.close()
    with duckdb.connect(str(folder / "store.duckdb")) as connection:
        connection.execute("set schema = 'hot_1'")
        for statement in MADE_UP:
            connection.execute(statement, {"groups": groups, "prompts": max(1, groups // 8)})


MADE_UP = (
    """insert into prompts
       select 'p_' || md5(i::varchar), 'What is ' || i || ' + ' || 7 * i || '?', (8 * i)::varchar, 'math', '{}',
              timestamp '2026-01-01'
       from range($prompts) made(i), (select $groups)""",
    """insert into groups
       select i + 1, 'g_' || md5('g' || i), 'r', 'p_' || md5((i % $prompts)::varchar), i // $prompts, 'j', 'policy',
              1 + i // $prompts, 1.0, if(list_min(rewards) < list_max(rewards), 'informative', 'hard'), rewards, 8, 320,
              map {'scored': 8}, 0, 1.0, 0.1, timestamp '2026-01-01', true
       from (select i, [(hash(8 * i + k) % 100 < hash(i % $prompts) % 100)::int::double for k in range(8)] as rewards
             from range($groups) made(i))""",
    """insert into rollouts
       select 1 + n // 8, 'r', 'p_' || md5((n // 8 % $prompts)::varchar), 'policy', 1 + n // 8 // $prompts,
              'g_' || md5('g' || n // 8), n % 8, 40, 198, 198, hash(n), -20.0, 'stop', 'scored',
              (hash(n) % 100 < hash(n // 8 % $prompts) % 100)::int::double, 'math@1', 0.0, '12', null, [],
              repeat(md5(n::varchar) || ' ', 6),
              [hash(n + k) % 50000 for k in range(40)], [-random()::float for k in range(40)]
       from range(8 * $groups) made(n)""",
)

READ = "select group_id, idx, outcome, reward, verifier, finish_reason, tokens from rollouts"


def _measure(folder: Path) -> Measured:
    relax_collector()
    store = Store.open(folder, MEMORY_MIB)

    began = time.perf_counter()
    for _ in store.duck.scan(READ):
        pass
    read = time.perf_counter()
    watermark = asyncio.run(store.groups.watermark(RECIPE.runs))
    rows = len(curate(store.judged.groups(RECIPE.runs, watermark), RECIPE).rows)
    curated = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        asyncio.run(_freeze(store, Path(root)))
    frozen = time.perf_counter()

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    store.close()
    return Measured(read - began, curated - read, frozen - curated, rows, peak)


async def _freeze(store: Store, root: Path) -> None:
    """Under a name of its own each time: the same dataset is not made twice."""
    await freezer_of(store, root).freeze(root.name.replace("_", "-").lower(), RECIPE)


def freezer_of(store: Store, root: Path) -> Freezer:
    return Freezer(
        root,
        groups=store.groups,
        judged=store.judged,
        prompts=store.prompts,
        runs=store.runs,
        datasets=store.datasets,
        now=lambda: NOW,
    )
