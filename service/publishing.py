"""A publish job: new weights for a policy, live when the engine reports them and the store holds the version."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

from pydantic import Field

from curation.choice import Choice
from service.checkpoints import Roots, fetch
from service.engines.base import WorkerState
from service.engines.room import EngineRoom
from service.jobs import Job
from service.stages import EngineFailed, NotFound
from service.store.policies import Policies, PolicyVersion


class PublishRequest(Choice):
    checkpoint: str = Field(min_length=1, max_length=4096)
    """Folder on the service's machine, or a Hub id ``owner/name[@revision]``; a LoRA adapter counts."""
    step: int | None = Field(None, ge=0)
    """The trainer's step, for the record."""


async def publish(
    job: Job, *, engines: EngineRoom, policies: Policies, roots: Roots, now: Callable[[], datetime]
) -> dict[str, Any]:
    """Loads the checkpoint as the policy's next version. On failure the old version goes on serving."""
    request = PublishRequest.model_validate(job.request)
    policy = job.run
    checkpoint = await asyncio.to_thread(fetch, request.checkpoint, roots)
    version = await next_version(policies, policy)
    await engines.publish(policy, checkpoint, version)
    reported = engines.engine_of(policy).policy_version
    if reported != version:
        raise EngineFailed(f"the engine of {policy!r} reports version {reported} after loading {version}")
    await policies.add(PolicyVersion(policy, version, checkpoint.source, request.step, now()))
    left_out = [
        {"url": worker.url, "state": worker.state, "reason": worker.reason}
        for worker in engines.workers()[policy]
        if worker.state is not WorkerState.LIVE
    ]
    return {"policy": policy, "version": version, "checkpoint": checkpoint.source, "left_out": left_out}


async def next_version(policies: Policies, policy: str) -> int:
    try:
        return (await policies.versions(policy))[-1].version + 1
    except NotFound:
        return 1
