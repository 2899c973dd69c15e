"""How much stored groups can teach, added up where they lie: nothing is loaded for it."""

from collections.abc import Sequence

from service.store.duck import Duck
from service.store.transaction import Row

ORDER = "order by run nulls first, policy_version nulls first"


class Reports:
    def __init__(self, duck: Duck) -> None:
        self._duck = duck

    async def of_run(self, run: str) -> list[Row]:
        """The whole run first (no policy version), then each version, in order; nothing of a run without groups."""
        return await self._duck.read(f"select * from informativeness_of(null) where run = ? {ORDER}", [run])

    async def of_groups(self, group_ids: Sequence[str]) -> list[Row]:
        """All of the groups first (no run), then each run, then each policy version of it."""
        return await self._duck.read(f"select * from informativeness_of(?) {ORDER}", [list(group_ids)])

    async def rewards_by_version(self, run: str) -> dict[int, list[tuple[float, ...]]]:
        """Rewards of the scored groups of each policy version, in the order they were stored."""
        rows = await self._duck.read(
            """select policy_version, list(rewards order by seq) as groups from judged_groups
               where run = ? and len(rewards) > 0 group by policy_version order by policy_version""",
            [run],
        )
        return {row["policy_version"]: [tuple(rewards) for rewards in row["groups"]] for row in rows}
