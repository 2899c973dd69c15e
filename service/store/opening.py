"""Opening the database file: its lock, what it holds, and whether it is one of ours.

The lock is a file beside the database. No other code may open the .duckdb file itself: opening and closing it drops
DuckDB's own lock, and a second writer then loses committed rows silently.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import duckdb

from service.stages import StoreFailed, stage
from service.store.layout import Layout, prepare
from service.store.segments import Segments
from service.store.transaction import OpenStore

BYTES_PER_ROW = 1024
"""A guess, for rows that were there before."""


class Locked(StoreFailed):
    """Another process has the store open."""


def take_lock(path: Path) -> TextIO:
    """Of the store whose database this is, for as long as the file is open. Raises Locked."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("a+")
    except OSError as error:
        raise StoreFailed(f"nothing can be written to {path.parent}: {error}; choose another --data") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        with lock:
            lock.seek(0)
            holder = lock.read().strip()
        told = f" (process {holder})" if holder else ""
        raise Locked(f"another service has {path.parent} open{told}; stop it or choose another --data") from None
    _sign(lock)
    return lock


def _sign(lock: TextIO) -> None:
    """For whoever wants it meanwhile. A disk without room for a number is full, but no reason of this one's."""
    with suppress(OSError):
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), f"{os.getpid()}\n".encode())


SETTINGS = {
    # A commit that has to checkpoint takes a second instead of milliseconds: let that happen rarely.
    "checkpoint_threshold": "256MB",
    # It would keep what was read of segments, also of those that are gone. The kernel keeps that, too.
    "enable_external_file_cache": "false",
}


def opened(path: Path, memory_mib: int | None, segments: Segments) -> tuple[OpenStore, Layout]:
    config = SETTINGS | ({"memory_limit": f"{memory_mib}MiB"} if memory_mib else {})
    help = f"`refinery store restore --data {path.parent}` goes on from what is whole"
    with stage(StoreFailed, f"{path} cannot be opened, nothing was changed, and {help}"):
        connection = duckdb.connect(str(path), config=config)
        try:
            connection.execute("pragma disable_checkpoint_on_shutdown")  # what is refused is left as it is
            _read_all(connection)
            layout, schemas = prepare(connection, segments)
            connection.execute("pragma enable_checkpoint_on_shutdown")
        except BaseException:
            connection.close()
            raise
    return OpenStore(connection, schemas, segments), layout


def _read_all(connection: duckdb.DuckDBPyConnection) -> None:
    """DuckDB looks at a block when somebody reads it: one that has changed must be found here, and not in the middle of
    the work. There is never much that is not sealed."""
    for schema, table in connection.execute("select schema_name, table_name from duckdb_tables()").fetchall():
        connection.execute(f"select bit_xor(hash(t)) from {schema}.{table} t")


def commits_of(connection: duckdb.DuckDBPyConnection) -> int:
    [[commits]] = connection.execute("select value from meta where name = 'commits'").fetchall()
    return int(commits)


def hot_bytes_of(connection: duckdb.DuckDBPyConnection) -> int:
    sizes = "select coalesce(sum(estimated_size), 0) from duckdb_tables() where schema_name != 'main'"
    [[rows]] = connection.execute(sizes).fetchall()
    return int(rows) * BYTES_PER_ROW
