"""Before any route: whoever asks is known, asks in its own name, and brings no more than there is room for.

- A body that is too large, or for which there is no room, is refused before it is read to its end.
- What a browser sends because of another site's page is refused: where no key is asked for, the browser's owner is an
  operator.
"""

import asyncio
import base64
import binascii
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Self
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access import OPERATOR, Caller, Keyring, KeysUnreadable, is_loopback
from service.api.errors import Ambiguous, Closing, TooLarge, TooSlow, answer_to, unforeseen
from service.api.traffic import Traffic
from service.parts import Parts
from service.settings import Settings
from service.shares import Shares
from service.stages import Busy, Forbidden, Overloaded, Refused, StageError, Unknown

logger = logging.getLogger(__name__)
ROWS = {"/v1/prompts", "/v1/rollouts/import"}
"""What may bring `body_mib`."""
SMALL_BODY = 4 << 20
FREE_BODY = 64 << 10
"""What waits for no room: as many as there may be requests at once are little together."""
OPEN = {"/livez", "/readyz", "/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"}
"""What needs no key: nothing that is stored is told there."""
MOST_REQUESTS, MOST_OF_ONE = 1000, 500
"""At once, of all and of one caller; more are told to come again."""
ROOM_SECONDS = 10.0
"""That a body waits for room."""
STALLED_SECONDS, SLOWEST = 60.0, 64 << 10
"""That a body may take, and a second more for so many bytes that came of it."""
PLAIN = "identity"
"""The coding of a body that is not packed."""
SAFETY = {"x-content-type-options": "nosniff", "content-security-policy": "frame-ancestors 'none'"}


