"""Datasets described: for the Hub, for the dataset viewer, for machines, and against each other."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
from fastapi import APIRouter, Query, Request
from fastapi.responses import PlainTextResponse

from service.api.datasets import LATEST, find, pinned, shards_of
from service.api.routes import READS, CallerDep, PartsDep, refuse_others
from service.api.turns import TAKES_LONG
from service.cards import card, croissant
from service.diffing import diff
from service.parts import Parts
from service.stages import Invalid
from service.statistics import statistics
from service.store.datasets import DatasetVersion

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])


class Markdown(PlainTextResponse):
    media_type = "text/markdown"


@router.head("/{name}@{version}/statistics", dependencies=[READS])
@router.get("/{name}@{version}/statistics", response_model=dict[str, Any], dependencies=[READS, TAKES_LONG])
async def get_statistics(name: str, version: str, parts: PartsDep, split: str = "train") -> Any:
    """What the columns of a split hold, shaped like the Hugging Face dataset viewer's ``/statistics``."""
    dataset = await find(name, version, parts)
    if version == LATEST:
        return pinned(dataset, "statistics", split=split)
    return await asyncio.to_thread(statistics, shards_of(dataset, split, parts))


@router.head("/{name}@{version}/card", dependencies=[READS])
@router.get("/{name}@{version}/card", response_class=Markdown, dependencies=[READS])
async def get_card(name: str, version: str, parts: PartsDep) -> Any:
    """The dataset card: what is in it, how it was made and what became of the groups."""
    dataset = await find(name, version, parts)
    if version == LATEST:
        return pinned(dataset, "card")
    return Markdown(card(dataset))


@router.head("/{name}@{version}/croissant", dependencies=[READS])
@router.get("/{name}@{version}/croissant", response_model=dict[str, Any], dependencies=[READS])
async def get_croissant(name: str, version: str, request: Request, parts: PartsDep) -> Any:
    """The same for machines, in JSON-LD (Croissant 1.0)."""
    dataset = await find(name, version, parts)
    if version == LATEST:
        return pinned(dataset, "croissant")
    columns = await asyncio.to_thread(pq.read_schema, shards_of(dataset, dataset.splits[0], parts)[0])
    return croissant(dataset, f"{str(request.base_url).rstrip('/')}/v1/datasets/{name}@{version}", columns)


@router.get("/{name}@{version}/diff", response_model=dict[str, Any], dependencies=[READS, TAKES_LONG])
async def get_diff(
    name: str,
    version: str,
    parts: PartsDep,
    caller: CallerDep,
    other: Annotated[str, Query(description="NAME@VERSION.")],
) -> Any:
    """What this and another dataset have in common: rows, prompts, and what differs in their recipes."""
    dataset = await find(name, version, parts)
    if version == LATEST:
        return pinned(dataset, "diff", other=other)
    other_name, at, other_version = other.rpartition("@")
    if not at:
        raise Invalid("bad_version", f"{other!r} is no NAME@VERSION")
    refuse_others(caller, other_name)
    against = await find(other_name, other_version, parts)
    files = [_splits(each, parts) for each in (dataset, against)]
    return await asyncio.to_thread(diff, dataset, against, files)


def _splits(dataset: DatasetVersion, parts: Parts) -> list[Path]:
    return [path for split in dataset.splits for path in shards_of(dataset, split, parts)]
