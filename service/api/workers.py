"""/v1/workers"""

from fastapi import APIRouter

from service.api.routes import READS, PartsDep
from service.api.wire import WorkerOut

router = APIRouter(prefix="/v1/workers", tags=["workers"])


@router.get("", dependencies=[READS])
async def list_workers(parts: PartsDep) -> list[WorkerOut]:
    """Every engine worker: where it is, whether it is given work and why not, what it holds and what it does."""
    return [WorkerOut.of(policy, view) for policy, views in parts.engines.workers().items() for view in views]
