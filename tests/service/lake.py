"""DuckLake for tests: the catalog in a PostgreSQL of their own, the files written and synced by the store's own code.

DuckLake syncs no file that it writes, and its catalog could outlive them; so it is only ever told of files.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from service.store.layout import SCHEMA_VERSION, quoted
from service.store.segments import Segments
from tests.extensions import extension

EXTENSIONS = ("duckdb_extension_ducklake", "duckdb_extension_postgres_scanner")
# Debian keeps them off the PATH.
PLACES = [os.environ.get("PATH", ""), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))]
PG_CTL = shutil.which("pg_ctl", path=os.pathsep.join(PLACES))
MISSING = [*(name for name in EXTENSIONS if find_spec(name) is None), *([] if PG_CTL else ["PostgreSQL's pg_ctl"])]
USER = "lake"
ATTEMPTS = 20
"""To commit among other writers, each after those of DuckLake itself."""


@contextmanager
def postgres() -> Iterator[Path]:
    """A server behind a socket in a new folder, which says where it is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        who: dict[str, Any] = {}
        if os.geteuid() == 0:  # which it refuses to run as
            who = {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(folder, "postgres", "postgres")

        def pg_ctl(command: str, *arguments: str) -> None:
            call = [str(PG_CTL), command, "--silent", "--pgdata", str(folder / "pg"), *arguments]
            subprocess.run(call, cwd=folder, stdout=subprocess.DEVNULL, check=True, **who)

        pg_ctl("initdb", "--options", f"--username={USER} --auth=trust --encoding=UTF8 --no-locale")
        pg_ctl("start", "--log", str(folder / "log"), "--options", f"-k {folder} -c listen_addresses=''")
        try:
            yield folder
        finally:
            pg_ctl("stop", "--mode", "fast")


def attached(server: Path, name: str, version: int | None = None) -> duckdb.DuckDBPyConnection:
    """A connection with this lake as `lake`: as it is, or for good as it was at a version."""
    connection = duckdb.connect()
    for package in EXTENSIONS:
        connection.load_extension(str(extension(package)))
    options = [f"data_path {quoted(str(server / name))}", f"metadata_schema {quoted(name)}"]
    if version is not None:
        options.append(f"snapshot_version {version}")
    source = quoted(f"ducklake:postgres:host={server} user={USER} dbname=postgres")
    connection.execute(f"attach {source} as lake ({', '.join(options)})")
    connection.execute("use lake")
    return connection


def add(connection: duckdb.DuckDBPyConnection, paths: Mapping[str, Path]) -> None:
    """One file for each of some tables, all of them or none. They may lack columns, as files of an older schema do."""
    for attempt in range(ATTEMPTS):
        try:
            connection.begin()
            for table, path in paths.items():
                call = "call ducklake_add_data_files('lake', ?, ?, schema => 'hot', allow_missing => true)"
                connection.execute(call, [table, str(path)])
            connection.commit()
        except duckdb.TransactionException:
            if attempt == ATTEMPTS - 1:
                raise
            with suppress(duckdb.TransactionException):
                connection.rollback()
            time.sleep(random.random() / 10)
        else:
            return


def written(segments: Segments, batch: str) -> dict[str, Path]:
    """The files of one batch: a run and the four members of a prompt set."""
    rows = {"runs": {"run": [batch]}, "prompt_sets": {"prompt_set": [batch] * 4, "prompt_id": list("abcd")}}
    segment = segments.write(SCHEMA_VERSION, {name: [pa.record_batch(table)] for name, table in rows.items()})
    assert segment is not None
    return {table: segments.path(segment, table) for table in segment.files}


def keep_adding(server: str, name: str, folder: str, writer: str, batches: str) -> None:
    """What a writer process does: it tells of each batch once it is committed."""
    connection, segments = attached(Path(server), name), Segments(Path(folder) / writer)
    for number in range(int(batches)):
        batch = f"{writer}-{number}"
        add(connection, written(segments, batch))
        print(batch, flush=True)


if __name__ == "__main__":
    keep_adding(*sys.argv[1:])
