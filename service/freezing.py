"""From a recipe to a frozen dataset version: Parquet and JSONL files that never change, and a manifest that names them.

- The same recipe over the same groups gives the same bytes; no clock, machine or order of arrival is in them.
- Texts go through in parts; the memory that a dataset takes does not grow with them.
- The files are on disk, fsynced and under their final name before the version is registered.
"""

import asyncio
import math
import shutil
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime
from functools import cache, partial
from itertools import chain
from itertools import count as count_from
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curation.contamination import Forbidden
from curation.curate import Curated, Dropped, Split, curate, split_of
from curation.informativeness import summarize
from curation.judged import JudgedGroup
from curation.recipe import RULES, Recipe, Shape
from service.shapes import count, tables_of, tables_of_left_out
from service.stages import Invalid, NotFound, StoreFailed, stage
from service.store.datasets import Datasets, DatasetVersion
from service.store.durable import sha256_of, sync
from service.store.groups import Groups
from service.store.judged import Judged
from service.store.prompts import Prompts
from service.store.runs import Runs

LEFT_OUT_FILE = "left_out.parquet"
"""Every group that gave no row and every row that was left out again, with the reason."""
SHARD_BYTES = 2**29
"""Of a Parquet file of a split, more or less; a larger split is several files."""


class Freezer:
    """Makes dataset versions in the folder `root`, which is nobody else's."""

    def __init__(
        self,
        root: Path,
        *,
        groups: Groups,
        judged: Judged,
        prompts: Prompts,
        runs: Runs,
        datasets: Datasets,
        now: Callable[[], datetime],
    ) -> None:
        self._root = root
        self._groups = groups
        self._judged = judged
        self._prompts = prompts
        self._runs = runs
        self._datasets = datasets
        self._now = now
        for unfinished in root.glob("*.part"):
            shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed process
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def freeze(
        self, name: str, recipe: Recipe, *, begin: Callable[[str], Awaitable[None]] | None = None
    ) -> DatasetVersion:
        """The dataset version for this recipe over the store as it is now; the existing one if nothing changed. `begin`
        is told its id before it is made.

        Raises NotFound for an unknown run or prompt set, Invalid when the selection gives no row.
        """
        configs = [await self._runs.get(run) for run in recipe.runs]
        if recipe.shape is Shape.PAIRS and (too_small := [run.name for run in configs if run.sampling.n < 2]):
            raise Invalid("group_too_small", f"a pair needs two rollouts, and {', '.join(too_small)} samples n = 1")
        watermark = await self._groups.watermark(recipe.runs)
        forbidden = await _forbidden(recipe, self._prompts)
        dataset_id = recipe.dataset_id(watermark, forbidden.digest if forbidden else "")
        if begin:
            await begin(dataset_id)
        # An impatient client asks again while the first freeze still writes into the same folder.
        lock = self._locks.setdefault(dataset_id, asyncio.Lock())
        # A thread cannot be stopped: whoever stops waiting must not let go of the lock.
        return await asyncio.shield(self._once(lock, name, dataset_id, recipe, watermark, forbidden))

    async def _once(
        self,
        lock: asyncio.Lock,
        name: str,
        dataset_id: str,
        recipe: Recipe,
        watermark: int,
        forbidden: Forbidden | None,
    ) -> DatasetVersion:
        async with lock:
            if existing := await self._datasets.by_id(name, dataset_id):
                return existing
            with stage(StoreFailed, f"freezing dataset {name}"):
                manifest = await asyncio.to_thread(self._make, dataset_id, recipe, watermark, forbidden)
            return await self._datasets.register(name, dataset_id, recipe, watermark, manifest, self._now())

    async def delete(self, name: str, version: int, reason: str) -> DatasetVersion:
        """Removes the files of a version and leaves a tombstone. Files that another version holds, too, stay."""
        dataset = await self._datasets.get(name, version)
        async with self._locks.setdefault(dataset.dataset_id, asyncio.Lock()):
            if await self._datasets.delete(name, version, reason, self._now()):
                await asyncio.to_thread(shutil.rmtree, self._root / dataset.dataset_id, ignore_errors=True)
        return await self._datasets.get(name, version)

    def _make(self, dataset_id: str, recipe: Recipe, watermark: int, forbidden: Forbidden | None) -> dict[str, Any]:
        """Curates and writes the files; returns the manifest."""
        judged, runs = self._judged, recipe.runs
        groups = judged.groups(
            runs, watermark, recipe.verifier, digests=recipe.unique, references=recipe.shape is Shape.PROMPTS
        )
        contaminated = judged.contaminated(runs, watermark, forbidden.is_in) if forbidden else ()
        rewards, sizes = array("d"), array("q")
        curated = curate(_noting_rewards(groups, rewards, sizes), recipe, contaminated)
        funnel = _funnel(curated, recipe)
        if not curated.rows:
            detail = f"{curated.groups} groups gave no row: {_reasons(funnel) or 'the runs hold none'}"
            if judges := {one.detail for one in curated.left_out if one.reason is Dropped.OTHER_VERIFIER}:
                detail += f" ({', '.join(sorted(judges)[:5])})"
            raise Invalid("no_rows", detail, **funnel)
        return {
            "dataset_id": dataset_id,
            "recipe": recipe.model_dump(mode="json"),
            "recipe_hash": recipe.hash,
            "rules": RULES,
            "watermark": watermark,
            **funnel,
            "verifiers": dict(sorted(Counter(row.origin.verifier for row in curated.rows).items())),
            "informativeness": asdict(summarize(rewards, sizes)),
            "spent": judged.spent(runs, watermark),
            "files": _write_files(self._root / dataset_id, curated, recipe, judged),
        }


