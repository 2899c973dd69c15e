"""Recorded rollouts become groups of a run, judged by our own verifiers or as their recorder did.

- One call is one commit: either all of its groups are stored or none.
- A group is known by its content, so importing the same file twice adds nothing the second time.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from curation.keys import canonical_json, digest, prompt_id
from curation.recorded import RECORDED, GroupIn, RolloutIn
from curation.records import (
    Action,
    Completion,
    Decision,
    Group,
    Outcome,
    Prompt,
    Rollout,
    Verdict,
    Visit,
)
from service.collect import Verify
from service.run_config import Retain, RunConfig
from service.store.duck import Duck
from service.store.groups import Groups, PlannedVisit, StoredGroup, add_group, add_visits, existing_groups
from service.store.prompts import add_prompts
from service.store.runs import add_run
from service.store.transaction import Transaction

ELSEWHERE = Decision(Action.SAMPLED, 1.0, "recorded elsewhere")
JOB = "import"
JUDGED_AT_ONCE = 1024
"""Groups of one call: a task for each of a million would take gigabytes."""
AS_RECORDED = f"{RECORDED}@1"


@dataclass(frozen=True, slots=True)
class Imported:
    """What one call did."""

    groups: int
    existing: int
    """Groups that were there already."""
    prompts: int
    """Prompts new to the prompt set."""
    rollouts: int
    kinds: dict[str, int]
    """Groups by kind."""
    outcomes: dict[str, int]
    """Rollouts by outcome."""
    labelled: int
    """Rollouts that came with a label and got a reward from one of our verifiers."""
    agreeing: int
    """Those of them where both are above one half, or both are not."""


async def import_groups(
    rows: Sequence[GroupIn], run_name: str, *, verify: Verify, duck: Duck, groups: Groups, now: Callable[[], datetime]
) -> Imported:
    """Verifies and stores the groups under the run, which is made if there are any and it does not exist."""
    if not rows:
        return _summary([], existing=0, prompts=0)
    run = RunConfig(name=run_name, policy="recorded", prompt_set=run_name, retain=Retain.ALL, imported=True)
    prompts = {i: prompt_of(row) for i, row in enumerate(rows)}
    ids = [_group_id(run_name, prompts[i], row) for i, row in enumerate(rows)]
    known = await groups.existing(ids)
    first = {group_id: i for i, group_id in reversed(list(enumerate(ids)))}
    fresh = [i for i, group_id in enumerate(ids) if group_id not in known and first[group_id] == i]
    judged: list[tuple[Rollout, ...]] = []
    while len(judged) < len(fresh):
        part = fresh[len(judged) : len(judged) + JUDGED_AT_ONCE]
        judged += await asyncio.gather(*(_judge(prompts[i], rows[i], run_name, verify) for i in part))

    def commit(tx: Transaction) -> tuple[int, list[StoredGroup]]:
        # Whoever imported the same while these were judged has already stored them.
        meanwhile = existing_groups(tx, ids)
        add_run(tx, run, now())
        added = add_prompts(tx, [prompts[i] for i in fresh], run.prompt_set, now()).added
        stored = []
        next_visit = _visits_so_far(tx, run_name)
        for i, rollouts_G in zip(fresh, judged, strict=True):
            if ids[i] in meanwhile:
                continue
            visit = Visit(prompts[i].id, next_visit[prompts[i].id], 0, ELSEWHERE)
            next_visit[prompts[i].id] += 1
            group = Group(ids[i], run_name, prompts[i], visit.visit, rows[i].policy_version, rollouts_G)
            labels = tuple(rollout.reward for rollout in rows[i].rollouts)
            add_visits(tx, [PlannedVisit(run_name, JOB, 0, 0, visit)], now())
            stored.append(StoredGroup(group, JOB, run.policy, None, 0.0, _seconds(group), labels))
            add_group(tx, stored[-1], run.retain, now())
        return added, stored

    added, stored = await duck.write(commit)
    return _summary(stored, existing=len(rows) - len(stored), prompts=added)


def prompt_of(row: GroupIn) -> Prompt:
    identity = prompt_id(row.prompt, row.reference, row.verifier, row.metadata)
    return Prompt(identity, row.prompt, row.reference, row.verifier, row.metadata)


def _group_id(run: str, prompt: Prompt, row: GroupIn) -> str:
    recorded = [rollout.model_dump(mode="json") for rollout in row.rollouts]
    version = [row.policy_version] if row.policy_version else []
    return "g_" + digest(run, JOB, prompt.id, canonical_json(recorded), *version)


async def _judge(prompt: Prompt, row: GroupIn, run: str, verify: Verify) -> tuple[Rollout, ...]:
    if row.verifier == RECORDED:
        verdicts = [_as_recorded(rollout.reward) for rollout in row.rollouts]
    else:
        verdicts = await verify(prompt, [rollout.text for rollout in row.rollouts], run)
    return tuple(Rollout(_completion(r), verdict) for r, verdict in zip(row.rollouts, verdicts, strict=True))


def _as_recorded(reward: float | None) -> Verdict:
    if reward is None:
        return Verdict(Outcome.ERROR, None, AS_RECORDED, detail="it came without a label")
    return Verdict(Outcome.SCORED, reward, AS_RECORDED)


def _completion(rollout: RolloutIn) -> Completion:
    return Completion(rollout.text, rollout.token_ids, rollout.logprobs)


def _visits_so_far(tx: Transaction, run: str) -> Counter[str]:
    return Counter(dict(tx.rows("select prompt_id, count(*) from visits where run = ? group by 1", [run])))


def _seconds(group: Group) -> float:
    return sum(rollout.verdict.elapsed for rollout in group.rollouts_G)


def _summary(stored: Sequence[StoredGroup], *, existing: int, prompts: int) -> Imported:
    rollouts = [rollout for group in stored for rollout in group.group.rollouts_G]
    both = [
        (rollout.reward, label)
        for group in stored
        if group.group.prompt.verifier != RECORDED
        for rollout, label in zip(group.group.rollouts_G, group.recorded_rewards_G, strict=True)
        if rollout.reward is not None and label is not None
    ]
    return Imported(
        groups=len(stored),
        existing=existing,
        prompts=prompts,
        rollouts=len(rollouts),
        kinds=_counts(group.group.kind.value for group in stored),
        outcomes=_counts(rollout.verdict.outcome.value for rollout in rollouts),
        labelled=len(both),
        agreeing=sum((reward > 0.5) == (label > 0.5) for reward, label in both),
    )


def _counts(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))
