"""/v1/store: how the store lies on disk, its backup and its check."""

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from service.api.routes import ADMINISTERS, PartsDep
from service.parts import Parts
from service.store import keeping

router = APIRouter(prefix="/v1/store", tags=["store"])


class Tar(StreamingResponse):
    media_type = "application/x-tar"


class StoreOut(BaseModel):
    """How the store lies on disk."""

    hot_bytes: int
    """Not sealed yet; about, as it lies in memory."""
    segments: int
    sealed_bytes: int
    sealed_rows: dict[str, int]
    """By table."""
    taken_up: dict[str, Any]
    """When the service was started, of what an earlier process had left: unfinished jobs, open leases, files that were
    removed because nobody had finished them."""

    @classmethod
    def of(cls, parts: Parts) -> "StoreOut":
        duck = parts.store.duck
        manifest = duck.layout.manifest
        rows = dict.fromkeys(sorted(duck.tables), 0)
        for segment in manifest.segments:
            for table, file in segment.files.items():
                rows[table] += file.rows
        return cls(
            hot_bytes=duck.hot_bytes,
            segments=len(manifest.segments),
            sealed_bytes=manifest.bytes,
            sealed_rows=rows,
            taken_up=asdict(parts.taken_up),
        )


class CheckOut(BaseModel):
    damages: list[str]
    """What is wrong, in words; empty if nothing is."""


@router.get("", dependencies=[ADMINISTERS])
async def get_store(parts: PartsDep) -> StoreOut:
    return StoreOut.of(parts)


@router.post("/compact", dependencies=[ADMINISTERS])
async def compact_store(parts: PartsDep) -> StoreOut:
    """Seals what is hot and merges small segments. It happens by itself, too."""
    await asyncio.to_thread(parts.store.sealer.seal)
    await asyncio.to_thread(parts.store.sealer.compact)
    return StoreOut.of(parts)


@router.get("/check", dependencies=[ADMINISTERS])
async def check_store(parts: PartsDep, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> CheckOut:
    """Reads everything: every segment and dataset against its sha256, and rows against each other."""
    return CheckOut(damages=await asyncio.to_thread(_damages, parts, limit))


@router.get("/backup", response_class=Tar, dependencies=[ADMINISTERS])
async def back_up_store(parts: PartsDep) -> Tar:
    """A tar of the store and the frozen datasets as they are now, for ``refinery store restore``."""
    store = parts.store
    await asyncio.to_thread(store.sealer.seal)  # what can fail does before the status is sent
    return Tar(
        keeping.backup(store.duck, store.sealer, parts.dataset_root),
        headers={"content-disposition": 'attachment; filename="refinery-backup.tar"'},
    )


def _damages(parts: Parts, limit: int) -> list[str]:
    found = keeping.damages(parts.store.duck, parts.dataset_root)
    return [damage for damage, _ in zip(found, range(limit), strict=False)]
