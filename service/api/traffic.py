"""What was asked of the service, counted and logged: one line a request, with who asked and how long it took.

Neither a number nor a line has what anybody sent: no query, no body, no header, of a path only how its route is
called.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import Message, Scope, Send

logger = logging.getLogger("service.requests")
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
UNKNOWN_ROUTE = UNKNOWN_METHOD = "unknown"
METHODS = {"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "TRACE", "CONNECT"}
"""Any other word is a method to HTTP, too: whoever sent a thousand of them would have a thousand time series."""
QUIET = {"/livez", "/readyz", "/metrics"}
"""Asked every few seconds by machines: logged only for debugging."""


@dataclass(slots=True)
class Exchange:
    """One request and its answer."""

    scope: Scope
    status: int = 0

    def answering(self, send: Send) -> Send:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
            await send(message)

        return answer

    @property
    def route(self) -> str:
        """As it is written in the API's description: names and ids are left out."""
        return getattr(self.scope.get("route"), "path", UNKNOWN_ROUTE)

    @property
    def method(self) -> str:
        method: str = self.scope["method"]
        return method if method in METHODS else UNKNOWN_METHOD


class Traffic:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        route = ("method", "route")
        self._answered = Counter(
            "refinery_http_requests", "Requests answered.", (*route, "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "refinery_http_request_seconds",
            "From a request's head to the end of its answer.",
            route,
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._at_once = Gauge("refinery_http_requests_in_flight", "Requests being answered.", registry=self.registry)
        self.at_once = 0

    @contextmanager
    def exchange(self, scope: Scope) -> Iterator[Exchange]:
        one = Exchange(scope)
        began = time.monotonic()
        self.at_once += 1
        self._at_once.set(self.at_once)
        try:
            yield one
        finally:
            self.at_once -= 1
            self._at_once.set(self.at_once)
            self._tell(one, time.monotonic() - began)

    def _tell(self, one: Exchange, seconds: float) -> None:
        self._answered.labels(one.method, one.route, one.status).inc()
        self._seconds.labels(one.method, one.route).observe(seconds)
        caller = one.scope["state"].get("caller")
        told = {
            "method": one.method,
            "route": one.route,
            "status": one.status,
            "seconds": round(seconds, 4),
            "caller": caller.name if caller else None,
        }
        level = logging.DEBUG if one.route in QUIET and one.status < 500 else logging.INFO
        logger.log(level, "%s %s %s", one.method, one.route, one.status, extra=told)
