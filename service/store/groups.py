"""Visits, groups and their rollouts: what a run considered, what it got, and what failed.

- A visit is stored before its prompt is sampled; a sampled visit ends as exactly one group or one failure.
- A group and all its rollouts are one commit.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from curation.records import (
    Action,
    Completion,
    FinishReason,
    Group,
    GroupKind,
    Outcome,
    Rollout,
    Verdict,
    Visit,
    WeightSpan,
)
from curation.replay import Then
from curation.selectors.base import Seen
from service.run_config import Retain
from service.stages import NotFound
from service.store.duck import LISTED, Duck
from service.store.prompts import prompt_of
from service.store.transaction import Row, Transaction


@dataclass(frozen=True, slots=True)
class PlannedVisit:
    """A visit in its place: which job asked for it, in which step and round of the run."""

    run: str
    job: str
    step: int
    round: int
    visit: Visit
    rollouts: int | None = None
    """That a sampled prompt is to get; None for a skip."""


@dataclass(frozen=True, slots=True)
class StoredGroup:
    """A group with what sampling it took."""

    group: Group
    job: str
    policy: str
    temperature: float | None
    sampling_seconds: float
    verifying_seconds: float
    recorded_rewards_G: tuple[float | None, ...] = ()
    """Somebody else's labels, for imported rollouts that came with them."""

    @property
    def tokens(self) -> int:
        return sum(len(rollout.completion.token_ids_T) for rollout in self.group.rollouts_G)


def no_group(group_id: str) -> NotFound:
    return NotFound("group_not_found", f"there is no group {group_id!r}")


