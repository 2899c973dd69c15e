"""The verb ``sql``: questions over everything that the service stores."""

import json
import sys
from enum import StrEnum, auto
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich.console import Console
from rich.table import Table

from trainers.options import DEFAULT_SERVICE, Service, service_at, written

WIDEST = 60
"""Characters of a cell on the screen."""


class Answer(StrEnum):
    TABLE = auto()
    JSON = auto()
    CSV = auto()
    NDJSON = auto()
    ARROW = auto()
    PARQUET = auto()


SUFFIXES = {".csv": Answer.CSV, ".ndjson": Answer.NDJSON, ".jsonl": Answer.NDJSON, ".json": Answer.JSON} | {
    ".arrow": Answer.ARROW,
    ".parquet": Answer.PARQUET,
}


PACKINGS = {".gz": "gzip", ".zst": "zstd"}


def register(app: typer.Typer) -> None:
    app.command()(sql)


def sql(
    question: Annotated[str | None, typer.Argument(help="One SELECT; without it, the views and their columns.")] = None,
    param: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for $NAME; a text of digits as '\"7\"'.")] = None,
    answer: Annotated[Answer | None, typer.Option("--format", help="By default a table, or what the file is.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the whole answer to this file.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Rows; 1,000 by default in a table or JSON.")] = None,
    seconds: Annotated[float, typer.Option(min=0.001, help="That the question may take.")] = 60.0,
    service: Service = DEFAULT_SERVICE,
) -> None:
    """Asks SQL over stored prompts, groups, rollouts, verdicts, datasets; docs/sql.md has the views.

    refinery sql "select kind, count(*) from groups group by 1"

    refinery sql "from pairs where run = $run" --param run=warm-up -o pairs.parquet
    """
    packing = None if out is None else PACKINGS.get(out.suffix)
    told = out.with_suffix("") if out is not None and packing else out
    chosen = answer or (Answer.TABLE if told is None else SUFFIXES.get(told.suffix))
    if chosen is None or (chosen is Answer.TABLE and out is not None):
        names = ".csv, .ndjson, .json, .arrow or .parquet, perhaps with .gz or .zst behind"
        sys.exit(f"refinery: {out}: name it {names}, or give --format")
    with service_at(service) as refinery:
        if question is None:
            _show_views(refinery.get("/v1/sql/views"))
            return
        body = {"sql": question, "params": _params(param or []), "limit": limit, "timeout_ms": round(1000 * seconds)}
        if chosen is Answer.TABLE:
            _show(refinery.post("/v1/sql", body))
            return
        chunks = refinery.stream("/v1/sql", body | {"format": chosen.value})
        if out is None:
            for chunk in chunks:
                sys.stdout.buffer.write(chunk)
            return
        unfinished = out.with_name(f"{out.name}.part")
        with written(out), pa.output_stream(str(unfinished), compression=packing) as file:
            for chunk in chunks:
                file.write(chunk)
        unfinished.rename(out)


def _params(given: list[str]) -> dict[str, Any]:
    """Numbers, true, false and null as JSON has them; everything else is text."""
    params = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name:
            sys.exit(f"refinery: --param {item}: NAME=VALUE was expected")
        try:
            plain = json.loads(value, parse_constant=str)
        except ValueError:
            plain = value
        params[name] = value if isinstance(plain, list | dict) else plain
    return params


def _show_views(views: dict[str, dict[str, str]]) -> None:
    console = Console(highlight=False)
    for view, columns in views.items():
        console.print(view, style="bold", markup=False)
        console.print("  " + ", ".join(f"{name} {kind}" for name, kind in columns.items()), markup=False)


def _show(told: dict[str, Any]) -> None:
    table = Table(*(str(column) for column in told["columns"]))
    for row in told["rows"]:
        table.add_row(*(_cell(value) for value in row))
    console = Console(markup=False)
    console.print(table)
    if told["truncated"]:
        Console(stderr=True).print(f"the first {len(told['rows'])} rows; --limit shows more, -o all of them")


def _cell(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"
