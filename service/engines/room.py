"""Which engine serves which policy."""

from collections.abc import Callable
from pathlib import Path

from service.engines.base import Engine
from service.stages import EngineFailed


class EngineRoom:
    """One engine per policy, made when its first version is published."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._make = make
        self._engines: dict[str, Engine] = {}

    async def publish(self, policy: str, checkpoint: Path, version: int) -> None:
        """Every request from now on meets this version. On failure nothing changes."""
        engine = self._engines.get(policy)
        if engine is not None:
            await engine.load(checkpoint, version)
            return
        engine = self._make()
        try:
            await engine.load(checkpoint, version)
        except BaseException:
            await engine.close()
            raise
        self._engines[policy] = engine

    def engine_of(self, policy: str) -> Engine:
        if policy not in self._engines:
            raise EngineFailed(f"policy {policy!r} is not loaded; POST /v1/policies publishes it")
        return self._engines[policy]

    async def close(self) -> None:
        for engine in self._engines.values():
            await engine.close()
