"""/v1/leases: groups handed to online trainers."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from service.api.routes import OWN_READS, OWN_WRITES, READS, WRITES, CallerDep, Cursor, IdempotencyKey, Limit, PartsDep
from service.api.wire import LeaseDetailOut, LeaseOut, Page, decode_cursor
from service.leasing import LeaseRequest
from service.parts import Parts
from service.store.leases import Lease, no_lease

router = APIRouter(prefix="/v1", tags=["leases"])
KNOWN: dict[int | str, dict[str, Any]] = {200: {"model": LeaseDetailOut, "description": "The lease of that key."}}


@router.post("/runs/{run}/leases", status_code=201, responses=KNOWN, dependencies=[WRITES])
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


@router.get("/runs/{run}/leases", dependencies=[READS])
async def list_leases(run: str, parts: PartsDep, cursor: Cursor = None, limit: Limit = 100) -> Page[LeaseOut]:
    """Without their rows, oldest first."""
    leases = await parts.leasing.page(run, decode_cursor(cursor, 0), limit)
    return Page.of([_told(lease, parts) for lease in leases], limit, leases[-1].seq if leases else None)


async def _own(lease_id: str, parts: PartsDep, caller: CallerDep) -> Lease:
    """What is none of the caller's is not there."""
    lease = await parts.leasing.get(lease_id)
    if not caller.reaches(lease.run):
        raise no_lease(lease_id)
    return lease


LeaseDep = Annotated[Lease, Depends(_own)]


@router.get("/leases/{lease_id}", dependencies=[OWN_READS])
async def get_lease(lease: LeaseDep, parts: PartsDep) -> LeaseOut:
    """Without its rows."""
    return _told(lease, parts)


@router.post("/leases/{lease_id}/ack", dependencies=[OWN_WRITES])
async def acknowledge_lease(lease: LeaseDep, parts: PartsDep) -> LeaseOut:
    """The consumer has trained on the groups and is never given them again. Accepted after the lease has expired, too,
    if nobody has taken any of its groups."""
    return _told(await parts.leasing.acknowledge(lease.id), parts)


@router.post("/leases/{lease_id}/release", dependencies=[OWN_WRITES])
async def release_lease(lease: LeaseDep, parts: PartsDep) -> LeaseOut:
    """Gives the groups back at once."""
    return _told(await parts.leasing.release(lease.id), parts)


@router.post("/leases/{lease_id}/renew", dependencies=[OWN_WRITES])
async def renew_lease(lease: LeaseDep, parts: PartsDep) -> LeaseOut:
    """Starts its seconds anew; of an expired one, too, if nobody has taken any of its groups."""
    return _told(await parts.leasing.renew(lease.id), parts)


def _told(lease: Lease, parts: Parts) -> LeaseOut:
    return LeaseOut.of(lease, parts.leasing.expires_at(lease))
