"""Sealed segments: immutable Parquet files, and the manifests that say which of them are the store.

- A file is whole on disk, and so is its name, before a manifest names it; and a manifest is before the database does.
- A file that the manifest does not name is nobody's: a crash left it, or it waits for its last reader.
"""

import itertools
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from service.stages import StoreFailed, stage
from service.store.batches import gathered
from service.store.durable import replace, sha256_of, sync

ROWS_PER_ROW_GROUP, BYTES_PER_ROW_GROUP = 122_880, 2**26
"""At most, and bytes more or less: a reader of whole rows holds a row group per core."""
ENCODINGS = {
    "seq": "DELTA_BINARY_PACKED",
    "text_hash": "PLAIN",
    "logprob": "PLAIN",
    "elapsed": "PLAIN",
    "text": "PLAIN",
    "token_ids.list.element": "DELTA_BINARY_PACKED",
    "logprobs.list.element": "BYTE_STREAM_SPLIT",
}
"""Of columns that a dictionary does not make smaller: a third faster to write, and token ids half as large."""


class File(BaseModel):
    """The rows of one table in one segment."""

    model_config = ConfigDict(frozen=True)

    rows: int
    bytes: int
    sha256: str


class Segment(BaseModel):
    """What was sealed together: a folder with a Parquet file for each table that had rows."""

    model_config = ConfigDict(frozen=True)

    number: int
    schema_version: int
    files: dict[str, File]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


