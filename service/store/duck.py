"""The DuckDB file: one writing thread, several readers, one process.

- A write is acknowledged after its commit, never before; writes that wait together share one commit.
- A failing write leaves no trace and does not take its neighbours in the batch with it.
- Where the rows are changes only in a commit, so every question sees each row once.
- The sidecar lock is held for life.
"""

import asyncio
import logging
import math
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import duckdb
import pyarrow as pa

from service.stages import StoreFailed, stage
from service.store.layout import Layout
from service.store.opening import commits_of, hot_bytes_of, opened, take_lock
from service.store.segments import Segment, Segments
from service.store.transaction import Row, Transaction

log = logging.getLogger(__name__)

T = TypeVar("T")
Parameters = Sequence[Any] | dict[str, Any]

LISTED = "(select unnest(?::varchar[]))"
"""What a question holds against a parameter that may be a long list: list_contains would go through it for each row."""
MOST_PER_COMMIT = 256
"""Writes that share one commit at most."""
COMMIT_SECONDS = 1.0
"""Between two commits of patient writes."""
READERS = 4
"""Questions at once, beside the scans."""
ROWS_PER_BATCH = 65_536
"""Of a scan."""
RETRY_SECONDS = 1.0
"""Until a store that could not be opened again is tried anew."""
CLOSE_SECONDS = 10.0
"""That questions have to end when the store is closed."""


class OutcomeUnknown(StoreFailed):
    """Whether something was committed shows when the store can be opened again."""


class _Write(NamedTuple):
    operation: Callable[[Transaction], Any]
    future: Future[Any]
    patient: bool


