"""Policies and their published versions. A row exists exactly for versions that went live."""

from dataclasses import dataclass
from datetime import datetime

from service.stages import Conflict, NotFound
from service.store.duck import Duck
from service.store.transaction import Transaction


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    policy: str
    version: int
    """Counted from 1."""
    checkpoint: str
    step: int | None
    """The trainer's step, if it told."""
    live_at: datetime


class Policies:
    def __init__(self, duck: Duck) -> None:
        self._duck = duck

    async def add(self, live: PolicyVersion) -> None:
        """Records a version that is live now. Versions count up by one, without gaps."""

        def operation(tx: Transaction) -> None:
            [(last,)] = tx.rows("select coalesce(max(version), 0) from policy_versions where policy = ?", [live.policy])
            if live.version != last + 1:
                raise Conflict("version_conflict", f"policy {live.policy} is at version {last}, not {live.version - 1}")
            tx.insert(
                "policy_versions",
                [
                    {
                        "policy": live.policy,
                        "version": live.version,
                        "checkpoint": live.checkpoint,
                        "step": live.step,
                        "live_at": live.live_at,
                    }
                ],
            )

        await self._duck.write(operation)

    async def names(self) -> list[str]:
        rows = await self._duck.read("select distinct policy from policy_versions order by 1")
        return [row["policy"] for row in rows]

    async def versions(self, policy: str) -> list[PolicyVersion]:
        """All versions, oldest first. Raises NotFound for a policy without any."""
        rows = await self._duck.read("select * from policy_versions where policy = ? order by version", [policy])
        if not rows:
            raise NotFound("policy_not_found", f"there is no policy {policy!r}; POST /v1/policies makes one")
        return [PolicyVersion(**row) for row in rows]
