"""/livez and /readyz"""

from fastapi import APIRouter

from service.api.routes import PartsDep
from service.stages import EngineFailed, VerifierFailed

router = APIRouter(tags=["health"])


@router.get("/livez")
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(parts: PartsDep) -> dict[str, dict[str, int]]:
    """The store answers, every policy that is loaded has its newest version, and the service's own is; no verifier is
    blind. Else a problem document."""
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
    return {"policies": live}
