"""The DuckDB file: one writing thread, several reading cursors, one process.

- A write is acknowledged after its commit, never before; writes that wait together share one commit.
- A failing write leaves no trace and does not take its neighbours in the batch with it.
- The sidecar lock is held for life. No code in this process may open the .duckdb file itself: opening and closing it
  drops DuckDB's own lock, and a second writer then loses committed rows silently.
"""

import asyncio
import fcntl
import math
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

import duckdb
import pyarrow as pa

from service.stages import StoreFailed, stage

T = TypeVar("T")
Row = dict[str, Any]
Parameters = Sequence[Any] | dict[str, Any]

SCHEMA = (Path(__file__).parent / "schema.sql").read_text()
SCHEMA_VERSION = "1"
MOST_PER_COMMIT = 256
"""Writes that share one commit at most."""
COMMIT_SECONDS = 1.0
"""Between two commits of patient writes."""
READERS = 4
ROWS_PER_BATCH = 65_536
"""Of a scan."""
SCAN_END_SECONDS = 10.0
"""That a scan has to end when the store is closed."""


class Locked(StoreFailed):
    """Another process has the store open."""


class Transaction:
    """What a write sees: rows go in as Arrow batches, one per table, when somebody looks or at the commit."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, schemas: dict[str, pa.Schema]) -> None:
        self._connection = connection
        self._schemas = schemas
        self._waiting: dict[str, list[Row]] = {}
        self._last_seq: dict[tuple[str, ...], int] = {}

    def insert(self, table: str, rows: Iterable[Row]) -> None:
        # Made whole first: making a row may itself look into the store, and looking flushes what waits.
        ready = list(rows)
        self._waiting.setdefault(table, []).extend(ready)

    def next_seq(self, *tables: str) -> int:
        """Counts the rows of some tables together up from 1, in the order of their commits."""
        if tables not in self._last_seq:
            newest = [self.rows(f"select coalesce(max(seq), 0) from {table}")[0][0] for table in tables]
            self._last_seq[tables] = max(newest)
        self._last_seq[tables] += 1
        return self._last_seq[tables]

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The answer, with everything inserted so far."""
        self.flush()
        answer: list[tuple[Any, ...]] = self._connection.execute(sql, parameters).fetchall()
        return answer

    def flush(self) -> None:
        for table, rows in self._waiting.items():
            if rows:
                batch = pa.Table.from_pylist(rows, schema=self._schemas[table])
                self._connection.register("batch", batch)
                self._connection.execute(f"insert into {table} select * from batch")
                self._connection.unregister("batch")
        self._waiting = {}


class _Write(NamedTuple):
    operation: Callable[[Transaction], Any]
    future: Future[Any]
    patient: bool


