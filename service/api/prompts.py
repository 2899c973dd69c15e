"""/v1/prompts"""

from functools import cache, partial
from typing import Annotated

from fastapi import APIRouter, Query, Request

from service.api.bodies import read_rows, rows_of
from service.api.faults import refuse_faulty
from service.api.once import OncePerKey
from service.api.routes import READS, WRITES, Cursor, Limit, PartsDep
from service.api.wire import (
    Page,
    PromptHistoryOut,
    PromptIn,
    PromptOut,
    PromptsAdded,
    decode_cursor,
    spelled_verifier,
    with_spelled_verifier,
)
from service.run_config import NAME

router = APIRouter(prefix="/v1/prompts", tags=["prompts"], route_class=OncePerKey)
SetName = Annotated[str, Query(alias="set", pattern=NAME)]


@router.post("", status_code=201, openapi_extra=rows_of(PromptIn), dependencies=[WRITES])
async def add_prompts(request: Request, parts: PartsDep, prompt_set: SetName = "default") -> PromptsAdded:
    """Adds rows ``{prompt, reference, verifier?, metadata?}`` to a prompt set: a JSON list, NDJSON or Parquet.

    One bad row and nothing is stored, a reference that its verifier cannot read included; the answer names the rows at
    fault.
    """
    rows = await read_rows(request, PromptIn, parts.settings.body_mib << 20)
    spell = cache(partial(spelled_verifier, catalogue=parts.panel.catalogue))
    added = [with_spelled_verifier(row, spell).record() for row in rows]
    await refuse_faulty(added, parts.panel)
    result = await parts.store.prompts.add(added, prompt_set, parts.now())
    return PromptsAdded(prompt_set=prompt_set, added=result.added, existing=result.existing)


@router.get("", dependencies=[READS])
async def list_prompts(
    parts: PartsDep,
    prompt_set: Annotated[str | None, Query(alias="set")] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Page[PromptOut]:
    prompts = await parts.store.prompts.page(prompt_set, decode_cursor(cursor, ""), limit)
    return Page.of([PromptOut.of(p) for p in prompts], limit, prompts[-1].id if prompts else None)


@router.get("/{prompt_id}", dependencies=[READS])
async def get_prompt(prompt_id: str, parts: PartsDep) -> PromptHistoryOut:
    """The prompt with every visit in every run: decision, probability, reason and rewards."""
    prompt = (await parts.store.prompts.get([prompt_id]))[prompt_id]
    visits = await parts.store.prompts.visits(prompt_id)
    return PromptHistoryOut(**PromptOut.of(prompt).model_dump(), visits=visits)
