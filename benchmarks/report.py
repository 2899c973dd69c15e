"""One line of JSON per benchmark: what it measured, on what, at which commit."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from trainers.provenance import commit, machine

Figure = dict[str, float | str]


def spread(values: Sequence[float], unit: str) -> Figure:
    """Median with the lowest and the highest value."""
    return {"value": median(values), "unit": unit, "low": min(values), "high": max(values)}


def document(bench: str, figures: dict[str, Figure]) -> dict[str, Any]:
    return {"bench": bench, "commit": commit(), "machine": machine(), "figures": figures}