class Duck:
    """An open database. `write` and `read` may be called from any task of one event loop."""

    def __init__(self, path: Path, memory_mib: int | None = None) -> None:
        """Opens or creates the database; DuckDB holds at most so much in memory, and sorts the rest on disk.

        Raises `Locked`, or StoreFailed for a file of another version.
        """
        self._lock = _take_lock(path.with_suffix(".lock"))
        try:
            self._connection, self._schemas = _connect(path, memory_mib)
        except BaseException:
            self._lock.close()
            raise
        self._readers: queue.Queue[duckdb.DuckDBPyConnection] = queue.Queue()
        for _ in range(READERS):
            self._readers.put(self._connection.cursor())
        self._writes: queue.Queue[_Write | None] = queue.Queue()
        self._scans: set[duckdb.DuckDBPyConnection] = set()
        self._scanning = threading.Condition()
        self._closing = False
        self._scratch = _empty(path.with_suffix(".scratch"))
        self._thread = threading.Thread(target=self._write_forever, name="store-writer")
        self._thread.start()

    async def write(self, operation: Callable[[Transaction], T], *, patient: bool = False) -> T:
        """Runs the operation on the writer thread; returns its result once that is committed. A patient one waits a
        moment for others to share its commit."""
        if not self._thread.is_alive():
            raise StoreFailed("the store is closed")
        future: Future[T] = Future()
        self._writes.put(_Write(operation, future, patient))
        return await asyncio.wrap_future(future)

    async def read(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """All rows of a query, committed data only."""
        return await asyncio.to_thread(self._read, sql, parameters)

    def scan(
        self,
        sql: str,
        parameters: Parameters = (),
        tables: Mapping[str, pa.Table] | None = None,
        rows_per_batch: int = ROWS_PER_BATCH,
    ) -> Iterator[pa.RecordBatch]:
        """A query's answer bit by bit, for answers that need not fit in memory; `tables` are known to it by name.

        Blocks, so it belongs into a thread; it has a cursor of its own and keeps no other reader waiting.
        """
        with self._scanning:
            if self._closing:
                raise StoreFailed("the store is closed")
            cursor = self._connection.cursor()
            self._scans.add(cursor)
        try:
            with stage(StoreFailed, "reading"):
                for name, table in (tables or {}).items():
                    cursor.register(name, table)
                for batch in cursor.execute(sql, parameters).to_arrow_reader(rows_per_batch):
                    if self._closing:
                        raise StoreFailed("the store is being closed")
                    yield batch
        finally:
            cursor.close()
            with self._scanning:
                self._scans.discard(cursor)
                self._scanning.notify_all()

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder beside the database for what does not fit in memory, gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            yield Path(folder)

    def close(self) -> None:
        """Ends the scans, commits what waits, then closes; a second call does nothing."""
        if not self._thread.is_alive():
            return
        self._end_scans()
        self._writes.put(None)
        self._thread.join()
        while not self._readers.empty():
            self._readers.get().close()
        self._connection.close()
        self._lock.close()

    def _end_scans(self) -> None:
        give_up = time.monotonic() + SCAN_END_SECONDS
        with self._scanning:
            self._closing = True
            while self._scans and time.monotonic() < give_up:
                for cursor in self._scans:
                    cursor.interrupt()  # again and again: it does nothing to a query that has not begun
                self._scanning.wait(0.1)

    def _read(self, sql: str, parameters: Parameters) -> list[Row]:
        cursor = self._readers.get()
        try:
            with stage(StoreFailed, "reading"):
                answer = cursor.execute(sql, parameters)
                names = [column[0] for column in answer.description or ()]
                return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
        finally:
            self._readers.put(cursor)

    def _write_forever(self) -> None:
        closing = False
        committed = -math.inf
        while not closing:
            batch = self._next_batch(committed + COMMIT_SECONDS)
            closing = None in batch
            # From here on a caller who stops waiting no longer stops the write.
            self._commit([write for write in batch if write and write.future.set_running_or_notify_cancel()])
            committed = time.monotonic()

    def _next_batch(self, not_before: float) -> list[_Write | None]:
        """Everything that waits; while all of it is patient, everything that comes until then."""
        batch = [self._writes.get()]
        while len(batch) < MOST_PER_COMMIT:
            patience = not_before - time.monotonic() if batch[-1] and batch[-1].patient else 0.0
            try:
                batch.append(self._writes.get(timeout=patience) if patience > 0 else self._writes.get_nowait())
            except queue.Empty:
                break
        return batch

    def _commit(self, writes: list[_Write]) -> None:
        if not writes:
            return
        try:
            self._connection.begin()
            transaction = Transaction(self._connection, self._schemas)
            results = [write.operation(transaction) for write in writes]
            transaction.flush()
            self._connection.commit()
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the caller who waits
            self._roll_back()
            if len(writes) == 1:
                writes[0].future.set_exception(error)
            else:
                for write in writes:
                    self._commit([write])
        else:
            for write, result in zip(writes, results, strict=True):
                write.future.set_result(result)

    def _roll_back(self) -> None:
        try:
            self._connection.rollback()
        except duckdb.Error:
            # No transaction is open: the failure was the begin itself, or DuckDB rolled back already.
            pass


def _empty(folder: Path) -> Path:
    """The folder without what a killed process left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _take_lock(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise Locked(f"another service has {path.parent} open; stop it or choose another --data") from None
    return lock


def _connect(path: Path, memory_mib: int | None) -> tuple[duckdb.DuckDBPyConnection, dict[str, pa.Schema]]:
    # A commit that has to checkpoint takes a second instead of milliseconds: let that happen rarely.
    config = {"checkpoint_threshold": "256MB"} | ({"memory_limit": f"{memory_mib}MiB"} if memory_mib else {})
    with stage(StoreFailed, f"opening {path}"):
        connection = duckdb.connect(str(path), config=config)
        try:
            return connection, _prepare(connection)
        except BaseException:
            connection.close()
            raise


def _prepare(connection: duckdb.DuckDBPyConnection) -> dict[str, pa.Schema]:
    """Creates what is missing, refuses what is foreign, and returns the Arrow schema of every table."""
    connection.execute(SCHEMA)
    found = connection.execute("select value from meta where name = 'schema'").fetchone()
    if found is None:
        connection.execute("insert into meta values ('schema', ?)", [SCHEMA_VERSION])
    elif found[0] != SCHEMA_VERSION:
        raise StoreFailed(
            f"the store has schema {found[0]} and this program needs {SCHEMA_VERSION}: "
            "start it with the program version that wrote it"
        )
    tables = [name for (name,) in connection.execute("select table_name from duckdb_tables()").fetchall()]
    return {table: connection.sql(f"from {table} limit 0").to_arrow_table().schema for table in tables}
