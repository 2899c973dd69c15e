"""What takes long takes turns: few at once, so that threads and memory are left for what is short, and never all of one
caller's."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends

from service.access import Caller
from service.api.routes import CallerDep, PartsDep
from service.shares import Shares
from service.stages import Busy

MOST_WAITING = 64
"""Of one caller; more are told to come again."""


@asynccontextmanager
async def turn(turns: Shares, caller: Caller) -> AsyncIterator[None]:
    """Raises Busy."""
    if turns.waiting(caller.name) >= MOST_WAITING:
        detail = f"{MOST_WAITING} questions of yours wait already: ask again in a moment"
        raise Busy("too_many_questions", detail, retry_after=5)
    async with turns.hold(caller.name):
        yield


async def _turn(parts: PartsDep, caller: CallerDep) -> AsyncIterator[None]:
    async with turn(parts.turns, caller):
        yield


TAKES_LONG = Depends(_turn, scope="function")
"""Seconds, that is. Of a route; given back before the answer is sent, which somebody may read slowly."""
