"""/v1/groups and /v1/rollouts"""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from curation.recorded import GroupIn
from service.api.bodies import read_rows
from service.api.faults import refuse_faulty
from service.api.routes import Cursor, Limit, PartsDep
from service.api.wire import (
    GroupDetailOut,
    GroupOut,
    Page,
    RescoreOut,
    RolloutOut,
    decode_cursor,
    with_spelled_verifiers,
)
from service.importing import import_groups, prompt_of
from service.run_config import NAME

router = APIRouter(prefix="/v1", tags=["groups"])


@router.get("/groups")
async def list_groups(
    parts: PartsDep,
    run: str | None = None,
    informative: bool | None = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Page[GroupOut]:
    """Groups in the order they were stored, without their rollouts."""
    if run is not None:
        await parts.store.runs.get(run)
    rows = await parts.store.groups.page(run=run, informative=informative, after=decode_cursor(cursor, 0), limit=limit)
    return Page.of([GroupOut.of(row) for row in rows], limit, rows[-1]["seq"] if rows else None)


@router.get("/groups/{group_id}")
async def get_group(group_id: str, parts: PartsDep) -> GroupDetailOut:
    """A group with all its rollouts."""
    group, rollouts = await parts.store.groups.get(group_id)
    members = [RolloutOut(**{key: row[key] for key in RolloutOut.model_fields}) for row in rollouts]
    rescores = [RescoreOut(**row) for row in await parts.store.verdicts.of_group(group_id)]
    return GroupDetailOut(**GroupOut.of(group).model_dump(), members=members, rescores=rescores)


@router.post("/rollouts/import", status_code=201)
async def import_rollouts(
    request: Request, parts: PartsDep, run: Annotated[str, Query(pattern=NAME)]
) -> dict[str, Any]:
    """Stores recorded rollouts as groups of a run: rows ``{prompt, reference, verifier?, metadata?, rollouts}``, as a
    JSON list, NDJSON or Parquet, verified by us. One bad row and nothing is stored; known groups are counted."""
    rows = await read_rows(request, GroupIn, parts.settings.body_mib << 20)
    rows = with_spelled_verifiers(rows, parts.panel.catalogue)
    await refuse_faulty([prompt_of(row) for row in rows], parts.panel)
    imported = await import_groups(
        rows, run, verify=parts.panel.verify, duck=parts.store.duck, groups=parts.store.groups, now=parts.now
    )
    return asdict(imported)
