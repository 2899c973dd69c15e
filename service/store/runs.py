"""Runs: a name for exactly one configuration."""

from datetime import datetime

from curation.keys import canonical_json
from service.run_config import RunConfig
from service.stages import Conflict, NotFound
from service.store.duck import Duck
from service.store.transaction import Transaction


class Runs:
    def __init__(self, duck: Duck) -> None:
        self._duck = duck

    async def add(self, run: RunConfig, now: datetime) -> bool:
        """True if the run is new, False if the very same one exists. Raises Conflict if it differs."""
        return await self._duck.write(lambda tx: add_run(tx, run, now))

    async def get(self, name: str) -> RunConfig:
        rows = await self._duck.read("select config from runs where run = ?", [name])
        if not rows:
            raise NotFound("run_not_found", f"there is no run {name!r}; POST /v1/runs makes one")
        return RunConfig.model_validate_json(rows[0]["config"])

    async def names(self) -> list[str]:
        return [row["run"] for row in await self._duck.read("select run from runs order by 1")]

    async def all(self) -> list[RunConfig]:
        rows = await self._duck.read("select config from runs order by created_at, run")
        return [RunConfig.model_validate_json(row["config"]) for row in rows]


def add_run(tx: Transaction, run: RunConfig, now: datetime) -> bool:
    """`Runs.add` inside a transaction that does more than that."""
    config = canonical_json(run.model_dump(mode="json"))
    stored = tx.rows("select config from runs where run = ?", [run.name])
    if stored and RunConfig.model_validate_json(stored[0][0]) != run:
        raise Conflict(
            "run_differs",
            f"run {run.name!r} exists with another configuration; a changed run needs a new name",
            existing=stored[0][0],
        )
    if not stored:
        tx.insert("runs", [{"run": run.name, "config": config, "created_at": now}])
    return not stored
