"""/v1/datasets: frozen versions, as plain files that any reader understands."""

import asyncio
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from fastapi import APIRouter, Header, Query
from fastapi.responses import FileResponse, RedirectResponse, Response, StreamingResponse
from starlette.responses import MalformedRangeHeader, RangeNotSatisfiable

from curation.keys import digest
from service.api.errors import OutOfRange, problems
from service.api.once import DeedDep, OncePerKey
from service.api.routes import (
    ADMINISTERS,
    OWN_READS,
    OWN_WRITES,
    READS,
    CallerDep,
    JobKey,
    PartsDep,
    job_name,
    refuse_others,
)
from service.api.turns import TAKES_LONG, turn
from service.api.wire import DatasetIn, DatasetOut, JobOut, RowsOut
from service.explaining import explain
from service.hub import PushRequest, hub_of_environment
from service.jobs import JobKind
from service.parts import Parts
from service.stages import Gone, Invalid, NotFound, StoreFailed
from service.store.datasets import DatasetVersion
from service.store.groups import no_group
from service.store.prompts import no_prompts

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], route_class=OncePerKey)
LATEST = "latest"
PAGE_BYTES, BATCH_BYTES = 2**16, 2**20
"""Of an Arrow stream: read from the file at a time, and sent at a time."""
IMMUTABLE = "public, max-age=31536000, immutable"
MEDIA_TYPES = {".parquet": "application/vnd.apache.parquet", ".jsonl": "application/x-ndjson"}
CACHED: dict[str, Any] = {
    "ETag": {"required": True, "schema": {"type": "string"}},
    "Cache-Control": {"required": True, "schema": {"const": IMMUTABLE}},
}
UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "If-None-Match names it.", "headers": CACHED}}
IfNoneMatch = Annotated[str, Header()]


class FrozenFile(FileResponse):
    chunk_size = 2**20  # each costs a trip to a thread

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        """Starlette answers in plain text. What it takes for malformed may be of a unit that we do not know, and is to
        be ignored (RFC 9110, 14.2): the answer is the whole file."""
        try:
            return super()._parse_range_header(http_range, file_size)
        except MalformedRangeHeader:
            return []
        except RangeNotSatisfiable as beyond:
            raise OutOfRange(beyond.max_size) from None


class ArrowStream(StreamingResponse):
    media_type = "application/vnd.apache.arrow.stream"


FILES: dict[int | str, dict[str, Any]] = {
    200: {"headers": CACHED, "content": {media_type: {} for media_type in MEDIA_TYPES.values()}},
    206: {
        "headers": CACHED,
        "content": {media_type: {} for media_type in (*MEDIA_TYPES.values(), "multipart/byteranges")},
    },
    **UNCHANGED,
    **problems(OutOfRange),
}


@router.post("", status_code=201, dependencies=[OWN_WRITES])
async def freeze_dataset(body: DatasetIn, parts: PartsDep, caller: CallerDep, deed: DeedDep) -> DatasetOut:
    """Freezes what a recipe makes of its runs as the next version of the name; while these runs stand still the same
    recipe is the same version."""
    refuse_others(caller, body.name, *body.recipe.runs)
    for dataset_id in await deed.begun() if deed else ():  # by now the runs may hold more, and be another version
        if made := await parts.store.datasets.by_id(body.name, dataset_id):
            return DatasetOut.of(made)
    async with turn(parts.long_turns, caller):
        return DatasetOut.of(
            await parts.freezer.freeze(body.name, body.recipe, begin=None if deed is None else deed.begin)
        )


@router.get("", dependencies=[OWN_READS])
async def list_datasets(parts: PartsDep, caller: CallerDep) -> list[DatasetOut]:
    return [DatasetOut.of(one) for one in await parts.store.datasets.versions() if caller.reaches(one.name)]


@router.get("/{name}@{version}", response_model=DatasetOut, dependencies=[READS])
async def get_version(name: str, version: str, parts: PartsDep) -> Any:
    dataset = await find(name, version, parts, deleted=True)
    return pinned(dataset) if version == LATEST else DatasetOut.of(dataset)


@router.delete("/{name}@{version}", dependencies=[ADMINISTERS])
async def delete_version(
    name: str, version: str, parts: PartsDep, reason: Annotated[str, Query(max_length=1000)] = ""
) -> DatasetOut:
    """Deletes the files of a version, by its number. What it was made of, and why it is gone, stays."""
    return DatasetOut.of(await parts.freezer.delete(name, _number(version), reason))


