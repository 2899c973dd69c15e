"""What the routers share: the parts of the running service, who asks and what that one may, paging, names of jobs.

What a route depends on is `async`, also where it waits for nothing: anything else costs a trip to a thread.
"""

from typing import Annotated, Any, cast
from uuid import uuid4

from fastapi import Depends, Header, Query, Request

from curation.keys import digest
from service.access import Caller, Role
from service.parts import Parts
from service.stages import Forbidden


async def _parts(request: Request) -> Parts:
    return cast(Parts, request.state.parts)


PartsDep = Annotated[Parts, Depends(_parts)]


async def _caller(request: Request) -> Caller:
    caller: Caller | None = request.state.caller
    assert caller is not None  # the gate lets nobody else through
    return caller


CallerDep = Annotated[Caller, Depends(_caller)]
NAMING = ("run", "name")
"""Parameters of a path that name a run, a policy or a dataset."""


def _asks(role: Role, *, own: bool = False) -> Any:
    """What a route asks of its caller: the role, and that the names in its path are within the caller's limits. A route
    without one has none to a caller with limits, unless it looks after what is the caller's `own` by itself."""

    async def check(request: Request, caller: CallerDep) -> None:
        if not caller.role.includes(role):
            raise Forbidden("role_too_low", f"this takes role {role}, and key {caller.name!r} has role {caller.role}")
        named = [request.path_params[place] for place in NAMING if place in request.path_params]
        if caller.names and not named and not own:
            raise Forbidden("out_of_limits", f"key {caller.name!r} is limited to {limits(caller)}; this is about all")
        refuse_others(caller, *named)

    return Depends(check)


def refuse_others(caller: Caller, *named: str) -> None:
    """Raises Forbidden for names of runs, policies or datasets that are none of the caller's, if they exist or not."""
    if not caller.reaches(*named):
        other = next(name for name in named if not caller.reaches(name))
        raise Forbidden("out_of_limits", f"key {caller.name!r} is limited to {limits(caller)}; {other!r} is not")


def limits(caller: Caller) -> str:
    return ", ".join(caller.names)


READS, OWN_READS = _asks(Role.READ), _asks(Role.READ, own=True)
ASKS_SQL = _asks(Role.SQL, own=True)
WRITES, OWN_WRITES = _asks(Role.WRITE), _asks(Role.WRITE, own=True)
ADMINISTERS = _asks(Role.ADMIN)

Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str | None, Query()]
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=200)]


async def _job_key(caller: CallerDep, idempotency_key: IdempotencyKey = None) -> str | None:
    return None if idempotency_key is None else digest(caller.name, idempotency_key)


JobKey = Annotated[str | None, Depends(_job_key)]
"""The client's idempotency key: two clients may send the same one and mean two jobs."""


def job_name(kind: str, on: str, key: str | None) -> str:
    """A new name, or the one that belongs to the key."""
    return "j_" + (uuid4().hex if key is None else digest(kind, on, key))