class Duck:
    """An open database. `write` and `read` may be called from any task of one event loop, the rest from any thread."""

    def __init__(self, path: Path, memory_mib: int | None = None) -> None:
        """Opens or creates the database; DuckDB holds at most so much in memory, and sorts the rest on disk.

        Raises `Locked`, or StoreFailed for a file of another version or a damaged one.
        """
        self._path, self._memory_mib = path, memory_mib
        self._lock = take_lock(path)
        try:
            self.segments = Segments(path.parent / "segments")
            self._store, self.layout = opened(path, memory_mib, self.segments)
            self.removed = self.segments.keep_only(self.layout.manifest)
            """What a process that was killed had not finished."""
        except BaseException:
            self._lock.close()
            raise
        self.hot_bytes = hot_bytes_of(self._store.connection)
        """About how much is not sealed yet; as Arrow counts, so more than on disk."""
        self._commits = commits_of(self._store.connection)
        self._last_seq: dict[tuple[str, ...], int] = {}
        self._slots = threading.BoundedSemaphore(READERS)
        self._cursors: set[duckdb.DuckDBPyConnection] = set()
        self._pins: dict[object, Layout] = {}
        self._retired: list[tuple[int, Segment]] = []
        self._changed = threading.Condition()
        self._checkpointed = 0
        """Number of the manifest that the database file names, whatever becomes of its log."""
        self._closing = self._is_shut = self._broken = False
        self._writes: queue.Queue[_Write | None] = queue.Queue()
        self._scratch = _empty(path.with_suffix(".scratch"))
        self._thread = threading.Thread(target=self._write_forever, name="store-writer")
        self._thread.start()

    @property
    def commits(self) -> int:
        """How many there were: while it stands still, so does everything that is stored."""
        return self._commits

    @property
    def waiting(self) -> int:
        """Writes that wait for their commit."""
        return self._writes.qsize()

    @property
    def tables(self) -> list[str]:
        return list(self._store.schemas)

    @property
    def schemas(self) -> Mapping[str, pa.Schema]:
        """What rows of each table look like in Arrow."""
        return self._store.schemas

    async def write(self, operation: Callable[[Transaction], T], *, patient: bool = False) -> T:
        """Runs the operation on the writer thread; returns its result once that is committed. A patient one waits a
        moment for others to share its commit."""
        return await asyncio.wrap_future(self._submitted(operation, patient))

    def write_now(self, operation: Callable[[Transaction], T]) -> T:
        """The same for threads: it blocks."""
        return self._submitted(operation, patient=False).result()

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

        Blocks, so it belongs into a thread; it keeps no other reader waiting.
        """
        with self._cursor() as cursor, stage(StoreFailed, "reading"):
            for name, table in (tables or {}).items():
                cursor.register(name, table)
            for batch in cursor.execute(sql, parameters).to_arrow_reader(rows_per_batch):
                if self._closing:
                    raise StoreFailed("the store is being closed")
                yield batch

    @contextmanager
    def pinned(self) -> Iterator[Layout]:
        """What is where. Its files stay there meanwhile."""
        pin = object()
        with self._changed:
            layout = self._pins[pin] = self.layout
        try:
            yield layout
        finally:
            with self._changed:
                del self._pins[pin]
                self._sweep()

    def counts(self) -> dict[str, int]:
        """Rows by table."""
        return {table: int(self._read(f"select count(*) as n from {table}", ())[0]["n"]) for table in self.tables}

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder beside the database for what does not fit in memory, gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            yield Path(folder)

    def close(self) -> None:
        """Ends the questions, commits what waits, then closes; a second call does nothing."""
        if not self._thread.is_alive():
            return
        with self._changed:
            self._closing = True
        self._end_questions()
        with self._changed:
            self._is_shut = True
            self._writes.put(None)
        self._thread.join()
        self._store.connection.close()
        self._lock.close()

    def _submitted(self, operation: Callable[[Transaction], T], patient: bool) -> Future[T]:
        future: Future[T] = Future()
        with self._changed:
            if self._is_shut:
                raise StoreFailed("the store is closed")
            self._writes.put(_Write(operation, future, patient))
        return future

    def _read(self, sql: str, parameters: Parameters) -> list[Row]:
        with self._slots, self._cursor() as cursor, stage(StoreFailed, "reading"):
            answer = cursor.execute(sql, parameters)
            names = [column[0] for column in answer.description or ()]
            return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]

    @contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self.pinned():
            with self._changed:
                if self._closing or self._broken:
                    raise StoreFailed("the store is closed" if self._closing else "the store waits to be opened again")
                cursor = self._store.connection.cursor()
                self._cursors.add(cursor)
            try:
                yield cursor
            finally:
                with self._changed:
                    cursor.close()
                    self._cursors.discard(cursor)
                    self._changed.notify_all()

    def _end_questions(self) -> None:
        give_up = time.monotonic() + CLOSE_SECONDS
        with self._changed:
            while self._cursors and time.monotonic() < give_up:
                for cursor in self._cursors:
                    with suppress(duckdb.Error):
                        cursor.interrupt()  # again and again: it does nothing to a query that has not begun
                self._changed.wait(0.1)

    def _sweep(self) -> None:
        """Removes retired segments that nobody reads any more."""
        oldest = min((layout.manifest.number for layout in self._pins.values()), default=self.layout.manifest.number)
        safe = min(oldest, self._checkpointed)
        for number, segment in [retired for retired in self._retired if retired[0] <= safe]:
            self.segments.remove(segment)
            self._retired.remove((number, segment))

    def _write_forever(self) -> None:
        closing = False
        committed = -math.inf
        while not closing:
            if self._broken:
                self._try_to_open_again()
            elif self._is_checkpoint_due:
                self._checkpoint()
            batch = self._next_batch(committed + COMMIT_SECONDS)
            closing = None in batch
            # From here on a caller who stops waiting no longer stops the write.
            self._commit([write for write in batch if write and write.future.set_running_or_notify_cancel()])
            committed = time.monotonic()

    def _next_batch(self, not_before: float) -> list[_Write | None]:
        """Everything that waits; while all of it is patient, everything that comes until then."""
        try:
            batch = [self._writes.get(timeout=RETRY_SECONDS if self._broken or self._is_checkpoint_due else None)]
        except queue.Empty:
            return []
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
            results = self._carried_out([write.operation for write in writes])
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the caller who waits
            if len(writes) == 1 or self._broken:
                for write in writes:
                    write.future.set_exception(error)
            else:
                for write in writes:
                    self._commit([write])
        else:
            for write, result in zip(writes, results, strict=True):
                write.future.set_result(result)

    def _carried_out(self, operations: Sequence[Callable[[Transaction], T]]) -> list[T]:
        """What the operations return, once all of them are committed; otherwise nothing of them is there."""
        if self._broken:
            raise StoreFailed("the store had to be closed, and opens again once it can: is the disk full?")
        number = self._commits + 1
        transaction = Transaction(self._store, self.layout, self._last_seq)
        finished = False
        try:
            self._store.connection.begin()
            results = [operation(transaction) for operation in operations]
            transaction.finish(number)
            finished = True
            self._store.connection.commit()
        except duckdb.FatalException as error:
            self._broken = True
            self._open_again_after(error)
            if not finished or self._commits != number:
                transaction.undo_files()
                raise StoreFailed(
                    f"the store had to be opened again, and nothing of this is stored: {error}"
                ) from error
        except BaseException as error:
            self._roll_back()
            transaction.undo_files()
            if isinstance(error, duckdb.Error):
                raise StoreFailed(f"nothing of this is stored: {error}") from error
            raise
        else:
            self._move_on(transaction)
        return results

    def _move_on(self, transaction: Transaction) -> None:
        with self._changed:
            before, self.layout = self.layout, transaction.layout
            self._commits += 1
            self._last_seq = transaction.last_seq
            is_new_generation = before.newest != self.layout.newest
            self.hot_bytes = transaction.bytes + (0 if is_new_generation else self.hot_bytes)
            left = {segment.number for segment in self.layout.manifest.segments}
            number = self.layout.manifest.number
            self._retired += [(number, old) for old in before.manifest.segments if old.number not in left]
        if self._is_checkpoint_due:
            self._checkpoint()

    @property
    def _is_checkpoint_due(self) -> bool:
        return self._checkpointed < self.layout.manifest.number

    def _checkpoint(self) -> None:
        """Where the segments are must not depend on the log: its end is what a damage costs. So what the last manifest
        named stays until the database file itself names another. DuckDB refuses while somebody reads; then later."""
        number = self.layout.manifest.number
        try:
            self._store.connection.execute("checkpoint")
            with self._changed:
                self._checkpointed = number
                self._sweep()
            self.segments.forget_manifests(number)
        except duckdb.FatalException:
            self._broken = True
        except (duckdb.Error, OSError) as error:
            log.debug("no checkpoint, and the next will do: %s", error)

    def _try_to_open_again(self) -> None:
        try:
            self._open_again()
        except Exception as error:  # noqa: BLE001 - the writer thread must live, and try again
            log.warning("%s", error)

    def _open_again_after(self, error: duckdb.FatalException) -> None:
        try:
            self._open_again()
        except StoreFailed as still:
            raise OutcomeUnknown(
                f"{error}; and then {still}. Whether this was stored shows when it opens again"
            ) from error

    def _open_again(self) -> None:
        """After DuckDB gave up, which it does for good when the disk was full in a checkpoint. Raises StoreFailed."""
        self._end_questions()
        with self._changed:
            if self._cursors:
                raise StoreFailed("somebody still reads from the store that has to be opened again")
            self._store.connection.close()
        store, layout = opened(self._path, self._memory_mib, self.segments)
        with self._changed:
            self._store, self.layout, self._broken = store, layout, False
            self._commits, self._last_seq = commits_of(store.connection), {}
            self.hot_bytes, self._checkpointed = hot_bytes_of(store.connection), 0

    def _roll_back(self) -> None:
        try:
            self._store.connection.rollback()
        except duckdb.Error:
            # No transaction is open: the failure was the begin itself, or DuckDB rolled back already.
            pass


def _empty(folder: Path) -> Path:
    """The folder without what a killed process left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