@router.get("/{name}@{version}/rows", response_model=RowsOut, dependencies=[READS, TAKES_LONG])
async def get_rows(
    name: str,
    version: str,
    parts: PartsDep,
    split: str = "train",
    offset: Annotated[int, Query(ge=0, le=2**40)] = 0,
    length: Annotated[int, Query(ge=1, le=100)] = 100,
) -> Any:
    dataset = await find(name, version, parts)
    if version == LATEST:
        return pinned(dataset, "rows", split=split, offset=offset, length=length)
    return await asyncio.to_thread(_rows, shards_of(dataset, split, parts), offset, length)


@router.get("/{name}@{version}/explain", response_model=dict[str, Any], dependencies=[READS, TAKES_LONG])
async def explain_prompt(
    name: str,
    version: str,
    parts: PartsDep,
    caller: CallerDep,
    prompt_id: str | None = None,
    group_id: str | None = None,
) -> Any:
    """Why a prompt, or the prompt of a group, is or is not in the dataset: every visit with its decision and the number
    drawn, every group with the recipe's steps, the rows it gave, and what was left out and why."""
    dataset = await find(name, version, parts)
    if (prompt_id is None) == (group_id is None):
        raise Invalid("explain_what", "name a prompt_id or a group_id; one of the two")
    if version == LATEST:
        asked = {"prompt_id": prompt_id} if group_id is None else {"group_id": group_id}
        return pinned(dataset, "explain", **asked)
    if group_id is not None:
        group, _ = await parts.store.groups.get(group_id)
        if caller.names and group["run"] not in dataset.recipe.runs:
            raise no_group(group_id)
        prompt_id = group["prompt_id"]
    folder = parts.dataset_root / dataset.dataset_id
    told = await explain(dataset, str(prompt_id), folder=folder, judged=parts.store.judged, prompts=parts.store.prompts)
    if caller.names and not told["visits"]:
        raise no_prompts([str(prompt_id)])  # it may be another run's
    return told


@router.head("/{name}@{version}/{split}.arrow", response_class=ArrowStream, responses=UNCHANGED, dependencies=[READS])
@router.get("/{name}@{version}/{split}.arrow", response_class=ArrowStream, responses=UNCHANGED, dependencies=[READS])
async def get_arrow(name: str, version: str, split: str, parts: PartsDep, if_none_match: IfNoneMatch = "") -> Response:
    """The split as an Arrow stream, made of its Parquet files while it is read: no Range."""
    dataset = await find(name, version, parts)
    if version == LATEST:
        return pinned(dataset, f"{split}.arrow")
    paths = shards_of(dataset, split, parts)
    headers = _caching(dataset, *(path.name for path in paths), weak=True)
    if headers["etag"] in if_none_match:
        return Response(status_code=304, headers=headers)
    return ArrowStream(_arrow(paths), headers=headers)


@router.post("/{name}@{version}/push", status_code=202, dependencies=[ADMINISTERS])
async def push_dataset(name: str, version: str, body: PushRequest, parts: PartsDep, key: JobKey) -> JobOut:
    """Pushes the version to the Hugging Face Hub, as a commit and a tag, with its card; private unless told otherwise.
    The token is the service's ``HF_TOKEN``. A version that is there already is left alone."""
    dataset = await find(name, version, parts)
    hub_of_environment()
    asked = body.model_dump(mode="json") | {"name": name, "version": dataset.version}
    job_id = job_name(JobKind.PUSH, name, key)
    return JobOut.of(await parts.jobs.submit(job_id, JobKind.PUSH, name, asked))


@router.head("/{name}@{version}/{file}", response_class=FrozenFile, responses=FILES, dependencies=[READS])
@router.get("/{name}@{version}/{file}", response_class=FrozenFile, responses=FILES, dependencies=[READS])
async def get_file(
    name: str,
    version: str,
    file: str,
    parts: PartsDep,
    if_none_match: IfNoneMatch = "",
    range: Annotated[str, Header(description="As in `bytes=0-1023`.")] = "",  # which FrozenFile reads
) -> Response:
    """``{split}.parquet`` or ``{split}.jsonl``, and of a large split its parts, as the manifest names them: honours
    Range and If-None-Match; the bytes never change."""
    dataset = await find(name, version, parts)
    if version == LATEST:
        return pinned(dataset, file)
    path = path_of(dataset, file, parts)
    headers = _caching(dataset, file)
    if headers["etag"] in if_none_match:
        return Response(status_code=304, headers=headers)
    return FrozenFile(path, media_type=MEDIA_TYPES[path.suffix], headers=headers)


@router.get("/{name}", dependencies=[READS])
async def get_dataset(name: str, parts: PartsDep) -> list[DatasetOut]:
    """All versions, oldest first."""
    return [DatasetOut.of(dataset) for dataset in await parts.store.datasets.versions(name)]


