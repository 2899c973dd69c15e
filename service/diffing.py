"""What two frozen datasets have in common: rows by where they come from, and what differs in how they were made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from service.stages import Invalid
from service.store.datasets import DatasetVersion

IDENTITY = ("prompt_id", "group_id", "chosen_index", "rejected_index", "index", "indices")
"""Columns that say what a row is, as far as its shape has them."""
EXAMPLES = 10


def diff(one: DatasetVersion, other: DatasetVersion, files: Sequence[list[Path]]) -> dict[str, Any]:
    """`files` are the splits of both. Raises Invalid where the rows are of different shapes."""
    if one.recipe.shape is not other.recipe.shape:
        raise Invalid("different_shapes", f"rows of shape {one.recipe.shape} and {other.recipe.shape} do not compare")
    mine, theirs = (_rows(paths) for paths in files)
    keys = mine.columns
    added = theirs.join(mine, on=keys, how="anti", nulls_equal=True)
    removed = mine.join(theirs, on=keys, how="anti", nulls_equal=True)
    return {
        "one": f"{one.name}@{one.version}",
        "other": f"{other.name}@{other.version}",
        "recipe": _differences(one.recipe.model_dump(mode="json"), other.recipe.model_dump(mode="json")),
        "watermark": [one.watermark, other.watermark],
        "rows": {"both": len(mine) - len(removed), "only_one": len(removed), "only_other": len(added)},
        "prompts": _prompts(mine, theirs),
        "examples": {"only_one": removed.head(EXAMPLES).to_dicts(), "only_other": added.head(EXAMPLES).to_dicts()},
    }


def _rows(files: list[Path]) -> pl.DataFrame:
    frame = pl.scan_parquet(files)
    return frame.select([name for name in IDENTITY if name in frame.collect_schema()]).collect()


def _differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, list[Any]]:
    fields = sorted(one.keys() | other.keys())
    return {field: [one.get(field), other.get(field)] for field in fields if one.get(field) != other.get(field)}


def _prompts(mine: pl.DataFrame, theirs: pl.DataFrame) -> dict[str, int]:
    one, other = (set(rows["prompt_id"].to_list()) for rows in (mine, theirs))
    return {"both": len(one & other), "only_one": len(one - other), "only_other": len(other - one)}