class Manifest(BaseModel):
    """All segments of the store, in the order of their rows."""

    model_config = ConfigDict(frozen=True)

    number: int = 0
    segments: tuple[Segment, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(segment.bytes for segment in self.segments)

    def replacing(self, old: Iterable[Segment], new: Iterable[Segment]) -> "Manifest":
        """The next manifest: the new segments where the first of the old was, or at the end."""
        gone = {segment.number for segment in old}
        place = next((i for i, s in enumerate(self.segments) if s.number in gone), len(self.segments))
        before, after = self.segments[:place], self.segments[place:]
        left = tuple(segment for segment in after if segment.number not in gone)
        return Manifest(number=self.number + 1, segments=(*before, *new, *left))


class Segments:
    """The folder of the segments. Only the writing of a manifest is not thread-safe."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if found := set("*?[") & set(str(root.absolute())):
            raise StoreFailed(f"{root}: the path of a data folder must not hold {' '.join(sorted(found))}")
        root.mkdir(parents=True, exist_ok=True)
        self._numbers = itertools.count(1 + max((int(folder.name) for folder in self._folders()), default=0))

    def path(self, segment: Segment, table: str) -> Path:
        return self.root / segment_folder(segment) / f"{table}.parquet"

    def write(self, schema_version: int, tables: Mapping[str, Iterable[pa.RecordBatch]]) -> Segment | None:
        """Writes the rows of each table; None if there are none at all. Raises StoreFailed, and leaves nothing then."""
        with stage(StoreFailed, f"writing to {self.root}"):
            return self._write(schema_version, tables)

    def _write(self, schema_version: int, tables: Mapping[str, Iterable[pa.RecordBatch]]) -> Segment | None:
        number = next(self._numbers)
        folder = self.root / _name(number)
        unfinished = folder.with_suffix(".part")
        unfinished.mkdir()
        try:
            written = ((table, _written(batches, unfinished / f"{table}.parquet")) for table, batches in tables.items())
            files = {table: file for table, file in written if file is not None}
            if not files:
                unfinished.rmdir()
                return None
            sync(unfinished)
            unfinished.rename(folder)
            sync(self.root)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        return Segment(number=number, schema_version=schema_version, files=files)

    def write_manifest(self, manifest: Manifest) -> None:
        """On disk when this returns, or there is none of that number."""
        path = self.manifest_path(manifest.number)
        with stage(StoreFailed, f"writing {path}"):
            replace(path, manifest.model_dump_json(indent=1).encode())

    def manifest(self, number: int) -> Manifest:
        """Raises StoreFailed for one that is missing or damaged."""
        if number == 0:
            return Manifest()
        path = self.manifest_path(number)
        try:
            return Manifest.model_validate_json(path.read_text())
        except (OSError, ValidationError) as error:
            raise StoreFailed(f"{path} cannot be read: {error}") from error

    def newest(self) -> Manifest:
        """The newest that can be read; an empty one if there is none at all. Raises StoreFailed if none can be read."""
        found = sorted(self.root.glob("manifest-*.json"), reverse=True)
        for path in found:
            try:
                return Manifest.model_validate_json(path.read_text())
            except ValidationError:
                continue
        if found:
            raise StoreFailed(f"none of the manifests in {self.root} can be read")
        return Manifest()

    def keep_only(self, manifest: Manifest) -> list[Path]:
        """Removes what this manifest does not name, and all manifests but this one and the one before it; returns what
        it was that nobody had finished, or that was no longer needed."""
        named = {_name(segment.number) for segment in manifest.segments}
        removed = [folder for folder in [*self._folders(), *self.root.glob("*.part")] if folder.name not in named]
        for folder in removed:
            shutil.rmtree(folder, ignore_errors=True)
            folder.unlink(missing_ok=True)
        self.forget_manifests(manifest.number)
        return removed

    def forget_manifests(self, number: int) -> None:
        """Removes all manifests but this one and the one before it."""
        kept = {self.manifest_path(number), self.manifest_path(number - 1)}
        for path in self.root.glob("manifest-*.json"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def remove_manifest(self, number: int) -> None:
        self.manifest_path(number).unlink(missing_ok=True)

    def remove(self, segment: Segment) -> None:
        shutil.rmtree(self.root / _name(segment.number), ignore_errors=True)

    def damages(self, manifest: Manifest) -> Iterator[str]:
        """What is wrong with the files of a manifest, in words."""
        for segment in manifest.segments:
            for table, file in segment.files.items():
                path = self.path(segment, table)
                if not path.is_file():
                    yield f"{path} is missing"
                elif path.stat().st_size != file.bytes or sha256_of(path) != file.sha256:
                    yield f"{path} is not what was sealed: its size or sha256 differs"

    def manifest_path(self, number: int) -> Path:
        return self.root / f"manifest-{_name(number)}.json"

    def _folders(self) -> list[Path]:
        return [folder for folder in self.root.iterdir() if folder.name.isdigit()]


def segment_folder(segment: Segment) -> str:
    return _name(segment.number)


def _name(number: int) -> str:
    return f"{number:08}"


def _written(batches: Iterable[pa.RecordBatch], path: Path) -> File | None:
    """One Parquet file with all the rows, on disk; None and no file if there are none."""
    writer: pq.ParquetWriter | None = None
    rows = 0
    try:
        for group in gathered(batches, ROWS_PER_ROW_GROUP, BYTES_PER_ROW_GROUP):
            if writer is None:
                writer = _writer(path, group.schema)
            writer.write_table(group, row_group_size=group.num_rows)
            rows += group.num_rows
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        return None
    sync(path)
    return File(rows=rows, bytes=path.stat().st_size, sha256=sha256_of(path))


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    columns = [column for field in schema for column in _columns(field.name, field.type)]
    encodings = {column: ENCODINGS[column] for column in columns if column in ENCODINGS}
    dictionaries = [column for column in columns if column not in encodings]
    return pq.ParquetWriter(
        path, schema, compression="zstd", compression_level=1, use_dictionary=dictionaries, column_encoding=encodings
    )


def _columns(path: str, kind: pa.DataType) -> Iterator[str]:
    """What Parquet calls the columns that a field of this type becomes."""
    if pa.types.is_list(kind):
        yield from _columns(f"{path}.list.element", kind.value_type)
    elif pa.types.is_map(kind):
        yield from _columns(f"{path}.key_value.key", kind.key_type)
        yield from _columns(f"{path}.key_value.value", kind.item_type)
    elif pa.types.is_struct(kind):
        for field in kind:
            yield from _columns(f"{path}.{field.name}", field.type)
    else:
        yield path
