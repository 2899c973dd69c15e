"""/v1/leases: groups handed to online trainers."""

from fastapi import APIRouter, Response

from service.api.routes import Cursor, IdempotencyKey, Limit, PartsDep
from service.api.wire import LeaseDetailOut, LeaseOut, Page, decode_cursor
from service.leasing import LeaseRequest

router = APIRouter(prefix="/v1", tags=["leases"])


@router.post("/runs/{run}/leases", status_code=201)
async def take_lease(
    run: str, body: LeaseRequest, parts: PartsDep, response: Response, idempotency_key: IdempotencyKey = None
) -> LeaseDetailOut:
    """Hands groups to a consumer, until it acknowledges them or the lease expires: exactly as many as it asks for, in
    the order in which their prompts were chosen, with the rows that a dataset would hold of them. The same
    Idempotency-Key answers 200 with the same rows."""
    handed = await parts.leasing.take(run, body, idempotency_key)
    if not handed.is_new:
        response.status_code = 200
    return LeaseDetailOut.handed(handed, parts.leasing.expires_at(handed.lease))


@router.get("/runs/{run}/leases")
async def list_leases(run: str, parts: PartsDep, cursor: Cursor = None, limit: Limit = 100) -> Page[LeaseOut]:
    """Without their rows, oldest first."""
    leases = await parts.leasing.page(run, decode_cursor(cursor, 0), limit)
    items = [LeaseOut.of(lease, parts.leasing.expires_at(lease)) for lease in leases]
    return Page.of(items, limit, leases[-1].seq if leases else None)


@router.get("/leases/{lease_id}")
async def get_lease(lease_id: str, parts: PartsDep) -> LeaseOut:
    """Without its rows."""
    lease = await parts.leasing.get(lease_id)
    return LeaseOut.of(lease, parts.leasing.expires_at(lease))


@router.post("/leases/{lease_id}/ack")
async def acknowledge_lease(lease_id: str, parts: PartsDep) -> LeaseOut:
    """The consumer has trained on the groups and is never given them again. Accepted after the lease has expired, too,
    if nobody has taken any of its groups."""
    lease = await parts.leasing.acknowledge(lease_id)
    return LeaseOut.of(lease, parts.leasing.expires_at(lease))


@router.post("/leases/{lease_id}/release")
async def release_lease(lease_id: str, parts: PartsDep) -> LeaseOut:
    """Gives the groups back at once."""
    lease = await parts.leasing.release(lease_id)
    return LeaseOut.of(lease, parts.leasing.expires_at(lease))


@router.post("/leases/{lease_id}/renew")
async def renew_lease(lease_id: str, parts: PartsDep) -> LeaseOut:
    """Starts its seconds anew; of an expired one, too, if nobody has taken any of its groups."""
    lease = await parts.leasing.renew(lease_id)
    return LeaseOut.of(lease, parts.leasing.expires_at(lease))
