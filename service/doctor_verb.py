"""``refinery doctor``."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from curation.choice import reason_of

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def doctor(
    data: Annotated[Path | None, typer.Option(help="Data folder; that of the settings by default.")] = None,
    thorough: Annotated[bool, typer.Option("--thorough", help="Read the whole store as well.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Tries everything that a service with these settings (REFINERY_*, refinery.toml) needs, and says what to do about
    what is wrong. Exits with 1 if something is."""
    from service.doctor import Finding, examine  # pulls in DuckDB: only here
    from service.settings import Settings

    try:
        settings = Settings(data=data) if data else Settings()
    except ValueError as error:
        sys.exit(f"refinery doctor: {reason_of(error)}")
    found = list(examine(settings, thoroughly=thorough))
    if as_json:
        print(json.dumps([asdict(one) for one in found]))
    else:
        table = Table("", "", "", box=None, show_header=False)
        for one in found:
            told = Text(one.told).append(f"\n{one.remedy}" if one.remedy else "", "dim")
            table.add_row(Text(one.finding, STYLES[one.finding]), one.what, told)
        Console().print(table)
    sys.exit(any(one.finding is Finding.FAILED for one in found))
