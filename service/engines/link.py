"""HTTP to an engine server, and whose fault it is when it fails.

::

    EngineFailed
    ├── Refusal           the request's own fault: no other worker would take it either
    └── Fault             the server's: worth a try elsewhere
        ├── Missing       it has no such route, or answers something else there
        ├── Unreachable   no connection, or it broke, or no answer in time
        └── Overloaded    it says so itself (429, 503)
"""

import asyncio
import os
from typing import Any, TypeVar

import aiohttp
from pydantic import JsonValue, TypeAdapter, ValidationError

from service.stages import EngineFailed

Answer = TypeVar("Answer")
CONTROL_SECONDS = 30.0
"""Enough for every control route but the one that reads weights."""
MOST_BYTES, CHUNK = 1 << 30, 1 << 18
"""Of an answer: 64 completions of a megabyte with their tokens have half of it."""
_JSON = TypeAdapter(JsonValue)


class Refusal(EngineFailed):
    """The request's own fault: no other worker would take it either."""


class Fault(EngineFailed):
    """The server's fault: worth a try elsewhere."""


class Missing(Fault):
    """The server has no such route, or answers something else there."""


class Unreachable(Fault):
    """No connection, or it broke, or no answer in time."""


class NotConnected(Unreachable):
    """The request never left."""


class Overloaded(Fault):
    """The server takes no more for now."""


class Link:
    """One base URL, and nowhere else: no redirection is followed. Raises only what stands above."""

    def __init__(self, session: aiohttp.ClientSession, url: str, api_key: str | None) -> None:
        self._session = session
        self.url = url
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def get(self, path: str, *, seconds: float = CONTROL_SECONDS) -> Any:
        return _json(await self._call("GET", path, None, seconds), self.url + path)

    async def post(self, path: str, body: dict[str, Any] | None = None, *, seconds: float = CONTROL_SECONDS) -> Any:
        """The JSON of the answer; its text where it is none."""
        answer = await self._call("POST", path, body, seconds)
        try:
            return _JSON.validate_json(answer)
        except ValidationError:
            return answer.decode(errors="replace")

    async def ping(self, path: str, *, seconds: float = CONTROL_SECONDS) -> None:
        """Whatever it says, as long as it says it is well."""
        await self._call("GET", path, None, seconds)

    async def ask(self, path: str, body: dict[str, Any], shape: TypeAdapter[Answer], *, seconds: float) -> Answer:
        """The answer in its shape. Raises Fault for any other shape."""
        content = await self._call("POST", path, body, seconds)
        try:
            return shape.validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise Fault(f"{self.url}{path} answered with something else: {where}: {first['msg']}") from error

    async def _call(self, method: str, path: str, body: dict[str, Any] | None, seconds: float) -> bytes:
        where = f"{method} {self.url}{path}"
        try:
            async with (
                asyncio.timeout(seconds),
                self._session.request(
                    method, self.url + path, json=body, headers=self._headers, allow_redirects=False
                ) as response,
            ):
                content = await _whole(response, where)
        except TimeoutError as error:
            raise Unreachable(f"{where}: no answer in {seconds:g} s") from error
        except aiohttp.ClientConnectorDNSError as error:
            raise NotConnected(f"{where}: {error.host} is no name that anybody knows: {error.strerror}") from error
        except aiohttp.ClientConnectorError as error:
            raise NotConnected(f"{where}: {os.strerror(error.os_error.errno or 0).lower()}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{where}: {error or type(error).__name__}") from error
        if response.status < 300:
            return content
        said = f"{where}: {response.status} {_message(content)}"
        match response.status:
            case 429 | 503:
                raise Overloaded(said)
            case 400 | 413 | 422:
                raise Refusal(said)
            case 404 | 405:  # a fault: so answers a server that lost its model in a restart, too
                raise Missing(said)
            case _:
                raise Fault(said)


async def _whole(response: aiohttp.ClientResponse, where: str) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_chunked(CHUNK):
        content += chunk
        if len(content) > MOST_BYTES:
            raise Fault(f"{where}: an answer of more than {MOST_BYTES >> 20} MiB")
    return bytes(content)


def _json(content: bytes, where: str) -> Any:
    try:
        return _JSON.validate_json(content)
    except ValidationError as error:
        raise Missing(f"{where} answered with no JSON") from error


def _message(content: bytes) -> str:
    """The server's own words, however it wraps them."""
    try:
        document = _JSON.validate_json(content)
    except ValidationError:
        return content[:300].decode(errors="replace")
    while isinstance(document, dict):
        document = next((document[key] for key in ("error", "message", "detail") if key in document), str(document))
    return str(document)[:300]
