"""/v1/groups and /v1/rollouts"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache, partial
from operator import itemgetter
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import ValidationError

from curation.choice import reason_of
from curation.foreign import Format, MappingChange, group_of, joined, mapping_of
from curation.recorded import RECORDED, GroupIn, Numbered
from service.api.bodies import rows_of, rows_rejected, sift_rows
from service.api.errors import problems
from service.api.once import OncePerKey
from service.api.routes import OWN_READS, OWN_WRITES, CallerDep, Cursor, Limit, PartsDep, limits, refuse_others
from service.api.wire import (
    GroupDetailOut,
    GroupOut,
    Page,
    RescoreOut,
    RolloutOut,
    decode_cursor,
    spelled_verifier,
    with_spelled_verifier,
)
from service.importing import import_groups, prompt_of
from service.run_config import NAME
from service.stages import Invalid, NotFound
from service.store.groups import no_group
from service.verifiers.panel import Panel

router = APIRouter(prefix="/v1", tags=["groups"], route_class=OncePerKey)


@router.get("/groups", responses=problems(NotFound), dependencies=[OWN_READS])
async def list_groups(
    parts: PartsDep,
    caller: CallerDep,
    run: str | None = None,
    informative: bool | None = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Page[GroupOut]:
    """Groups in the order they were stored, without their rollouts; of all runs only for a key without limits."""
    if run is None and caller.names:
        raise Invalid("run_missing", f"key {caller.name!r} is limited to {limits(caller)}: name a run")
    if run is not None:
        refuse_others(caller, run)
        await parts.store.runs.get(run)
    rows = await parts.store.groups.page(run=run, informative=informative, after=decode_cursor(cursor, 0), limit=limit)
    return Page.of([GroupOut.of(row) for row in rows], limit, rows[-1]["seq"] if rows else None)


@router.get("/groups/{group_id}", dependencies=[OWN_READS])
async def get_group(group_id: str, parts: PartsDep, caller: CallerDep) -> GroupDetailOut:
    """A group with all its rollouts."""
    group, rollouts = await parts.store.groups.get(group_id)
    if not caller.reaches(group["run"]):
        raise no_group(group_id)
    members = [RolloutOut(**{key: row[key] for key in RolloutOut.model_fields}) for row in rollouts]
    rescores = [RescoreOut(**row) for row in await parts.store.verdicts.of_group(group_id)]
    return GroupDetailOut(**GroupOut.of(group).model_dump(), members=members, rescores=rescores)


async def _change(
    verifier: str | None = None,
    reference: str | None = None,
    label: str | None = None,
    lowest: float = 0.0,
    highest: float = 1.0,
) -> MappingChange:
    """Of a foreign format."""
    try:
        return MappingChange(verifier=verifier, reference=reference, label=label, lowest=lowest, highest=highest)
    except ValidationError as error:
        raise Invalid("bad_mapping", reason_of(error)) from None


async def _judgeable(groups: Sequence[Numbered], panel: Panel) -> tuple[list[GroupIn], list[dict[str, Any]]]:
    """Those whose verifier there is and can work with their prompt; and the rows of the others."""
    spelled, rejected = [], []
    spell = cache(partial(spelled_verifier, catalogue=panel.catalogue))
    for one in groups:
        try:
            spelled.append(one._replace(group=with_spelled_verifier(one.group, spell)))
        except Invalid as error:
            rejected += [{"row": row, "reason": str(error)} for row in one.rows]
    prompts = [prompt_of(one.group) for one in spelled]
    faults = await panel.question_faults({p.id: p for p in prompts if p.verifier != RECORDED}.values())
    for one, prompt in zip(spelled, prompts, strict=True):
        if fault := faults.get(prompt.id):
            rejected += [{"row": row, "reason": fault} for row in one.rows]
    return [one.group for one, p in zip(spelled, prompts, strict=True) if p.id not in faults], rejected


@router.post(
    "/rollouts/import", status_code=201, openapi_extra=rows_of(GroupIn, or_others=True), dependencies=[OWN_WRITES]
)
async def import_rollouts(
    request: Request,
    parts: PartsDep,
    caller: CallerDep,
    run: Annotated[str, Query(pattern=NAME)],
    change: Annotated[MappingChange, Depends(_change)],
    format: Format = Format.NATIVE,
    keep_good: bool = False,
) -> dict[str, Any]:
    """Stores recorded rollouts as groups of a run: rows ``{prompt, reference, verifier?, metadata?, rollouts}``, or
    those of another system by its `format`, as a JSON list, NDJSON or Parquet. They are verified by us, or, with the
    verifier `recorded`, the labels that they came with are taken. One bad row and nothing is stored, or with
    `keep_good` the others are; known groups are counted."""
    refuse_others(caller, run)
    try:
        mapping = mapping_of(format, change)
    except ValueError as error:
        raise Invalid("bad_mapping", reason_of(error)) from None
    rows, rejected = await sift_rows(request, partial(group_of, mapping=mapping), parts.settings.body_mib << 20)
    of = len(rows) + len(rejected)
    whole = await asyncio.to_thread(lambda: list(joined((Numbered((n,), row) for n, row in rows), mapping)))
    good, faulty = await _judgeable(whole, parts.panel)
    rejected += faulty
    if rejected and not keep_good:
        raise rows_rejected(rejected, of)
    imported = await import_groups(
        good, run, verify=parts.panel.verify, duck=parts.store.duck, groups=parts.store.groups, now=parts.now
    )
    return asdict(imported) | {"rows_rejected": len(rejected), "rejected": sorted(rejected, key=itemgetter("row"))}
