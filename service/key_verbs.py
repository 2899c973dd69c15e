"""``refinery keys``: who may use a service that other machines reach."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from curation.choice import reason_of
from service.access import Keyring, Role
from service.settings import Settings
from service.stages import Refused, StageError

app = typer.Typer(no_args_is_help=True, help="API keys of a data folder: add, list, remove.")
DataFolder = Annotated[
    Path | None, typer.Option("--data", help="The service's data folder; that of the settings by default.")
]
SPAN = re.compile(r"(\d{1,5})([dh])")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Who has it: a person, a machine, a trainer.")],
    role: Annotated[Role, typer.Option(help="Each may do what those before it may.")] = Role.WRITE,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="Only runs, policies and datasets of this name, or of names like 'exp1-*'; repeatable."),
    ] = None,
    expires: Annotated[str | None, typer.Option(help="Valid for so long: 12h, 90d. For ever by default.")] = None,
    data: DataFolder = None,
) -> None:
    """Makes a key and prints it, once. A running service knows it at once, and from its first key on asks everybody for
    one.

    refinery keys add alice --role admin

    refinery keys add trainer-7 --role write --limit 'exp7-*' --expires 30d
    """
    with _failing():
        keyring = _keyring(data)
        _, token = keyring.add(name, role, tuple(limit or ()), _until(expires))
    print(token)
    print(f"Known to the service of {keyring.path.parent.absolute()}.", file=sys.stderr)
    print("Kept nowhere: send it as `Authorization: Bearer KEY`, or set REFINERY_API_KEY.", file=sys.stderr)


@app.command("list")
def list_keys(
    data: DataFolder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Names, roles, limits and times; never a key."""
    with _failing():
        keyring = _keyring(data)
        keys = keyring.keys
    told = [key.model_dump(mode="json", exclude={"sha256"}) for key in keys or ()]
    if as_json:
        print(json.dumps(told))
        return
    if keys is None:
        print(
            f"{keyring.path.parent} has no keys: its service listens on loopback addresses only, and lets everybody in"
        )
    for key in keys or ():
        until = f"until {key.expires_at:%Y-%m-%d %H:%M} UTC" if key.expires_at else "for ever"
        print(f"{key.id}  {key.name:24} {key.role:6} {until:28} {' '.join(key.names) or 'no limits'}")


@app.command()
def remove(name: str, data: DataFolder = None) -> None:
    """The key is refused from the next request on. A service without any key left lets nobody in."""
    with _failing():
        _keyring(data).remove(name)


def _keyring(data: Path | None) -> Keyring:
    """Of the folder that a service with these settings has."""
    return Keyring(data or Settings().data)


def _until(expires: str | None) -> datetime | None:
    if expires is None:
        return None
    match = SPAN.fullmatch(expires)
    if match is None:
        sys.exit(f"refinery keys: {expires!r} is no time like 12h or 90d")
    return datetime.now(UTC) + timedelta(hours=int(match[1]) * (24 if match[2] == "d" else 1))


@contextmanager
def _failing() -> Iterator[None]:
    """One line and exit code 1 for what can go wrong."""
    try:
        yield
    except ValueError as error:
        sys.exit(f"refinery keys: {reason_of(error)}")
    except (Refused, StageError, OSError) as error:
        sys.exit(f"refinery keys: {error}")
