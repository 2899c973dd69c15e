"""What the columns of a split hold, shaped like the Hugging Face dataset viewer's ``/statistics``.

One column is read at a time, and of a text or a list its length only.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

BINS = 10
MOST_LABELS = 30
"""A text column with so few different values counts as labels."""


def statistics(paths: list[Path]) -> dict[str, Any]:
    """Of Parquet files with at least one row."""
    frame = pl.scan_parquet(paths)
    rows = frame.select(pl.len()).collect(engine="streaming").item()
    columns = [_column(frame, name, dtype, rows) for name, dtype in frame.collect_schema().items()]
    return {"num_examples": rows, "statistics": columns, "partial": False}


def _column(frame: pl.LazyFrame, name: str, dtype: pl.DataType, rows: int) -> dict[str, Any]:
    kind, found = _described(frame, pl.col(name), dtype)
    missing = frame.select(pl.col(name).null_count()).collect(engine="streaming").item()
    missed = {"nan_count": missing, "nan_proportion": missing / rows}
    return {"column_name": name, "column_type": kind, "column_statistics": missed | found}


def _described(frame: pl.LazyFrame, column: pl.Expr, dtype: pl.DataType) -> tuple[str, dict[str, Any]]:
    """The viewer's word for a column of this kind, and its statistics."""
    if dtype == pl.Boolean:
        return "bool", {"frequencies": _frequencies(frame, column)}
    if dtype == pl.String:
        different = frame.select(column.drop_nulls().n_unique()).collect(engine="streaming").item()
        if different <= MOST_LABELS:
            labels = {"no_label_count": 0, "no_label_proportion": 0.0, "n_unique": different}
            return "string_label", labels | {"frequencies": _frequencies(frame, column)}
        return "string_text", _spread(frame, column.str.len_chars())
    if isinstance(dtype, pl.List):
        return "list", _spread(frame, column.list.len())
    return ("float" if dtype.is_float() else "int"), _spread(frame, column)


def _frequencies(frame: pl.LazyFrame, column: pl.Expr) -> dict[str, int]:
    counted = (
        frame.select(column.drop_nulls().alias("value"))
        .group_by("value")
        .len()
        .sort("value")
        .collect(engine="streaming")
    )
    return {str(value): count for value, count in counted.rows()}


def _spread(frame: pl.LazyFrame, numbers: pl.Expr) -> dict[str, Any]:
    values = frame.select(numbers.drop_nulls()).collect(engine="streaming").to_series().to_numpy()
    if not len(values):
        return dict.fromkeys(("min", "max", "mean", "median", "std", "histogram"))
    low, high = values.min().item(), values.max().item()
    counts, edges = _histogram(values, low, high)
    return {
        "min": low,
        "max": high,
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "std": float(values.std(ddof=1)) if len(values) > 1 else None,
        "histogram": {"hist": counts, "bin_edges": edges},
    }


def _histogram(values: NDArray[Any], low: float, high: float) -> tuple[list[int], list[float]]:
    """One bin where there is no room for more."""
    if low < high:
        try:
            counts, edges = np.histogram(values, BINS)
            return counts.tolist(), edges.tolist()
        except ValueError:  # they differ by rounding only
            pass
    return [len(values)], [low, high]
