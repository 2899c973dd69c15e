"""What one commit does to the store, as the writes that share it see it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from service.store.layout import SCHEMA_VERSION, Layout, create_views, schema_of, tables_of
from service.store.segments import Segment, Segments

Row = dict[str, Any]


class OpenStore(NamedTuple):
    """What stays the same until the database has to be opened anew."""

    connection: duckdb.DuckDBPyConnection
    schemas: dict[str, pa.Schema]
    segments: Segments


class Transaction:
    """What a write sees: rows go in as Arrow batches, one per table, when somebody looks or at the commit."""

    def __init__(self, store: OpenStore, layout: Layout, last_seq: dict[tuple[str, ...], int]) -> None:
        self._store = store
        self._waiting: dict[str, list[Row]] = {}
        self._before = self.layout = layout
        self._appended: list[Segment] = []
        self.last_seq = dict(last_seq)
        self.bytes = 0
        """Put into the newest tables so far."""

    def insert(self, table: str, rows: Iterable[Row]) -> None:
        # Made whole first: making a row may itself look into the store, and looking flushes what waits.
        ready = list(rows)
        self._waiting.setdefault(table, []).extend(ready)

    def next_seq(self, *tables: str) -> int:
        """Counts the rows of some tables together up from 1, in the order of their commits."""
        if tables not in self.last_seq:
            newest = [self.rows(f"select coalesce(max(seq), 0) from {table}")[0][0] for table in tables]
            self.last_seq[tables] = max(newest)
        self.last_seq[tables] += 1
        return self.last_seq[tables]

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The answer, with everything inserted so far."""
        self.flush()
        answer: list[tuple[Any, ...]] = self._store.connection.execute(sql, parameters).fetchall()
        return answer

    def rotate(self) -> None:
        """From now on, and after this commit, rows go into a new generation of tables."""
        self.flush()
        self.bytes = 0
        layout = self.layout.rotated()
        self._store.connection.execute(tables_of(layout.newest))
        self._move_to(layout)

    def replace(self, old: Sequence[Segment], new: Sequence[Segment], *, sealed: Sequence[int] = ()) -> None:
        """Puts segments in the place of others, or of the generations that were sealed into them."""
        self._move_to(self.layout.replacing(old, new, sealed=sealed))
        for generation in sealed:
            self._store.connection.execute(f"drop schema {schema_of(generation)} cascade")

    def flush(self) -> None:
        for table, rows in self._waiting.items():
            if rows:
                batch = pa.Table.from_pylist(rows, schema=self._store.schemas[table])
                self._store.connection.register("batch", batch)
                self._store.connection.execute(
                    f"insert into {schema_of(self.layout.newest)}.{table} select * from batch"
                )
                self._store.connection.unregister("batch")
                self.bytes += batch.nbytes
        self._waiting = {}

    def append(self, tables: Mapping[str, pa.Table]) -> None:
        """Rows by the ten thousand, straight into a segment."""
        segment = self._store.segments.write(SCHEMA_VERSION, {name: rows.to_batches() for name, rows in tables.items()})
        if segment is not None:
            self._appended.append(segment)
            self.replace((), [segment])

    def finish(self, commit: int) -> None:
        """The last thing before the commit, which gets this number."""
        self.flush()
        self._store.connection.execute("update meta set value = ? where name = 'commits'", [str(commit)])
        if self.layout.manifest is not self._before.manifest:
            self._store.segments.write_manifest(self.layout.manifest)
            number = str(self.layout.manifest.number)
            self._store.connection.execute("update meta set value = ? where name = 'manifest'", [number])

    def undo_files(self) -> None:
        """After a roll-back: what no row names any more."""
        for segment in self._appended:
            self._store.segments.remove(segment)
        if self.layout.manifest is not self._before.manifest:
            self._store.segments.remove_manifest(self.layout.manifest.number)

    def _move_to(self, layout: Layout) -> None:
        create_views(self._store.connection, list(self._store.schemas), layout, self._store.segments)
        self.layout = layout
