"""A publish job: new weights for a policy, live when the engine reports them and the store holds the version.

One job is one version: its number is noted before it is published, so a job that was interrupted knows what it did.
"""

from collections.abc import Awaitable, Callable
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
from service.threads import in_daemon_thread


class PublishRequest(Choice):
    checkpoint: str = Field(min_length=1, max_length=4096)
    """Folder on the service's machine, or a Hub id ``owner/name[@revision]``; a LoRA adapter counts."""
    step: int | None = Field(None, ge=0, lt=2**63)
    """The trainer's step, for the record."""


async def publish(
    job: Job,
    *,
    engines: EngineRoom,
    policies: Policies,
    roots: Roots,
    now: Callable[[], datetime],
    report: Callable[[dict[str, Any]], Awaitable[None]],
) -> dict[str, Any]:
    """Loads the checkpoint as the policy's next version. On failure the old version goes on serving."""
    request = PublishRequest.model_validate(job.request)
    policy = job.run
    version = await next_version(policies, policy)
    begun = next((event.data["version"] for event in reversed(job.events) if "version" in event.data), version)
    if begun < version:  # it was stored, and the service ended before it could say so
        [stored] = [one for one in await policies.versions(policy) if one.version == begun]
        return _told(policy, stored, engines)
    await report({"version": version})
    checkpoint = await in_daemon_thread(fetch, request.checkpoint, roots)
    await engines.publish(policy, checkpoint, version)
    reported = engines.engine_of(policy).policy_version
    if reported != version:
        raise EngineFailed(f"the engine of {policy!r} reports version {reported} after loading {version}")
    live = PolicyVersion(policy, version, checkpoint.source, request.step, now())
    await policies.add(live)
    return _told(policy, live, engines)


def _told(policy: str, live: PolicyVersion, engines: EngineRoom) -> dict[str, Any]:
    left_out = [
        {"url": worker.url, "state": worker.state, "reason": worker.reason}
        for worker in engines.workers().get(policy, ())
        if worker.state is not WorkerState.LIVE
    ]
    return {"policy": policy, "version": live.version, "checkpoint": live.checkpoint, "left_out": left_out}


async def next_version(policies: Policies, policy: str) -> int:
    try:
        return (await policies.versions(policy))[-1].version + 1
    except NotFound:
        return 1
