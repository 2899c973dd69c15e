"""From a recipe to a frozen dataset version: Parquet and JSONL files that never change, and a manifest that names them.

- The same recipe over the same groups gives the same bytes; no clock, machine or order of arrival is in them.
- The files are on disk, fsynced and under their final name before the version is registered.
"""

import asyncio
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.contamination import Forbidden
from curation.curate import Curated, Split, curate, nothing, split_of
from curation.informativeness import summarize
from curation.recipe import RULES, Recipe, Shape
from service.shapes import COLUMNS, LEFT_OUT, Temperatures, left_out_rows, rows_in, rows_of
from service.stages import Invalid, NotFound, StoreFailed, stage
from service.store.datasets import Datasets, DatasetVersion
from service.store.groups import Groups
from service.store.prompts import Prompts
from service.store.runs import Runs

ROWS_PER_GROUP = 10_000
"""Parquet row group: what a reader must hold at once."""
LEFT_OUT_FILE = "left_out.parquet"
"""Every group that gave no row and every row that was left out again, with the reason."""


async def freeze(
    name: str,
    recipe: Recipe,
    *,
    root: Path,
    groups: Groups,
    prompts: Prompts,
    runs: Runs,
    datasets: Datasets,
    now: Callable[[], datetime],
) -> DatasetVersion:
    """The dataset version for this recipe over the store as it is now; the existing one if nothing changed.

    Raises NotFound for an unknown run or prompt set, Invalid when the selection gives no row.
    """
    configs = [await runs.get(run) for run in recipe.runs]
    if recipe.shape is Shape.PAIRS and (too_small := [run.name for run in configs if run.sampling.n < 2]):
        raise Invalid("group_too_small", f"a pair needs two rollouts, and {', '.join(too_small)} samples n = 1")
    watermark = await groups.watermark()
    forbidden = await _forbidden(recipe, prompts)
    dataset_id = recipe.dataset_id(watermark, forbidden.digest if forbidden else "")
    if existing := await datasets.by_id(name, dataset_id):
        return existing

    found = await groups.for_curation(recipe.runs, watermark, recipe.verifier)
    temperatures = {group.id: temperature for group, temperature in found}
    is_contaminated = forbidden.is_in if forbidden else nothing
    curated = await asyncio.to_thread(curate, [group for group, _ in found], recipe, is_contaminated)
    funnel = {
        "groups": curated.groups,
        "rows": rows_in(curated.rows, recipe),
        "dropped": {reason.value: n for reason, n in sorted(curated.dropped.items())},
        "cut": {reason.value: n for reason, n in sorted(curated.cut.items())},
    }
    if not curated.rows:
        detail = f"{curated.groups} groups with text gave no row: {_reasons(funnel) or 'the runs hold none'}"
        raise Invalid("no_rows", detail, **funnel)
    manifest = {
        "dataset_id": dataset_id,
        "recipe": recipe.model_dump(mode="json"),
        "recipe_hash": recipe.hash,
        "rules": RULES,
        "watermark": watermark,
        **funnel,
        "verifiers": dict(sorted(Counter(row.group.rollouts_G[0].verdict.verifier for row in curated.rows).items())),
        "informativeness": asdict(summarize(await groups.rewards(recipe.runs))),
    }
    folder = root / dataset_id
    with stage(StoreFailed, f"writing dataset {name}"):
        manifest["files"] = await asyncio.to_thread(_write_files, folder, curated, temperatures, recipe)
    return await datasets.register(name, dataset_id, recipe, watermark, manifest, now())


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
    return await asyncio.to_thread(Forbidden, texts, against.words)


def _reasons(funnel: dict[str, Any]) -> str:
    counts = [*funnel["dropped"].items(), *funnel["cut"].items()]
    return ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in counts)


def _write_files(
    folder: Path, curated: Curated, temperatures: Temperatures, recipe: Recipe
) -> dict[str, dict[str, Any]]:
    """Writes every split in both formats, and what was left out; returns what the manifest says of the files."""
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    files = {}
    for split in Split:
        rows = [row for row in curated.rows if split_of(row.group.prompt.id, recipe) is split]
        if not rows:
            continue
        made = rows_of(rows, temperatures, recipe)
        jsonl = unfinished / f"{split}.jsonl"
        jsonl.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
        for path in (_write_parquet(unfinished / f"{split}.parquet", made, COLUMNS[recipe.shape]), jsonl):
            files[path.name] = _seal(path, len(made))
    if curated.left_out:
        path = _write_parquet(unfinished / LEFT_OUT_FILE, left_out_rows(curated.left_out), LEFT_OUT)
        files[path.name] = _seal(path, len(curated.left_out))
    _sync_folder(unfinished)
    # The same id means the same bytes, so whoever finished first is right.
    if folder.exists():
        shutil.rmtree(unfinished)
    else:
        unfinished.rename(folder)
    _sync_folder(folder.parent)
    return files


def _write_parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> Path:
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, path, compression="zstd", row_group_size=ROWS_PER_GROUP)
    return path


def _seal(path: Path, rows: int) -> dict[str, Any]:
    """What the manifest says of a file that is on the disk, not only in its cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"rows": rows, "bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