async def find(name: str, version: str, parts: Parts, *, deleted: bool = False) -> DatasetVersion:
    """The version, or for `latest` the newest that is not deleted. Raises NotFound, Invalid, and Gone unless a deleted
    one will do."""
    if version == LATEST:
        versions = await parts.store.datasets.versions(name)
        dataset = next((one for one in reversed(versions) if one.deleted_at is None), versions[-1])
    else:
        dataset = await parts.store.datasets.get(name, _number(version))
    if dataset.deleted_at is not None and not deleted:
        why = f": {dataset.deletion_reason}" if dataset.deletion_reason else ""
        raise Gone("dataset_deleted", f"{name}@{dataset.version} was deleted{why}; its recipe is in its manifest")
    return dataset


def _number(version: str) -> int:
    if not version.isascii() or not version.isdigit() or len(version) > 9:
        raise Invalid("bad_version", f"{version!r} is no number of a version")
    return int(version)


def _caching(dataset: DatasetVersion, *files: str, weak: bool = False) -> dict[str, str]:
    """Weak where other software would make other bytes that mean the same."""
    sums = [dataset.manifest["files"][file]["sha256"] for file in files]
    etag = f'"{sums[0] if len(sums) == 1 else digest(*sums)}"'
    return {"etag": f"W/{etag}" if weak else etag, "cache-control": IMMUTABLE}


def _arrow(paths: Sequence[Path]) -> Iterator[bytes]:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, pq.read_schema(paths[0])) as writer:
        for path in paths:
            # Page by page: a reader that stands still holds a few of them, not a row group.
            with pq.ParquetFile(path, buffer_size=PAGE_BYTES, pre_buffer=False) as file:
                for batch in file.iter_batches(_rows_in(file.metadata, BATCH_BYTES), use_threads=False):
                    writer.write_batch(batch)
                    yield _drained(sink)
    yield _drained(sink)


def _rows_in(file: pq.FileMetaData, budget: int) -> int:
    """How many rows have so many bytes, on average; at least one."""
    size = sum(file.row_group(number).total_byte_size for number in range(file.num_row_groups))
    rows: int = file.num_rows * budget // max(size, 1)
    return max(1, rows)


def _drained(sink: io.BytesIO) -> bytes:
    written = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    return written


def pinned(dataset: DatasetVersion, rest: str = "", **query: Any) -> RedirectResponse:
    """The way from "latest", which moves, to a version, which does not."""
    url = f"/v1/datasets/{dataset.name}@{dataset.version}" + (f"/{quote(rest)}" if rest else "")
    return RedirectResponse(
        url + (f"?{urlencode(query)}" if query else ""), status_code=307, headers={"cache-control": "no-store"}
    )


def path_of(dataset: DatasetVersion, file: str, parts: Parts) -> Path:
    """Only names in the manifest are files."""
    if file not in dataset.manifest["files"]:
        names = ", ".join(dataset.manifest["files"])
        raise NotFound("file_not_found", f"{dataset.name}@{dataset.version} has no {file!r}; it has {names}")
    path = parts.dataset_root / dataset.dataset_id / file
    if not path.is_file():
        raise StoreFailed(f"{path} is missing; `refinery store check` tells what else is, and a backup has it")
    return path


def shards_of(dataset: DatasetVersion, split: str, parts: Parts) -> list[Path]:
    """The Parquet files of a split. Raises NotFound for one that it does not have."""
    names = dataset.shards(split) or [name for name in (f"{split}.parquet",) if name in dataset.manifest["files"]]
    if not names:
        splits = ", ".join(dataset.splits)
        raise NotFound("split_not_found", f"{dataset.name}@{dataset.version} has no split {split!r}; it has {splits}")
    return [path_of(dataset, name, parts) for name in names]


def _rows(paths: list[Path], offset: int, length: int) -> RowsOut:
    frame = pl.scan_parquet(paths)
    total = frame.select(pl.len()).collect().item()
    page = frame.slice(offset, length).collect()
    features = [
        {"feature_idx": i, "name": field.name, "type": _feature(field.type)}
        for i, field in enumerate(pq.read_schema(paths[0]))
    ]
    rows = [
        {"row_idx": offset + i, "row": row, "truncated_cells": []} for i, row in enumerate(page.iter_rows(named=True))
    ]
    return RowsOut(features=features, rows=rows, num_rows_total=total, num_rows_per_page=100)


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """As the library `datasets` calls it."""
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {part.name: _feature(part.type) for part in kind}
    return {"dtype": {"double": "float64", "float": "float32"}.get(str(kind), str(kind)), "_type": "Value"}
