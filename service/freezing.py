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

from curation.curate import Curated, Split, curate, split_of
from curation.informativeness import summarize
from curation.recipe import RULES, Recipe
from curation.records import Pair
from service.stages import Invalid, StoreFailed, stage
from service.store.datasets import Datasets, DatasetVersion
from service.store.groups import Groups
from service.store.runs import Runs

COLUMNS = pa.schema(
    [
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        # Lineage: TRL ignores extra columns.
        ("margin", pa.float64()),
        ("chosen_reward", pa.float64()),
        ("rejected_reward", pa.float64()),
        ("chosen_tokens", pa.int32()),
        ("rejected_tokens", pa.int32()),
        ("chosen_index", pa.int32()),
        ("rejected_index", pa.int32()),
        ("prompt_id", pa.string()),
        ("group_id", pa.string()),
        ("run", pa.string()),
        ("visit", pa.int32()),
        ("policy_version", pa.int32()),
        ("temperature", pa.float64()),
        ("verifier", pa.string()),
    ]
)
ROWS_PER_GROUP = 10_000
"""Parquet row group: what a reader must hold at once."""


async def freeze(
    name: str,
    recipe: Recipe,
    *,
    root: Path,
    groups: Groups,
    runs: Runs,
    datasets: Datasets,
    now: Callable[[], datetime],
) -> DatasetVersion:
    """The dataset version for this recipe over the store as it is now; the existing one if nothing changed.

    Raises NotFound for an unknown run, Invalid when the selection gives no pair.
    """
    configs = [await runs.get(run) for run in recipe.runs]
    if too_small := [run.name for run in configs if run.sampling.n < 2]:
        raise Invalid("group_too_small", f"a pair needs two rollouts, and {', '.join(too_small)} samples n = 1")
    watermark = await groups.watermark()
    dataset_id = recipe.dataset_id(watermark)
    if existing := await datasets.by_id(name, dataset_id):
        return existing

    found = await groups.for_curation(recipe.runs, watermark, recipe.verifier)
    temperatures = {group.id: temperature for group, temperature in found}
    curated = await asyncio.to_thread(curate, [group for group, _ in found], recipe)
    if not curated.pairs:
        raise Invalid(
            "no_pairs",
            f"{curated.groups} groups with text gave no pair: {_reasons(curated) or 'the runs hold none'}",
            dropped={reason.value: n for reason, n in sorted(curated.dropped.items())},
        )
    manifest = {
        "dataset_id": dataset_id,
        "recipe": recipe.model_dump(mode="json"),
        "recipe_hash": recipe.hash,
        "rules": RULES,
        "watermark": watermark,
        "groups": curated.groups,
        "pairs": len(curated.pairs),
        "pairs_over_limit": curated.pairs_over_limit,
        "dropped": {reason.value: n for reason, n in sorted(curated.dropped.items())},
        "verifiers": dict(sorted(Counter(pair.group.rollouts_G[0].verdict.verifier for pair in curated.pairs).items())),
        "informativeness": asdict(summarize(await groups.rewards(recipe.runs))),
    }
    folder = root / dataset_id
    with stage(StoreFailed, f"writing dataset {name}"):
        manifest["files"] = await asyncio.to_thread(_write_files, folder, curated.pairs, temperatures, recipe)
    return await datasets.register(name, dataset_id, recipe, watermark, manifest, now())


def _reasons(curated: Curated) -> str:
    return ", ".join(f"{n} {reason.value.replace('_', ' ')}" for reason, n in sorted(curated.dropped.items()))


def _write_files(
    folder: Path, pairs: list[Pair], temperatures: dict[str, float | None], recipe: Recipe
) -> dict[str, dict[str, Any]]:
    """Writes every split in both formats; returns what the manifest says of the files."""
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    files = {}
    for split in Split:
        rows = [_row(p, temperatures[p.group.id]) for p in pairs if split_of(p.group.prompt.id, recipe) is split]
        if not rows:
            continue
        table = pa.Table.from_pylist(rows, schema=COLUMNS)
        parquet, jsonl = unfinished / f"{split}.parquet", unfinished / f"{split}.jsonl"
        pq.write_table(table, parquet, compression="zstd", row_group_size=ROWS_PER_GROUP)
        jsonl.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        for path in (parquet, jsonl):
            files[path.name] = {"rows": len(rows), "bytes": path.stat().st_size, "sha256": _sealed_sha256(path)}
    _sync_folder(unfinished)
    # The same id means the same bytes, so whoever finished first is right.
    if folder.exists():
        shutil.rmtree(unfinished)
    else:
        unfinished.rename(folder)
    _sync_folder(folder.parent)
    return files


def _row(pair: Pair, temperature: float | None) -> dict[str, Any]:
    group = pair.group
    chosen, rejected = group.rollouts_G[pair.chosen], group.rollouts_G[pair.rejected]
    return {
        "prompt": group.prompt.text,
        "chosen": chosen.text,
        "rejected": rejected.text,
        "margin": pair.margin,
        "chosen_reward": chosen.reward,
        "rejected_reward": rejected.reward,
        "chosen_tokens": len(chosen.completion.token_ids_T) or None,
        "rejected_tokens": len(rejected.completion.token_ids_T) or None,
        "chosen_index": pair.chosen,
        "rejected_index": pair.rejected,
        "prompt_id": group.prompt.id,
        "group_id": group.id,
        "run": group.run,
        "visit": group.visit,
        "policy_version": group.policy_version,
        "temperature": temperature,
        "verifier": chosen.verdict.verifier,
    }


def _sealed_sha256(path: Path) -> str:
    """Of a file that is on the disk, not only in its cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