@dataclass(slots=True)
class Done:
    """Since the start."""

    kinds: Counter[GroupKind] = field(default_factory=Counter)
    """Of the groups that were stored."""
    rollouts: int = 0
    tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Groups that could not be had, by what failed."""


class Groups:
    def __init__(self, duck: Duck) -> None:
        self._duck = duck
        self.done = Done()

    async def plan(self, visits: Sequence[PlannedVisit], now: datetime) -> None:
        """Stores the decisions of a round, skips included."""
        await self._duck.write(lambda tx: add_visits(tx, visits, now))

    async def append(self, stored: StoredGroup, retain: Retain, now: datetime, *, patient: bool = False) -> None:
        """Returns once the group is on disk. A patient caller knows of more to come that could share the commit."""
        await self._duck.write(lambda tx: add_group(tx, stored, retain, now), patient=patient)
        self.done.kinds[stored.group.kind] += 1
        self.done.rollouts += len(stored.group.rollouts_G)
        self.done.tokens += stored.tokens

    async def fail(self, planned: PlannedVisit, stage: str, detail: str, now: datetime) -> None:
        row = {
            "run": planned.run,
            "prompt_id": planned.visit.prompt_id,
            "visit": planned.visit.visit,
            "job": planned.job,
            "stage": stage,
            "detail": detail[:2000],
            "failed_at": now,
        }
        await self._duck.write(lambda tx: tx.insert("failures", [row]))
        self.done.failures[stage] += 1

    async def seen(self, run: str) -> list[Seen]:
        """Every visit of a run, oldest first: what `RunState.replay` takes."""
        rows = await self._duck.read(
            """select v.prompt_id, v.epoch, v.step, v.round, v.action, g.rewards, g.policy_version
               from visits v left join judged_groups g using (run, prompt_id, visit) where v.run = ? order by v.seq""",
            [run],
        )
        return [
            Seen(
                row["prompt_id"],
                row["epoch"],
                row["step"],
                row["round"],
                Action(row["action"]),
                None if row["rewards"] is None else tuple(row["rewards"]),
                row["policy_version"],
            )
            for row in rows
        ]

    async def open_visits(self, job: str) -> list[Row]:
        """Sampled visits of a job that ended neither as a group nor as a failure: it was interrupted."""
        return await self._duck.read(
            """select v.* from visits v
               anti join groups g using (run, prompt_id, visit) anti join failures f using (run, prompt_id, visit)
               where v.job = ? and v.action = 'sampled' order by v.seq""",
            [job],
        )

    async def last_job(self, run: str) -> str | None:
        """The job of the run's latest visit."""
        rows = await self._duck.read("select job from visits where run = ? order by seq desc limit 1", [run])
        return str(rows[0]["job"]) if rows else None

    async def first_epoch(self, job: str) -> int | None:
        """The pass in which a job made its first visit."""
        [row] = await self._duck.read("select min(epoch) as epoch from visits where job = ?", [job])
        return None if row["epoch"] is None else int(row["epoch"])

    async def funnel(self, *, run: str | None = None, job: str | None = None) -> Row:
        """How far the visits of a run or a job got, as counts."""
        scope = {"run": run, "job": job}
        [visits] = await self._duck.read(FUNNEL_VISITS, scope)
        [groups] = await self._duck.read(FUNNEL_GROUPS, scope)
        [failures] = await self._duck.read(FUNNEL_FAILURES, scope)
        outcomes = await self._duck.read(FUNNEL_OUTCOMES, scope)
        return visits | groups | failures | {"outcomes": {row["outcome"]: int(row["n"]) for row in outcomes}}

    async def epochs(self, run: str) -> list[Row]:
        """What each pass over the prompt set considered, skipped and found, in order."""
        return await self._duck.read(EPOCHS, [run])

    async def page(self, *, run: str | None, informative: bool | None, after: int, limit: int) -> list[Row]:
        """Groups without their rollouts, in the order they were stored, those after sequence number `after`."""
        return await self._duck.read(
            """select * exclude (verdicts) from judged_groups where seq > $after and ($run is null or run = $run)
               and ($informative is null or (kind = 'informative') = $informative) order by seq limit $limit""",
            {"after": after, "run": run, "informative": informative, "limit": limit},
        )

    async def get(self, group_id: str) -> tuple[Row, list[Row]]:
        """A group's own row and those of its rollouts."""
        groups = await self._duck.read("select * from judged_groups where group_id = ?", [group_id])
        if not groups:
            raise no_group(group_id)
        rollouts = await self._duck.read("select * from rollouts where seq = ? order by idx", [groups[0]["seq"]])
        return groups[0], rollouts

    async def watermark(self, runs: Sequence[str]) -> int:
        """Sequence number of the newest group or rescore of these runs; 0 where there is none."""
        [row] = await self._duck.read(
            """select coalesce(max(seq), 0) as seq from (
               select seq from groups where list_contains($runs, run)
               union all select seq from rescores where list_contains($runs, run))""",
            {"runs": list(runs)},
        )
        return int(row["seq"])

    async def recorded(self, run: str) -> dict[str, list[Then]]:
        """The scored groups of each prompt of a run, in the order of their visits."""
        rows = await self._duck.read(
            """select prompt_id, list({rewards: rewards, version: nullif(policy_version, 0)} order by visit) as visits
               from judged_groups where run = ? and len(rewards) > 0 group by prompt_id order by prompt_id""",
            [run],
        )
        return {row["prompt_id"]: [Then(tuple(v["rewards"]), v["version"]) for v in row["visits"]] for row in rows}

    async def known_before(self, run: str, others: Sequence[str]) -> list[tuple[str, tuple[float, ...]]]:
        """(prompt, rewards) of every group that other runs had when this one was made, oldest first, as it was judged
        then."""
        rows = await self._duck.read(
            """with made as (select created_at as at from runs where run = $run)
               select g.prompt_id, coalesce(arg_max(r.rewards, r.seq), any_value(g.rewards)) as rewards
               from groups g cross join made
               left join rescores r on r.group_id = g.group_id and r.stored_at < made.at
               where list_contains($others, g.run) and g.stored_at < made.at
               group by g.group_id, g.prompt_id, g.seq order by g.seq""",
            {"run": run, "others": list(others)},
        )
        return [(row["prompt_id"], tuple(row["rewards"])) for row in rows]

    async def existing(self, group_ids: Sequence[str]) -> set[str]:
        """Those of these that are stored."""
        return {row["group_id"] for row in await self._duck.read(EXISTING, [list(group_ids)])}


