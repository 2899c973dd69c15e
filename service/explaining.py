"""Why a prompt is, or is not, in a dataset: its visits, the steps of the recipe on its groups, and what became of them.

What became of them is read from the frozen files, so that the answer stays what it was when the dataset was made.
"""

import asyncio
from pathlib import Path
from typing import Any

import polars as pl

from curation.curate import Dropped
from curation.explain import steps
from service.freezing import LEFT_OUT_FILE
from service.stages import StoreFailed
from service.store.datasets import DatasetVersion
from service.store.judged import Judged
from service.store.prompts import Prompts

LATER = "sampled after the dataset was frozen"


async def explain(
    dataset: DatasetVersion, prompt_id: str, *, folder: Path, judged: Judged, prompts: Prompts
) -> dict[str, Any]:
    """Everything that the store and the dataset know of the prompt in the recipe's runs. Raises NotFound for an unknown
    prompt."""
    recipe = dataset.recipe
    [prompt] = (await prompts.get([prompt_id])).values()
    visits = [visit for visit in await prompts.visits(prompt_id) if visit["run"] in recipe.runs]
    told = await asyncio.to_thread(_steps, judged, dataset, prompt_id)
    rows, left_out = await asyncio.to_thread(_frozen, folder, dataset, prompt_id)
    for visit in visits:
        if group_id := visit["group_id"]:
            visit["steps"] = told.get(group_id, [LATER])
            # A row of the shape "prompts" stands for all groups of its prompt.
            visit["rows"] = [row for row in rows if row.get("group_id", group_id) == group_id]
            visit["left_out"] = [one for one in left_out if one["group_id"] == group_id]
            if any(one["reason"] == Dropped.CONTAMINATED for one in visit["left_out"]):
                visit["steps"] = []  # it was left out before the first of them
    return {
        "dataset": f"{dataset.name}@{dataset.version}",
        "prompt_id": prompt_id,
        "prompt": prompt.text,
        "told": None if visits else f"no run of the recipe ({', '.join(recipe.runs)}) has considered it",
        "visits": visits,
    }


def _steps(judged: Judged, dataset: DatasetVersion, prompt_id: str) -> dict[str, list[str]]:
    """Of the recipe, on each group of the prompt whose text is kept."""
    recipe = dataset.recipe
    groups = judged.groups(recipe.runs, dataset.watermark, recipe.verifier, prompt_id)
    return {group.origin.group_id: steps(group, recipe) for group in groups}


def _frozen(folder: Path, dataset: DatasetVersion, prompt_id: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    for split in dataset.splits:
        paths = [folder / name for name in dataset.shards(split)]
        rows += [row | {"split": split.value} for row in _of_prompt(paths, prompt_id)]
    return rows, _of_prompt([folder / name for name in dataset.manifest["files"] if name == LEFT_OUT_FILE], prompt_id)


def _of_prompt(paths: list[Path], prompt_id: str) -> list[dict[str, Any]]:
    """The rows of a prompt, without texts and tokens."""
    if not paths:
        return []
    if missing := [path for path in paths if not path.is_file()]:
        raise StoreFailed(f"{missing[0]} is missing; `refinery store check` tells what else is, and a backup has it")
    frame = pl.scan_parquet(paths).filter(pl.col("prompt_id") == prompt_id)
    kept = [name for name in frame.collect_schema().names() if name not in TEXTS]
    return frame.select(kept).collect().to_dicts()


TEXTS = {"prompt", "chosen", "rejected", "completion", "completions", "token_ids", "logprobs", "prompt_id"}
