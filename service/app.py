"""Composition root of the HTTP service. It imports everyone; only the command imports it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI

from service.api import (
    datasets,
    descriptions,
    errors,
    groups,
    health,
    jobs,
    keeping,
    leases,
    metrics,
    policies,
    prompts,
    replay,
    reports,
    runs,
    sql,
    workers,
)
from service.api.gate import Gate
from service.api.openapi import Described
from service.api.traffic import Traffic
from service.parts import Parts

ROUTES = (
    prompts,
    policies,
    workers,
    runs,
    jobs,
    groups,
    replay,
    leases,
    reports,
    descriptions,
    datasets,
    keeping,
    sql,
    health,
    metrics,
)
"""In this order: what `datasets` does not know by name it takes for a file."""


def create_app(open_parts: Callable[[], AbstractAsyncContextManager[Parts]]) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Parts]]:
        async with open_parts() as parts:
            yield {"parts": parts}

    app = Described(title="Rollout Refinery", version="1", lifespan=lifespan)
    app.state.traffic = Traffic()
    app.add_middleware(Gate, traffic=app.state.traffic)
    for module in ROUTES:
        app.include_router(module.router)
    errors.install(app)
    return app