IN_SCOPE = "($run is null or run = $run) and ($job is null or job = $job)"

FUNNEL_VISITS = f"""
select count(*) as considered,
       count(*) filter (where action = 'skipped_easy') as skipped_easy,
       count(*) filter (where action = 'skipped_hard') as skipped_hard,
       count(*) filter (where action = 'passed_over') as passed_over,
       count(*) filter (where action = 'sampled') as sampled
from visits where {IN_SCOPE}
"""

FUNNEL_GROUPS = f"""
select count(*) filter (where kind = 'easy') as easy, count(*) filter (where kind = 'hard') as hard,
       count(*) filter (where kind = 'informative') as informative,
       count(*) filter (where kind = 'unscored') as unscored,
       coalesce(sum(rollouts), 0)::bigint as rollouts, coalesce(sum(tokens), 0)::bigint as tokens,
       coalesce(sum(truncated), 0)::bigint as truncated
from judged_groups where {IN_SCOPE}
"""

FUNNEL_FAILURES = f"select count(*) as failed from failures where {IN_SCOPE}"

FUNNEL_OUTCOMES = f"""
select entry.key as outcome, sum(entry.value) as n
from (select unnest(map_entries(outcomes)) as entry from judged_groups where {IN_SCOPE}) group by 1 order by 1
"""

EPOCHS = """
select v.epoch, count(*) as considered,
       count(*) filter (where v.action = 'skipped_easy') as skipped_easy,
       count(*) filter (where v.action = 'skipped_hard') as skipped_hard,
       count(*) filter (where v.action = 'passed_over') as passed_over,
       count(*) filter (where g.kind = 'easy') as easy, count(*) filter (where g.kind = 'hard') as hard,
       count(*) filter (where g.kind = 'informative') as informative,
       coalesce(sum(g.tokens), 0)::bigint as tokens
from visits v left join judged_groups g using (run, prompt_id, visit)
where v.run = ? group by v.epoch order by v.epoch
"""

MEMBERS = """
list({text: text, token_ids: token_ids, logprobs: logprobs, finish_reason: finish_reason,
     weight_versions: weight_versions, outcome: outcome, reward: reward,
     verifier: verifier, detail: detail} order by idx)
"""
"""The rollouts of a group as one value: what `group_of` takes."""


EXISTING = f"select group_id from groups where group_id in {LISTED}"


def existing_groups(tx: Transaction, group_ids: Sequence[str]) -> set[str]:
    """`Groups.existing` inside a transaction."""
    return {group_id for (group_id,) in tx.rows(EXISTING, [list(group_ids)])}


def add_visits(tx: Transaction, visits: Sequence[PlannedVisit], now: datetime) -> None:
    tx.insert(
        "visits",
        (
            {
                "seq": tx.next_seq("visits"),
                "run": planned.run,
                "prompt_id": planned.visit.prompt_id,
                "visit": planned.visit.visit,
                "epoch": planned.visit.epoch,
                "step": planned.step,
                "round": planned.round,
                "job": planned.job,
                "action": planned.visit.decision.action.value,
                "keep_probability": planned.visit.decision.keep_probability,
                "reason": planned.visit.decision.reason,
                "decided_at": now,
                "rollouts": planned.rollouts,
            }
            for planned in visits
        ),
    )