def _noting_rewards(
    groups: Iterable[JudgedGroup], rewards: "array[float]", sizes: "array[int]"
) -> Iterator[JudgedGroup]:
    """The groups, while the rewards of every one are noted as `summarize` takes them."""
    for group in groups:
        scored_G = group.scored_G
        rewards.extend(scored_G)
        sizes.append(len(scored_G))
        yield group


def _funnel(curated: Curated, recipe: Recipe) -> dict[str, Any]:
    return {
        "groups": curated.groups,
        "rows": count(curated.rows, recipe.shape),
        "dropped": {reason.value: n for reason, n in sorted(curated.dropped.items())},
        "cut": {reason.value: n for reason, n in sorted(curated.cut.items())},
    }


async def _forbidden(recipe: Recipe, prompts: Prompts) -> Forbidden | None:
    """What the recipe keeps away from. Raises NotFound for a prompt set that nobody filled."""
    against = recipe.decontaminate
    if against is None:
        return None
    texts = []
    for prompt_set in against.prompt_sets:
        held = await prompts.of_set(prompt_set)
        if not held:
            raise NotFound("empty_prompt_set", f"prompt set {prompt_set!r} holds no prompts to keep away from")
        texts += [prompt.text for prompt in held.values()]
    return await asyncio.to_thread(Forbidden, texts, against.words, against.least)


def _reasons(funnel: dict[str, Any]) -> str:
    counts = [*funnel["dropped"].items(), *funnel["cut"].items()]
    return ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in counts)


def _write_files(folder: Path, curated: Curated, recipe: Recipe, judged: Judged) -> dict[str, dict[str, Any]]:
    """Writes every split in both formats, and what was left out; returns what the manifest says of the files."""
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        files = _write_into(unfinished, curated, recipe, judged)
        sync(unfinished)
        if folder.exists():
            _compare(folder, files)  # frozen under another name before
        else:
            unfinished.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return files


def _compare(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Raises StoreFailed where the same id turns out to mean other bytes: other versions of libraries wrote them."""
    for name, said in files.items():
        path = folder / name
        if not path.exists() or _seal(path, said["rows"]) != said:
            raise StoreFailed(
                f"{path} was written by other software and differs from what this one writes; move it away"
            )


def _write_into(folder: Path, curated: Curated, recipe: Recipe, judged: Judged) -> dict[str, dict[str, Any]]:
    files: dict[str, dict[str, Any]] = {}
    split_of_prompt = cache(partial(split_of, recipe=recipe))
    for split in Split:
        rows = [row for row in curated.rows if split_of_prompt(row.origin.prompt_id) is split]
        if rows:
            shards = list(_write_shards(tables_of(rows, recipe, judged), folder))
            for number, (parquet, jsonl, written) in enumerate(shards):
                of = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
                for shard in (parquet, jsonl):
                    named = shard.rename(folder / f"{split}{of}{shard.suffix}")
                    files[named.name] = _seal(named, written)
    if curated.left_out:
        written = _write(tables_of_left_out(curated.left_out), folder / LEFT_OUT_FILE)
        files[LEFT_OUT_FILE] = _seal(folder / LEFT_OUT_FILE, written)
    return files


def _write_shards(tables: Iterator[pa.Table], folder: Path) -> Iterator[tuple[Path, Path, int]]:
    """The tables as Parquet and as lines, in files that end where they are large enough; and the rows of each."""
    for number in count_from(0):
        first = next(tables, None)
        if first is None:
            return
        parquet, jsonl = (folder / f"shard-{number}.{kind}" for kind in ("parquet", "jsonl"))
        yield parquet, jsonl, _write(chain([first], tables), parquet, jsonl, SHARD_BYTES)


def _write(tables: Iterator[pa.Table], parquet: Path, jsonl: Path | None = None, enough: float = math.inf) -> int:
    """Each table as a row group, and its rows as lines, until the Parquet file is large enough; returns how many rows
    there were."""
    rows = 0
    with ExitStack() as closing:
        lines = closing.enter_context(jsonl.open("wb")) if jsonl else None
        sink = closing.enter_context(parquet.open("wb"))
        first = next(tables)
        writer = closing.enter_context(pq.ParquetWriter(sink, first.schema, compression="zstd"))
        for table in chain([first], tables):
            writer.write_table(table, row_group_size=len(table))
            if lines:
                pl.DataFrame(table).write_ndjson(lines)
            rows += len(table)
            if sink.tell() >= enough:
                break
    return rows


def _seal(path: Path, rows: int) -> dict[str, Any]:
    """What the manifest says of a file that is on the disk, not only in its cache."""
    sync(path)
    return {"rows": rows, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
