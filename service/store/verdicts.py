"""Rescores: verdicts that were reached after a group was stored, beside the ones it was stored with.

- One row holds the verdicts of a whole group; the newest row of a group is what counts.
- Rows are numbered together with the groups, so that one watermark says how much of both somebody saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from curation.records import Group, Outcome
from service.store.duck import Duck
from service.store.groups import MEMBERS, group_of, outcomes_of, verdict_row
from service.store.transaction import Row, Transaction


@dataclass(frozen=True, slots=True)
class ToRescore:
    with_text: list[str]
    """Group ids, in the order they were stored."""
    without_text: int


class Verdicts:
    def __init__(self, duck: Duck) -> None:
        self._duck = duck

    async def to_rescore(
        self,
        run: str,
        job: str,
        *,
        prompts: Sequence[str] | None,
        outcomes: Sequence[Outcome] | None,
        verifier: str | None,
    ) -> ToRescore:
        """The groups of a run that fit, as they are judged now, but for those that the job has done."""
        scope = {
            "run": run,
            "job": job,
            "prompts": None if prompts is None else list(prompts),
            "outcomes": None if outcomes is None else [outcome.value for outcome in outcomes],
            "verifier": verifier,
        }
        rows = await self._duck.read(TO_RESCORE, scope)
        return ToRescore([r["group_id"] for r in rows if r["has_text"]], sum(not r["has_text"] for r in rows))

    async def before(self, job: str, group_ids: Sequence[str]) -> list[Group]:
        """Groups as they were judged before this job, in the order of the ids."""
        return await self._groups(job, group_ids, by_job=False)

    async def after(self, job: str, group_ids: Sequence[str]) -> list[Group]:
        """Groups as this job judged them, in the order of the ids."""
        return await self._groups(job, group_ids, by_job=True)

    async def done(self, job: str) -> list[str]:
        """Ids of the groups that the job has judged, oldest first."""
        rows = await self._duck.read("select group_id from rescores where job = ? order by seq", [job])
        return [row["group_id"] for row in rows]

    async def append(self, job: str, judged: Sequence[Group], now: datetime) -> None:
        """Returns once the new verdicts of all these groups are on disk, in one commit."""
        await self._duck.write(lambda tx: _add(tx, job, judged, now))

    async def of_group(self, group_id: str) -> list[Row]:
        """Every rescore of a group, oldest first."""
        return await self._duck.read(
            "select job, verdicts, stored_at from rescores where group_id = ? order by seq", [group_id]
        )

    async def _groups(self, job: str, group_ids: Sequence[str], *, by_job: bool) -> list[Group]:
        rows = await self._duck.read(GROUPS, {"ids": list(group_ids), "job": job, "by_job": by_job})
        found = {row["group_id"]: group_of(row) for row in rows}
        return [found[group_id] for group_id in group_ids]


def _add(tx: Transaction, job: str, judged: Sequence[Group], now: datetime) -> None:
    tx.insert(
        "rescores",
        [
            {
                "seq": tx.next_seq("groups", "rescores"),
                "group_id": group.id,
                "run": group.run,
                "job": job,
                "kind": group.kind.value,
                "rewards": list(group.rewards_G),
                "outcomes": outcomes_of(group),
                "verdicts": [verdict_row(rollout.verdict) for rollout in group.rollouts_G],
                "stored_at": now,
            }
            for group in judged
        ],
    )


TO_RESCORE = """
select g.group_id, g.has_text
from judged_groups g join (select seq, verifier from rollouts where idx = 0) r using (seq)
where g.run = $run
  and g.group_id not in (select group_id from rescores where job = $job)
  and ($prompts is null or g.prompt_id in (select unnest($prompts::varchar[])))
  and ($outcomes is null or len(list_intersect(map_keys(g.outcomes), $outcomes)) > 0)
  and ($verifier is null or coalesce(g.verdicts[1].verifier, r.verifier) = $verifier)
order by g.seq
"""

GROUPS = f"""
with chosen as (select * from groups where list_contains($ids, group_id))
select g.group_id, g.run, g.visit, g.policy_version, s.verdicts,
       p.prompt_id, p.text, p.reference, p.verifier, p.metadata, r.rollouts
from chosen g
join prompts p using (prompt_id)
join (select seq, {MEMBERS} as rollouts
      from rollouts where seq in (select seq from chosen) group by seq) r using (seq)
left join (select group_id, arg_max(verdicts, seq) as verdicts from rescores
           where list_contains($ids, group_id) and (job = $job) = $by_job group by group_id) s using (group_id)
"""