def add_group(tx: Transaction, stored: StoredGroup, retain: Retain, now: datetime) -> None:
    group = stored.group
    kind = group.kind
    has_text = retain.keeps_text(kind)
    shared = {
        "seq": tx.next_seq("groups", "rescores"),
        "group_id": group.id,
        "run": group.run,
        "prompt_id": group.prompt.id,
        "policy": stored.policy,
        "policy_version": group.policy_version,
    }
    tx.insert(
        "groups",
        [
            {
                **shared,
                "visit": group.visit,
                "job": stored.job,
                "temperature": stored.temperature,
                "kind": kind.value,
                "rewards": list(group.rewards_G),
                "rollouts": len(group.rollouts_G),
                "tokens": stored.tokens,
                "outcomes": outcomes_of(group),
                "truncated": sum(r.truncated for r in group.rollouts_G),
                "sampling_seconds": stored.sampling_seconds,
                "verifying_seconds": stored.verifying_seconds,
                "stored_at": now,
                "has_text": has_text,
            }
        ],
    )
    recorded_G = stored.recorded_rewards_G or (None,) * len(group.rollouts_G)
    tx.insert(
        "rollouts",
        (
            {**shared, "idx": idx, "recorded_reward": recorded, **_rollout_row(rollout, has_text)}
            for idx, (rollout, recorded) in enumerate(zip(group.rollouts_G, recorded_G, strict=True))
        ),
    )


def outcomes_of(group: Group) -> list[tuple[str, int]]:
    """As a map column takes them."""
    return list(Counter(rollout.verdict.outcome.value for rollout in group.rollouts_G).items())


def _rollout_row(rollout: Rollout, has_text: bool) -> Row:
    completion, verdict = rollout.completion, rollout.verdict
    encoded = completion.text.encode(errors="surrogatepass")
    return {
        "text": completion.text if has_text else None,
        "token_ids": list(completion.token_ids_T) if has_text else None,
        "logprobs": list(completion.logprobs_T) if has_text else None,
        "tokens": len(completion.token_ids_T),
        "characters": len(completion.text),
        "bytes": len(encoded),
        "text_hash": text_hash(encoded),
        "logprob": _logprob_of(completion),
        "finish_reason": completion.finish_reason.value,
        "weight_versions": [
            {"version": span.version, "start": span.start, "end": span.end} for span in completion.weight_versions
        ],
        **verdict_row(verdict),
        **({} if has_text else {"detail": ""}),
    }


def _logprob_of(completion: Completion) -> float | None:
    """Of the whole completion; None unless it is known of every token."""
    is_known = completion.logprobs_T and len(completion.logprobs_T) == len(completion.token_ids_T)
    return math.fsum(completion.logprobs_T) if is_known else None


def text_hash(encoded: bytes) -> int:
    """What DuckDB calls ``md5_number_lower``: 64 bits that tell texts apart that are not kept."""
    return int.from_bytes(hashlib.md5(encoded, usedforsecurity=False).digest()[8:], "little")


def verdict_row(verdict: Verdict) -> Row:
    return {
        "outcome": verdict.outcome.value,
        "reward": verdict.reward,
        "verifier": verdict.verifier,
        "elapsed": verdict.elapsed,
        "detail": verdict.detail[:1000],
    }


def group_of(row: Row) -> Group:
    """From a row of its group, its prompt, its rollouts and, where it was judged anew, its verdicts."""
    rollouts_G = tuple(_rollout_of(rollout) for rollout in row["rollouts"])
    if row["verdicts"]:
        judged = zip(rollouts_G, row["verdicts"], strict=True)
        rollouts_G = tuple(Rollout(rollout.completion, _verdict_of(verdict)) for rollout, verdict in judged)
    return Group(
        id=row["group_id"],
        run=row["run"],
        prompt=prompt_of(row),
        visit=row["visit"],
        policy_version=row["policy_version"],
        rollouts_G=rollouts_G,
    )


def _rollout_of(row: dict[str, Any]) -> Rollout:
    completion = Completion(
        text=row["text"],
        token_ids_T=tuple(row["token_ids"]),
        logprobs_T=tuple(row["logprobs"]),
        finish_reason=FinishReason(row["finish_reason"]),
        weight_versions=tuple(WeightSpan(**span) for span in row["weight_versions"]),
    )
    return Rollout(completion, _verdict_of(row))


def _verdict_of(row: dict[str, Any]) -> Verdict:
    return Verdict(Outcome(row["outcome"]), row["reward"], row["verifier"], detail=row["detail"])