class Gate:
    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self._app = app
        self._traffic = traffic
        self._at_once: Counter[str] = Counter()
        """Requests by caller."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no such routes, and nobody would be asked for a key
            await send({"type": "websocket.close", "code": 1008})
            return
        with self._traffic.exchange(scope) as exchange:
            answering = exchange.answering(send)
            try:
                await self._let_in(scope, receive, answering)
            except asyncio.CancelledError:  # by the server, which is told to end and has waited for a while
                if not exchange.status:
                    detail = "the service is being closed: send this again in a moment"
                    await answer_to(Closing("closing", detail, retry_after=1))(scope, receive, _safely(answering))
            except Exception as error:
                if not exchange.status:
                    await unforeseen(error)(scope, receive, _safely(answering))
                raise  # for the log

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts: Parts = scope["state"]["parts"]
        headers = Headers(scope=scope)
        try:
            if self._traffic.at_once > MOST_REQUESTS:
                raise Overloaded("too_many_requests", f"{MOST_REQUESTS} requests are being answered", retry_after=1)
            refuse_two_lengths(headers)
            refuse_other_pages(scope["method"], headers)
            caller = scope["state"]["caller"] = caller_of(scope["path"], headers, parts.keyring, parts.settings)
            name = caller.name if caller else ""
            with self._one_more(name):
                rows = parts.settings.body_mib << 20 if scope["path"] in ROWS else 0
                with Body(headers, receive, rows or SMALL_BODY, rows, parts.bodies, name) as body:
                    scope["state"]["body"] = body
                    await self._app(scope, body.receive, body.answering(scope, send))
        except (Refused, StageError) as refusal:
            await answer_to(refusal)(scope, receive, _safely(send))

    @contextmanager
    def _one_more(self, caller: str) -> Iterator[None]:
        if self._at_once[caller] >= MOST_OF_ONE:
            raise Busy("too_many_requests", f"{MOST_OF_ONE} requests of yours are being answered", retry_after=1)
        self._at_once[caller] += 1
        try:
            yield
        finally:
            self._at_once[caller] -= 1
            if not self._at_once[caller]:
                del self._at_once[caller]


def caller_of(path: str, headers: Mapping[str, str], keyring: Keyring, settings: Settings) -> Caller | None:
    """None for nobody we know, where that does not matter. Raises Unknown, Forbidden and KeysUnreadable."""
    try:
        return _caller(headers, keyring, settings)
    except KeysUnreadable as failure:
        if path in OPEN:
            return None
        logger.error("%s", failure)  # which names a folder of this machine
        raise KeysUnreadable("the keys cannot be read, so nobody is let in; the service's log has the reason") from None
    except Refused:
        if path in OPEN:
            return None
        raise


def _caller(headers: Mapping[str, str], keyring: Keyring, settings: Settings) -> Caller:
    if keyring.keys is None and (is_loopback(settings.host) or settings.unsafe_no_keys):
        _refuse_other_names(headers.get("host", ""), settings)
        return OPERATOR
    token = _token(headers.get("authorization", ""))
    if not token:
        raise Unknown("key_missing", "this service asks for a key: send Authorization: Bearer KEY")
    caller = keyring.caller(token)
    if caller is None:
        raise Unknown("key_unknown", "this is no key of this service, or its time is over: ask its operator for one")
    return caller


def _token(authorization: str) -> str:
    """Of a bearer; or a password, because readers of plain URLs know nothing else (``http://x:KEY@host``)."""
    scheme, _, told = authorization.partition(" ")
    match scheme.lower():
        case "bearer":
            return told.strip()
        case "basic":
            try:
                return base64.b64decode(told, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return ""
        case _:
            return ""


def refuse_two_lengths(headers: Mapping[str, str]) -> None:
    """Raises Ambiguous for a body that ends at two places (RFC 9112, 6.1)."""
    if "content-length" in headers and "transfer-encoding" in headers:
        raise Ambiguous("two_lengths", "the body has a Content-Length and a Transfer-Encoding: send one of them")


def refuse_other_pages(method: str, headers: Mapping[str, str]) -> None:
    """Raises Forbidden for what a browser does for a page of another site, but for following a link."""
    site = headers.get("sec-fetch-site")
    if site in {"cross-site", "same-site"}:
        if method == "GET" and headers.get("sec-fetch-mode") == "navigate":
            return
        raise Forbidden("cross_site", "a page of another site sent this")
    origin = headers.get("origin")
    if site is None and origin is not None and origin.partition("//")[2] != headers.get("host"):
        raise Forbidden("cross_site", f"a page of {origin} sent this")


def _refuse_other_names(host: str, settings: Settings) -> None:
    """Raises Forbidden where a browser may have been told that a name of somebody's is this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = host
    if name in {"localhost", settings.host, *settings.allow_host}:
        return
    try:
        ip_address(name)
    except ValueError:
        detail = f"this service is not known as {name!r}: start it with --allow-host {name}, or give it keys"
        raise Forbidden("unknown_host", detail) from None


def coding_of(headers: Mapping[str, str]) -> str:
    """How a body is packed."""
    return headers.get("content-encoding", PLAIN).strip().lower()


def too_large(limit_bytes: int) -> TooLarge:
    return TooLarge("body_too_large", f"the body is larger than {limit_bytes >> 20} MiB; send it in parts")


class Body:
    """Of one request, as it comes in; and the answer, which is a refusal if the body was refused."""

    def __init__(
        self, headers: Mapping[str, str], receive: Receive, limit: int, unpacked: int, room: Shares, sender: str
    ) -> None:
        """Of `limit` bytes at most; and if it is packed, of `unpacked` ones after that."""
        self._receive = receive
        self._limit, self._room, self._sender = limit, room, sender
        self._unpacked = 0 if coding_of(headers) == PLAIN else unpacked
        self.held = self._size = 0
        self._began: float | None = None
        self._is_whole = self._is_answered = False
        self._refusal: Refused | None = None
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise too_large(limit)
        # Room for all of it at once: two that grow in turn would wait for each other.
        wanted = self._unpacked + (limit if "transfer-encoding" in headers else int(length or 0))
        self._wanted = wanted if wanted > FREE_BODY else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go(self.held)

    def let_go(self, size: int) -> None:
        """Of the room that it has until the request is answered."""
        self._room.give(self._sender, size)
        self.held -= size

    async def receive(self) -> Message:
        if self._is_whole or self._is_answered:
            return await self._receive()
        try:
            if self._began is None:
                await self._take(self._wanted)
                self._began = asyncio.get_running_loop().time()
            return await self._next(self._began + STALLED_SECONDS + self._size / SLOWEST)
        except Refused as refusal:
            self._refusal = refusal
            raise

    async def _take(self, size: int) -> None:
        """Raises Overloaded where there is no room for too long."""
        if not size:
            return
        try:
            async with asyncio.timeout(ROOM_SECONDS):
                await self._room.take(self._sender, size)
        except TimeoutError:
            detail = f"bodies of {self._room.held >> 20} MiB are being read: send this again in a moment"
            raise Overloaded("no_room", detail, retry_after=5) from None
        self.held += size

    async def _next(self, deadline: float) -> Message:
        try:
            async with asyncio.timeout_at(deadline):
                message = await self._receive()
        except TimeoutError:
            raise TooSlow("body_too_slow", f"the body comes slower than {SLOWEST >> 10} KiB a second") from None
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            if self._size > self._limit:
                raise too_large(self._limit)
            self._is_whole = not message.get("more_body", False)
            if self._is_whole and self.held:
                self.let_go(self.held - self._size - self._unpacked)
        return message

    def answering(self, scope: Scope, send: Send) -> Send:
        safely = _safely(send)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and not self._is_answered:
                self._is_answered = True
                if self._refusal:  # whatever the route makes of a body that broke off
                    await answer_to(self._refusal)(scope, self._receive, safely)
            if not self._refusal:
                await safely(message)

        return answer


def _safely(send: Send) -> Send:
    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            told = [(name.encode(), value.encode()) for name, value in SAFETY.items()]
            message = {**message, "headers": [*message["headers"], *told]}
        await send(message)

    return answer
