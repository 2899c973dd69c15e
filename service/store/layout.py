"""Where the rows are: in tables of the database, by generation, and in sealed segments; and the views over both.

New rows go into the newest generation. An older one is being sealed: it is read like the others until its segment takes
its place, in one commit. Every table has a view of the same name, which is all that a question needs to know.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import duckdb
import pyarrow as pa

from service.stages import StoreFailed
from service.store.segments import Manifest, Segment, Segments

HERE = Path(__file__).parent
SCHEMA_VERSION = 4
TABLES = (HERE / "tables.sql").read_text()
VIEWS = (HERE / "views.sql").read_text()
SCHEMA_1 = (HERE / "schema_1.sql").read_text()
FROM_1 = (HERE / "from_1.sql").read_text()
FIRST = 1
HOT = re.compile(r"\bhot\b")


class NewerSchema(StoreFailed):
    """A newer program wrote the store."""


@dataclass(frozen=True, slots=True)
class Layout:
    generations: tuple[int, ...]
    """Oldest first; the last one takes the rows."""
    manifest: Manifest

    @property
    def newest(self) -> int:
        return self.generations[-1]

    def rotated(self) -> "Layout":
        """With a new generation to take the rows."""
        return replace(self, generations=(*self.generations, self.newest + 1))

    def replacing(self, old: Sequence[Segment], new: Sequence[Segment], *, sealed: Sequence[int] = ()) -> "Layout":
        """With new segments where the old ones were, and without the generations that they are made of."""
        left = tuple(generation for generation in self.generations if generation not in sealed)
        return Layout(left, self.manifest.replacing(old, new))


def schema_of(generation: int) -> str:
    return f"hot_{generation}"


def rows_of(table: str, generations: Sequence[int], manifest: Manifest, path_of: Callable[[Segment, str], Path]) -> str:
    """SQL for all rows of a table, in no order. Columns that files of an older schema lack are null."""
    parts = [f"(from {schema_of(generation)}.{table})" for generation in generations]
    having = [segment for segment in manifest.segments if table in segment.files]
    for _, alike in groupby(having, key=lambda segment: segment.schema_version):
        files = ", ".join(quoted(str(path_of(segment, table))) for segment in alike)
        parts.append(f"(from read_parquet([{files}], hive_partitioning = false))")
    return " union all by name ".join(parts)


def quoted(text: str) -> str:
    """As a string of SQL."""
    return "'" + text.replace("'", "''") + "'"


def tables_of(generation: int) -> str:
    """SQL that makes the tables of a generation, empty, as far as they are not there."""
    return HOT.sub(schema_of(generation), TABLES)


def create_views(
    connection: duckdb.DuckDBPyConnection, tables: Sequence[str], layout: Layout, segments: Segments
) -> None:
    newest_first = layout.generations[::-1]
    for table in tables:
        rows = rows_of(table, newest_first, layout.manifest, segments.path)
        connection.execute(f"create or replace view {table} as {rows}")


def prepare(connection: duckdb.DuckDBPyConnection, segments: Segments) -> tuple[Layout, dict[str, pa.Schema]]:
    """Makes a database out of an empty file, upgrades an old one, refuses a foreign one; then opens the segments.

    Returns what is where, and the Arrow schema of every table. A new database begins with the segments that are there.
    """
    connection.begin()
    connection.execute("create table if not exists meta (name varchar, value varchar)")
    meta = dict(connection.execute("from meta").fetchall())
    version = int(meta.get("schema", SCHEMA_VERSION))
    if version > SCHEMA_VERSION:
        raise NewerSchema(
            f"the store has schema {version} and this program knows {SCHEMA_VERSION}: open it with the version of the "
            "program that wrote it, or a newer one"
        )
    if version < SCHEMA_VERSION or "schema" not in meta:
        for generation in _generations(connection) or (FIRST,):
            connection.execute(tables_of(generation))
    if version == 1:
        connection.execute(SCHEMA_1)  # whatever an early store of this schema lacks
        connection.execute(HOT.sub(schema_of(FIRST), FROM_1))
    if "manifest" not in meta:
        facts = {"schema": SCHEMA_VERSION, "manifest": segments.newest().number, "commits": 0}
        connection.execute("delete from meta")
        connection.executemany("insert into meta values (?, ?)", [(name, str(fact)) for name, fact in facts.items()])
        meta = {name: str(fact) for name, fact in facts.items()}
    connection.execute("update meta set value = ? where name = 'schema'", [str(SCHEMA_VERSION)])
    manifest = segments.manifest(int(meta["manifest"]))
    layout = Layout(_generations(connection), manifest)
    schemas = _schemas(connection, layout.newest)
    create_views(connection, list(schemas), layout, segments)
    connection.execute(VIEWS)
    connection.commit()
    return layout, schemas


def _generations(connection: duckdb.DuckDBPyConnection) -> tuple[int, ...]:
    names = connection.execute("select schema_name from duckdb_schemas() where schema_name like 'hot\\_%' escape '\\'")
    return tuple(sorted({int(name.removeprefix("hot_")) for (name,) in names.fetchall()}))


def _schemas(connection: duckdb.DuckDBPyConnection, generation: int) -> dict[str, pa.Schema]:
    schema = schema_of(generation)
    tables = connection.execute("select table_name from duckdb_tables() where schema_name = ?", [schema]).fetchall()
    return {table: connection.sql(f"from {schema}.{table} limit 0").to_arrow_table().schema for (table,) in tables}
