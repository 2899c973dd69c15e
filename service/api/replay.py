"""/v1/replay: what another selector would have spent and kept."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from curation.replay import Question, document, informative_in, replay, summary
from service.api.routes import OWN_READS, CallerDep, PartsDep, refuse_others
from service.api.turns import turn
from service.stages import Invalid

router = APIRouter(prefix="/v1/replay", tags=["replay"])


class ReplayIn(Question):
    run: str


class EstimateOut(BaseModel):
    """A mean over seeds with its 95 % interval."""

    mean: float
    low: float
    high: float


class SummaryOut(BaseModel):
    selector: dict[str, Any]
    precision: EstimateOut
    """Share of the sampled visits that are informative."""
    recall: EstimateOut
    """Share of the informative visits that are sampled."""
    sampled: EstimateOut
    groups_per_informative: EstimateOut | None


class ReplayOut(BaseModel):
    run: str
    prompts: int
    visits: int
    """Sampled ones, which are all that a record can answer for."""
    informative: int
    selectors: list[SummaryOut]


@router.post("", dependencies=[OWN_READS])
async def replay_selectors(body: ReplayIn, parts: PartsDep, caller: CallerDep, request: Request) -> ReplayOut:
    """Replays selectors on the groups of a run: visit by visit of each prompt, told only what they would have seen."""
    refuse_others(caller, body.run)
    config = await parts.store.runs.get(body.run)
    async with turn(parts.long_turns, caller):
        recorded = await parts.store.groups.recorded(body.run)
        if not recorded:
            raise Invalid("nothing_recorded", f"run {body.run!r} has no scored groups yet")
        summaries = []
        for choice in body.selectors:
            runs = []
            for seed in range(body.seeds):
                if await request.is_disconnected():
                    raise ClientDisconnect
                async with turn(parts.turns, caller):
                    runs.append(
                        await asyncio.to_thread(replay, choice, recorded, seed=seed, batch=body.batch or config.batch)
                    )
            summaries.append(summary(choice, runs))
    return ReplayOut(
        run=body.run,
        prompts=len(recorded),
        visits=sum(map(len, recorded.values())),
        informative=informative_in(recorded),
        selectors=[SummaryOut.model_validate(document(one)) for one in summaries],
    )
