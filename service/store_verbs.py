"""``refinery store``: check, compact, back up and restore a data folder, or the one of a running service."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import httpx2
import typer

if TYPE_CHECKING:
    from service.parts import Store

app = typer.Typer(no_args_is_help=True, help="The data folder: check, compact, backup, restore.")

DataFolder = Annotated[Path | None, typer.Option("--data", help="A folder that no service has open.")]
ServiceUrl = Annotated[str, typer.Option("--service", help="A running service.")]
DEFAULT_SERVICE = "http://127.0.0.1:8700"


@app.command()
def check(data: DataFolder = None, service: ServiceUrl = DEFAULT_SERVICE) -> None:
    """Reads everything: every file against its sha256, rows against each other. Exits with 1 if something is wrong."""
    with _failing():
        if data is None:
            found = _call("GET", f"{service}/v1/store/check").json()["damages"]
        else:
            from service.store.keeping import damages

            with _opened(data) as store:
                found = list(damages(store.duck, data / "datasets"))
    print("\n".join(found) or "nothing is wrong")
    sys.exit(1 if found else 0)


@app.command()
def compact(data: DataFolder = None, service: ServiceUrl = DEFAULT_SERVICE) -> None:
    """Seals what is hot and merges small segments. A running service does so by itself."""
    with _failing():
        if data is None:
            told = _call("POST", f"{service}/v1/store/compact").json()
            print(f"{told['segments']} segments, {told['sealed_bytes'] / 2**20:,.1f} MiB")
            return
        with _opened(data) as store:
            store.sealer.seal()
            store.sealer.compact()
            manifest = store.duck.layout.manifest
        print(f"{len(manifest.segments)} segments, {manifest.bytes / 2**20:,.1f} MiB")


@app.command()
def backup(file: Path, data: DataFolder = None, service: ServiceUrl = DEFAULT_SERVICE) -> None:
    """Writes a tar of the store and of the frozen datasets, as they are at one moment, while the service serves."""
    unfinished = file.with_name(f"{file.name}.part")
    with _failing(), unfinished.open("wb") as tar:
        if data is None:
            with httpx2.stream("GET", f"{service}/v1/store/backup", headers=_key(), timeout=None) as answer:
                _accepted(answer)
                for chunk in answer.iter_raw():
                    tar.write(chunk)
        else:
            from service.store import keeping

            with _opened(data) as store:
                for chunk in keeping.backup(store.duck, store.sealer, data / "datasets"):
                    tar.write(chunk)
    unfinished.rename(file)
    print(f"{file}: {file.stat().st_size / 2**20:,.1f} MiB")


@app.command()
def restore(
    backup: Annotated[Path | None, typer.Argument(help="A backup; without it, what is whole of the folder.")] = None,
    data: Annotated[Path, typer.Option(help="The data folder: a new one for a backup.")] = Path("refinery-data"),
) -> None:
    """Makes a data folder of a backup; or saves what is whole of a damaged one, and keeps the damaged files aside."""
    from service.store.keeping import rescue
    from service.store.keeping import restore as unpacked

    with _failing():
        if backup is None:
            duck, told = rescue(_existing(data), datetime.now(UTC))
            print("\n".join(told))
        else:
            with backup.open("rb") as tar:
                duck = unpacked(data, tar)
        for table, rows in sorted(duck.counts().items()):
            print(f"{rows:>12,} {table}")
        duck.close()


@contextmanager
def _opened(data: Path) -> Iterator["Store"]:
    from service.parts import Store  # pulls in DuckDB and torch: only here

    store = Store.open(_existing(data))
    try:
        yield store
    finally:
        store.close()


def _existing(data: Path) -> Path:
    if not (data / "store.duckdb").exists() and not (data / "segments").is_dir():
        sys.exit(f"refinery store: there is no store in {data}")
    return data


def _call(method: str, url: str) -> httpx2.Response:
    answer = httpx2.request(method, url, headers=_key(), timeout=None)
    _accepted(answer)
    return answer


def _key() -> dict[str, str]:
    key = os.environ.get("REFINERY_API_KEY")
    return {"authorization": f"Bearer {key}"} if key else {}


def _accepted(answer: httpx2.Response) -> None:
    """Raises HTTPError with the service's own words."""
    if answer.status_code >= 400:
        answer.read()
        try:
            told = answer.json()["detail"]
        except (ValueError, KeyError):
            told = answer.reason_phrase
        raise httpx2.HTTPError(f"{answer.request.url}: {told}")


@contextmanager
def _failing() -> Iterator[None]:
    """One line and exit code 1 for what can go wrong."""
    from service.stages import Refused, StageError

    try:
        yield
    except httpx2.ConnectError as error:
        sys.exit(
            f"refinery store: no service answers: {error}; start one with `refinery serve`, or name a --data folder"
        )
    except (Refused, StageError, OSError, httpx2.HTTPError) as error:
        sys.exit(f"refinery store: {error}")
