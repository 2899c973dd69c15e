"""``refinery bench``."""

import json
from enum import StrEnum, auto
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.report import document


class Bench(StrEnum):
    SELECT = auto()


def register(app: typer.Typer) -> None:
    app.command()(bench)


def bench(
    name: Bench, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document only.")] = False
) -> None:
    """Measures the ratios we claim, each against its yardstick in the same run."""
    from benchmarks import select

    match name:
        case Bench.SELECT:
            figures = select.run()
    if as_json:
        print(json.dumps(document(name, figures)))
        return
    table = Table("figure", "median", "low", "high", "unit")
    for key, figure in figures.items():
        table.add_row(key, *(f"{figure[part]:.3f}" for part in ("value", "low", "high")), str(figure["unit"]))
    Console().print(table)
