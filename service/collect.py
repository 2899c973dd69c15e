"""One visit: sample the prompt, verify the completions, store the group."""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from curation.keys import digest, seed_for
from curation.records import Group, Prompt, Rollout, Verdict
from service.engines.base import Engine
from service.run_config import RunConfig
from service.stages import EngineFailed, StoreFailed, stage
from service.store.groups import PlannedVisit, StoredGroup


class Verify(Protocol):
    async def __call__(self, prompt: Prompt, texts: Sequence[str]) -> list[Verdict]:
        """One verdict per text, in their order."""


Append = Callable[[StoredGroup], Awaitable[None]]
"""Returns once the group is on disk."""


async def collect(
    planned: PlannedVisit, prompt: Prompt, run: RunConfig, *, engine: Engine, verify: Verify, append: Append
) -> StoredGroup:
    """The group of this visit, after it was committed. Raises the StageError of the stage that failed."""
    visit = planned.visit
    seeds = [seed_for(run.seed, "rollout", prompt.id, visit.visit, slot) for slot in range(run.sampling.n)]

    started = time.monotonic()
    with stage(EngineFailed, f"sampling prompt {prompt.id}"):
        sampled = await engine.sample(prompt.text, run.sampling, seeds)
    sampling_seconds = time.monotonic() - started

    verdicts = await verify(prompt, [completion.text for completion in sampled.completions_G])
    rollouts = tuple(map(Rollout, sampled.completions_G, verdicts))
    group_id = "g_" + digest(run.name, prompt.id, visit.visit)
    group = Group(group_id, run.name, prompt, visit.visit, sampled.policy_version, rollouts)

    stored = StoredGroup(
        group,
        job=planned.job,
        policy=run.policy,
        temperature=run.sampling.temperature,
        sampling_seconds=sampling_seconds,
        verifying_seconds=sum(verdict.elapsed for verdict in verdicts),
    )
    with stage(StoreFailed, f"storing group {group_id}"):
        await append(stored)
    return stored
