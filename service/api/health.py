"""/livez and /readyz"""

from fastapi import APIRouter, Request

from service.api.routes import PartsDep
from service.parts import Parts
from service.stages import EngineFailed, StageError, VerifierFailed

router = APIRouter(tags=["health"])


@router.get("/livez")
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request, parts: PartsDep) -> dict[str, dict[str, int]]:
    """The store answers, every policy that is loaded has its newest version, and the service's own is; no verifier is
    blind. Else a problem document. Which and why is told to who has a key."""
    try:
        live = await _live(parts)
    except StageError as failure:
        raise failure if request.state.caller else type(failure)("not ready; ask with a key for the reason") from None
    return {"policies": live if request.state.caller else {}}


async def _live(parts: Parts) -> dict[str, int]:
    """The version of each policy. Raises what is wrong."""
    live = {}
    for name in await parts.store.policies.names():
        if not parts.engines.holds(name) and name != parts.settings.policy_name:
            continue
        live[name] = parts.engines.engine_of(name).policy_version
        newest = (await parts.store.policies.versions(name))[-1].version
        if live[name] != newest:
            raise EngineFailed(f"policy {name!r} is published at version {newest}, its engine has {live[name]}")
    if parts.panel.blind:
        raise VerifierFailed("; ".join(f"verifier {name} is blind: {why}" for name, why in parts.panel.blind.items()))
    return live
