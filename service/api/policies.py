"""/v1/policies"""

import asyncio

from fastapi import APIRouter

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
from service.api.wire import JobOut, PolicyIn, PolicyOut
from service.checkpoints import named
from service.jobs import JobKind
from service.parts import Parts
from service.publishing import PublishRequest
from service.stages import Conflict

router = APIRouter(prefix="/v1/policies", tags=["policies"], route_class=OncePerKey)


@router.post("", status_code=202, dependencies=[OWN_WRITES])
async def add_policy(body: PolicyIn, parts: PartsDep, caller: CallerDep, key: JobKey) -> JobOut:
    """Publishes a checkpoint as version 1 of a new policy; the job ends when it is live."""
    refuse_others(caller, body.name)
    is_known = await parts.jobs.find(job_name(JobKind.PUBLISH, body.name, key))
    if not is_known and body.name in await parts.store.policies.names():
        raise Conflict(
            "policy_exists", f"policy {body.name!r} exists; POST /v1/policies/{body.name}/versions publishes to it"
        )
    return await _publish(body.name, PublishRequest(checkpoint=body.checkpoint, step=body.step), parts, key)


@router.get("", dependencies=[OWN_READS])
async def list_policies(parts: PartsDep, caller: CallerDep) -> list[PolicyOut]:
    names = [name for name in await parts.store.policies.names() if caller.reaches(name)]
    return [PolicyOut.of(await parts.store.policies.versions(name)) for name in names]


@router.get("/{name}", dependencies=[READS])
async def get_policy(name: str, parts: PartsDep) -> PolicyOut:
    return PolicyOut.of(await parts.store.policies.versions(name))


@router.post("/{name}/versions", status_code=202, dependencies=[WRITES])
async def publish_version(name: str, body: PublishRequest, parts: PartsDep, key: JobKey) -> JobOut:
    """Publishes a checkpoint as the policy's next version; live when the engine reports it."""
    await parts.store.policies.versions(name)
    return await _publish(name, body, parts, key)


async def _publish(name: str, request: PublishRequest, parts: Parts, key: str | None) -> JobOut:
    checkpoint = await asyncio.to_thread(named, request.checkpoint, parts.roots)
    resolved = request.model_copy(update={"checkpoint": checkpoint})
    job_id = job_name(JobKind.PUBLISH, name, key)
    return JobOut.of(await parts.jobs.submit(job_id, JobKind.PUBLISH, name, resolved.model_dump(mode="json")))
