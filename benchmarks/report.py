"""One line of JSON per benchmark: what it measured, on what, at which commit."""

import os
import platform
import subprocess
from collections.abc import Sequence
from statistics import median
from typing import Any

Figure = dict[str, float | str]


def spread(values: Sequence[float], unit: str) -> Figure:
    """Median with the lowest and the highest value."""
    return {"value": median(values), "unit": unit, "low": min(values), "high": max(values)}


def document(bench: str, figures: dict[str, Figure]) -> dict[str, Any]:
    machine = {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}
    return {"bench": bench, "commit": _commit(), "machine": machine, "figures": figures}


def _commit() -> str | None:
    """None outside a checkout."""
    shown = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or None
