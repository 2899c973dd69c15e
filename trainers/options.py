"""What the verbs that talk to a service share: where it is, and how it is asked."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from trainers.client import DEFAULT_SERVICE, Refinery, RefineryError

__all__ = ["DEFAULT_SERVICE", "AsJson", "Service", "progress_bar", "service_at", "tell", "written"]

Service = Annotated[str, typer.Option(help="URL of the service.", envvar="REFINERY_SERVICE")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@contextmanager
def service_at(url: str) -> Iterator[Refinery]:
    """The service; what it refuses ends the command with one line and exit code 1."""
    try:
        with Refinery(url) as refinery:
            yield refinery
    except RefineryError as error:
        sys.exit(f"refinery: {error}")


@contextmanager
def written(file: Path) -> Iterator[None]:
    """A file that cannot be written ends the command with one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        sys.exit(f"refinery: {file}: {error}")


def progress_bar(*, quiet: bool = False) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True, quiet=quiet),
    )


def tell(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
    else:
        Console().print_json(data=result)
