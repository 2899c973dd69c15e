"""Which engine serves which policy."""

from collections.abc import Callable

from service.checkpoints import Checkpoint, same_architecture
from service.engines.base import Engine, WorkerView
from service.stages import EngineFailed


class EngineRoom:
    """One engine per policy, made when its first version is published."""

    def __init__(self, make: Callable[[str], Engine]) -> None:
        """`make` gives the engine of a policy, or refuses."""
        self._make = make
        self._engines: dict[str, Engine] = {}
        self._held: dict[str, Checkpoint] = {}

    async def publish(self, policy: str, checkpoint: Checkpoint, version: int) -> None:
        """Every request from now on meets this version. On failure nothing changes."""
        if policy in self._engines:
            same_architecture(checkpoint, self._held[policy])
            await self._engines[policy].load(checkpoint, version)
        else:
            self._engines[policy] = await self._open(policy, checkpoint, version)
        self._held[policy] = checkpoint

    async def _open(self, policy: str, checkpoint: Checkpoint, version: int) -> Engine:
        engine = self._make(policy)
        try:
            await engine.load(checkpoint, version)
        except BaseException:
            await engine.close()
            raise
        return engine

    def engine_of(self, policy: str) -> Engine:
        if policy not in self._engines:
            raise EngineFailed(f"policy {policy!r} is not loaded; POST /v1/policies publishes it")
        return self._engines[policy]

    def holds(self, policy: str) -> bool:
        """False for a policy whose checkpoint was gone when the service was started."""
        return policy in self._engines

    @property
    def window(self) -> int:
        """Completions that all engines together take at once."""
        return sum(worker.window for views in self.workers().values() for worker in views)

    def workers(self) -> dict[str, list[WorkerView]]:
        """Every worker, by policy."""
        return {policy: engine.workers() for policy, engine in sorted(self._engines.items())}

    async def close(self) -> None:
        for engine in self._engines.values():
            await engine.close()
