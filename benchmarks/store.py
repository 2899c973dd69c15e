"""What it costs to store rollouts by the million: against DuckDB's own bulk insert of the very same batches.

Both take turns over the first batches, each batch a durable commit of its own; the store then takes the rest. What is
measured afterwards (restart, freezing) is measured in a process of its own on the full store.
"""

import asyncio
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from benchmarks.curate import NOW, freezer_of
from benchmarks.report import Figure, spread
from benchmarks.rows import GROUP_SIZE, RUNS, Size, batches, prompts, run_name
from curation.recipe import KRandomPairs, Recipe
from curation.selection import RunState
from curation.selectors.simple import Greso
from service.cli import relax_collector
from service.parts import Store
from service.run_config import Retain, RunConfig, Sampling
from service.store.layout import tables_of
from service.store.transaction import Transaction

GROUPS_PER_BATCH = 8192
COMPARED = 8
"""Batches that DuckDB takes, too."""
MEMORY_MIB = 2048
PAIRS = 1_000_000
RECIPE = Recipe(runs=tuple(run_name(i) for i in range(RUNS)), pairs=KRandomPairs(k=2), max_pairs=PAIRS, seed=7)
RUN = RunConfig(name=run_name(0), policy="policy", prompt_set="s", sampling=Sampling(n=GROUP_SIZE), retain=Retain.ALL)


class Filled(NamedTuple):
    ours: list[float]
    theirs: list[float]
    seconds: float
    """Of all commits of ours together."""
    peak_mib: float


class Restarted(NamedTuple):
    open_seconds: float
    greso_seconds: float
    peak_mib: float


class Frozen(NamedTuple):
    seconds: float
    rows: int
    peak_mib: float


def run(rollouts: int, folder: Path | None) -> dict[str, Figure]:
    size = Size(rollouts // GROUP_SIZE)
    with _at(folder) as data:
        filled = _alone(fill, data, size)
        stored = sum(file.stat().st_size for file in (data / "segments").rglob("*.parquet"))
        restarts = [_alone(_restart, data, size) for _ in range(3)]
        frozen = _alone(_freeze, data, size)
    ratios = [theirs / ours for ours, theirs in zip(filled.ours, filled.theirs, strict=True)]
    per_batch = GROUPS_PER_BATCH * GROUP_SIZE
    return {
        "rows": spread([float(GROUP_SIZE * size.groups)], "rollouts"),
        "ingest_ratio": spread(ratios, "x"),
        "ingest_rate": spread([per_batch / seconds for seconds in filled.ours], "rollouts/s"),
        "duckdb_rate": spread([per_batch / seconds for seconds in filled.theirs], "rollouts/s"),
        "whole_rate": spread([GROUP_SIZE * size.groups / filled.seconds], "rollouts/s"),
        "bytes_per_rollout": spread([stored / GROUP_SIZE / size.groups], "B"),
        "store_gib": spread([stored / 2**30], "GiB"),
        "peak_gib": spread([filled.peak_mib / 1024], "GiB"),
        "open_seconds": spread([one.open_seconds for one in restarts], "s"),
        "greso_seconds": spread([one.greso_seconds for one in restarts], "s"),
        "restart_peak_gib": spread([one.peak_mib / 1024 for one in restarts], "GiB"),
        "pairs": spread([float(frozen.rows)], "rows"),
        "freeze_seconds": spread([frozen.seconds], "s"),
        "freeze_peak_gib": spread([frozen.peak_mib / 1024], "GiB"),
    }


@contextmanager
def _at(folder: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield folder or Path(made)


def _alone(work: Any, *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def fill(data: Path, size: Size) -> Filled:
    """Makes the store; and on the way, beside it, DuckDB's own of the first batches."""
    store = Store.open(data, MEMORY_MIB)
    schemas = store.duck.schemas
    store.duck.write_now(lambda tx: tx.append({"prompts": prompts(size, schemas["prompts"])}))
    for i in range(RUNS):
        asyncio.run(store.runs.add(RUN.model_copy(update={"name": run_name(i)}), NOW))
    made = batches(size, schemas, GROUPS_PER_BATCH, seed=0)
    ours, others = [], []
    aside = data / "duckdb"
    aside.mkdir()
    config = {"checkpoint_threshold": "256MB", "memory_limit": f"{MEMORY_MIB}MiB"}  # as ours has them
    with duckdb.connect(str(aside / "store.duckdb"), config=config) as connection:
        connection.execute(tables_of(1))
        for number, tables in enumerate(made):
            began = time.perf_counter()
            store.duck.write_now(partial(Transaction.append, tables=tables))
            ours.append(time.perf_counter() - began)
            if number < COMPARED:
                others.append(_insert(connection, tables))
    shutil.rmtree(aside)
    store.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Filled(ours[:COMPARED], others, sum(ours), peak)


def _insert(connection: duckdb.DuckDBPyConnection, tables: Any) -> float:
    began = time.perf_counter()
    connection.begin()
    for name, rows in tables.items():
        connection.register("batch", rows)
        connection.execute(f"insert into hot_1.{name} select * from batch")
        connection.unregister("batch")
    connection.commit()
    return time.perf_counter() - began


def _restart(data: Path, size: Size) -> Restarted:
    """A service's start, as far as the store goes, and the selector of one of its runs."""
    relax_collector()
    began = time.perf_counter()
    store = Store.open(data, MEMORY_MIB)
    opened = time.perf_counter()
    seen = asyncio.run(store.groups.seen(run_name(RUNS - 1)))
    RunState.replay(Greso(), seen, seed=0, group_size=GROUP_SIZE)
    derived = time.perf_counter()
    store.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Restarted(opened - began, derived - opened, peak)


def _freeze(data: Path, size: Size) -> Frozen:
    relax_collector()
    store = Store.open(data, MEMORY_MIB)
    with tempfile.TemporaryDirectory(dir=data) as root:
        began = time.perf_counter()
        frozen = asyncio.run(freezer_of(store, Path(root)).freeze(Path(root).name.replace("_", "-").lower(), RECIPE))
        seconds = time.perf_counter() - began
    store.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Frozen(seconds, int(frozen.manifest["rows"]), peak)
