"""A rescore job: new verdicts beside the old ones, for the stored groups of a run.

- Old verdicts stay. The newest of a group count in history, statistics and datasets; a recipe may name others.
- A group is judged anew as a whole, in one commit; an interrupted job goes on with the groups it has not done.
- A group whose text retention dropped cannot be judged anew, and is counted.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from pydantic import Field

from curation.changes import Changes
from curation.choice import Choice, Several
from curation.recorded import RECORDED
from curation.records import Group, Outcome, Rollout, Verdict
from service.collect import Verify
from service.jobs import Cancelled, Job
from service.store.verdicts import Verdicts

AT_ONCE = 64
"""Groups that are judged between two looks at whether to stop."""


class Where(Choice):
    """Which groups: those that fit everything given."""

    prompts: Several[str] | None = Field(None, min_length=1, max_length=100_000)
    outcomes: Several[Outcome] | None = Field(None, min_length=1)
    """Groups with a rollout that ended so, as it is judged now."""
    verifier: str | None = None
    """Groups with a verdict of this label, ``math@1``, as they are judged now."""


class RescoreRequest(Choice):
    verifier: str | None = None
    """Judges instead of the verifiers that the prompts name; those by default, at today's revision."""
    where: Where = Where()


async def rescore(
    job: Job,
    *,
    verify: Verify,
    verdicts: Verdicts,
    now: Callable[[], datetime],
) -> dict[str, Any]:
    """Judges every group that the request selects; returns what changed."""
    request = RescoreRequest.model_validate(job.request)
    wanted = await verdicts.to_rescore(job.run, job.id, **dict(request.where))
    changes = Changes()
    done = await verdicts.done(job.id)  # before an interruption
    for part in _parts(done):
        changes.add_all(await verdicts.before(job.id, part), await verdicts.after(job.id, part))
    as_recorded = 0
    for part in _parts(wanted.with_text):
        job.progress = {"groups": {"all": len(done) + len(wanted.with_text), "done": changes.groups + as_recorded}}
        if job.cancel_requested:
            raise Cancelled(changes.report() | {"without_text": wanted.without_text, "as_recorded": as_recorded})
        groups = await verdicts.before(job.id, part)
        if request.verifier is None:  # what a recorder said can only be said by the recorder
            groups = [group for group in groups if group.prompt.verifier != RECORDED]
            as_recorded += len(part) - len(groups)
        judged = await asyncio.gather(*(_judge(group, request.verifier, verify) for group in groups))
        await verdicts.append(job.id, judged, now())
        changes.add_all(groups, judged)
    return changes.report() | {"without_text": wanted.without_text, "as_recorded": as_recorded}


def _parts(group_ids: list[str]) -> Iterator[list[str]]:
    return (group_ids[start : start + AT_ONCE] for start in range(0, len(group_ids), AT_ONCE))


async def _judge(group: Group, verifier: str | None, verify: Verify) -> Group:
    prompt = replace(group.prompt, verifier=verifier) if verifier else group.prompt
    verdicts = await verify(prompt, [rollout.text for rollout in group.rollouts_G], group.run)
    return replace(group, rollouts_G=_with(group.rollouts_G, verdicts))


def _with(rollouts_G: Sequence[Rollout], verdicts: Sequence[Verdict]) -> tuple[Rollout, ...]:
    return tuple(Rollout(r.completion, verdict) for r, verdict in zip(rollouts_G, verdicts, strict=True))
