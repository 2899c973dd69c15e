"""/v1/runs"""

import asyncio
from typing import Any

from fastapi import APIRouter, Response

from service.api.once import OncePerKey
from service.api.routes import (
    OWN_READS,
    OWN_WRITES,
    READS,
    WRITES,
    CallerDep,
    JobKey,
    PartsDep,
    job_name,
    refuse_others,
)
from service.api.turns import TAKES_LONG
from service.api.wire import JobOut, RunOut, spelled_verifier
from service.harvest import RolloutsRequest, admit
from service.jobs import JobKind
from service.rescoring import RescoreRequest
from service.run_config import RunConfig
from service.stages import Invalid

router = APIRouter(prefix="/v1/runs", tags=["runs"], route_class=OncePerKey)
KNOWN: dict[int | str, dict[str, Any]] = {200: {"model": RunConfig, "description": "It was there already."}}


@router.post("", status_code=201, responses=KNOWN, dependencies=[OWN_WRITES])
async def add_run(body: RunConfig, parts: PartsDep, caller: CallerDep, response: Response) -> RunConfig:
    """Names a configuration. Posting the very same one again answers 200; another one under the name, 409."""
    inherited = body.inherit.runs if body.inherit else ()
    refuse_others(caller, body.name, *inherited)
    if body.imported:
        raise Invalid("imported_run", "only POST /v1/rollouts/import makes runs of recorded rollouts")
    await parts.store.policies.versions(body.policy)
    for earlier in inherited:
        await parts.store.runs.get(earlier)
    if not await parts.store.runs.add(body, parts.now()):
        response.status_code = 200
    return body


@router.get("", dependencies=[OWN_READS])
async def list_runs(parts: PartsDep, caller: CallerDep) -> list[RunConfig]:
    return [run for run in await parts.store.runs.all() if caller.reaches(run.name)]


@router.get("/{run}", dependencies=[READS, TAKES_LONG])
async def get_run(run: str, parts: PartsDep) -> RunOut:
    """Configuration, funnel and informativeness."""
    config = await parts.store.runs.get(run)
    groups = parts.store.groups
    return RunOut(
        config=config,
        funnel=await groups.funnel(run=run),
        informativeness=await asyncio.to_thread(
            parts.store.judged.informativeness, [run], await groups.watermark([run])
        ),
        epochs=await groups.epochs(run),
    )


@router.post("/{run}/rollouts", status_code=202, dependencies=[WRITES])
async def request_rollouts(run: str, body: RolloutsRequest, parts: PartsDep, key: JobKey) -> JobOut:
    """Samples until `groups` informative groups are stored, or `prompts`, or whole `passes`; within a budget."""
    await admit(body, await parts.store.runs.get(run), prompts=parts.store.prompts, engines=parts.engines)
    job_id = job_name(JobKind.ROLLOUTS, run, key)
    return JobOut.of(await parts.jobs.submit(job_id, JobKind.ROLLOUTS, run, body.model_dump(mode="json")))


@router.post("/{run}/rescore", status_code=202, dependencies=[WRITES])
async def request_rescore(run: str, body: RescoreRequest, parts: PartsDep, key: JobKey) -> JobOut:
    """Judges stored groups anew: by the verifiers of their prompts at today's revision, or by another one. The new
    verdicts count from then on; the old ones stay. The job's result says what changed."""
    await parts.store.runs.get(run)
    if body.verifier is not None:
        body = body.model_copy(update={"verifier": spelled_verifier(body.verifier, parts.panel.catalogue)})
    job_id = job_name(JobKind.RESCORE, run, key)
    return JobOut.of(await parts.jobs.submit(job_id, JobKind.RESCORE, run, body.model_dump(mode="json")))
