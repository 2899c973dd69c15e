"""POST with an ``Idempotency-Key``: carried out once for its sender, path and key, and answered the same ever after.

- The first good answer is on disk before it is told. A refusal is not kept: what is asked again is tried again.
- Between the deed and its answer a crash can come. So the deed itself is one that is harmless to repeat: rows are known
  by content, runs by name, jobs by the key. What is named by the state of the store, and so by another name when it is
  repeated, is noted before it is made: `Deed`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, cast
from weakref import WeakValueDictionary

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute

from curation.keys import digest
from service.access import Caller
from service.api.routes import IdempotencyKey
from service.parts import Parts
from service.stages import Conflict
from service.store.answers import BEGUN, Answer

Handle = Callable[[Request], Awaitable[Response]]
REPLAYED = {"idempotency-replayed": "true"}


@dataclass(frozen=True, slots=True)
class Deed:
    """What a request with a key does, before it is answered."""

    parts: Parts
    answer_id: str
    asked: str
    """Digest of the request."""

    async def begun(self) -> list[str]:
        """Names of what it was about to make when it was sent before; they may have been made or not."""
        return await self.parts.store.answers.begun(self.answer_id, self.asked)

    async def begin(self, name: str) -> None:
        await self.parts.store.answers.add(Answer(self.answer_id, self.asked, BEGUN, name, self.parts.now()))


async def _deed(request: Request) -> Deed | None:
    return getattr(request.state, "deed", None)


DeedDep = Annotated[Deed | None, Depends(_deed)]
"""None for a request without a key."""


class OncePerKey(APIRoute):
    """For routers: every POST of theirs honours the header. Its answers are JSON, and no streams."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if "POST" in options["methods"]:
            options["dependencies"] = [*(options.get("dependencies") or ()), Depends(_keyed)]
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Any]:
        handle = cast(Handle, super().get_route_handler())
        at_work: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

        async def once(request: Request) -> Response:
            key = request.headers.get("idempotency-key")
            if request.method != "POST" or not key:
                return await handle(request)
            # With all that it may: who may less by now is told by the route, not by an answer of before.
            sender: Caller = request.state.caller
            answer_id = digest(sender.name, sender.role, sender.names, request.url.path, str(request.query_params), key)
            async with at_work.setdefault(answer_id, asyncio.Lock()):
                return await _answered(answer_id, request, handle)

        return once


def _sum(body: bytes) -> str:
    return sha256(body).hexdigest()


async def _keyed(idempotency_key: IdempotencyKey = None) -> None:
    """Only so that it is checked and described."""


async def _answered(answer_id: str, request: Request, handle: Handle) -> Response:
    parts: Parts = request.state.parts
    body = await request.body()
    asked = digest(request.headers.get("content-type"), await asyncio.to_thread(_sum, body))
    known = await parts.store.answers.find(answer_id)
    if known is None:
        request.state.deed = Deed(parts, answer_id, asked)
        answer = await handle(request)
        if answer.status_code < 300:
            told = bytes(answer.body).decode()
            await parts.store.answers.add(Answer(answer_id, asked, answer.status_code, told, parts.now()))
        return answer
    if known.request != asked:
        raise Conflict("idempotency_conflict", "this Idempotency-Key was sent with another request before")
    return Response(known.body, known.status, REPLAYED, "application/json")
