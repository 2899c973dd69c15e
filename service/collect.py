"""One visit: sample the prompt, verify the completions, store the group.

Where the run probes, the rest is sampled only of prompts whose first rollouts disagree; the version of such a group is
that of its first rollouts, and every token has its own.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from curation.allocation import Probe
from curation.keys import digest, seed_for
from curation.records import Group, GroupKind, Prompt, Rollout, Verdict, kind_of
from service.engines.base import Engine
from service.logs import about
from service.run_config import RunConfig
from service.stages import EngineFailed, StoreFailed, stage
from service.store.groups import PlannedVisit, StoredGroup


class Verify(Protocol):
    async def __call__(self, prompt: Prompt, texts: Sequence[str], run: str) -> list[Verdict]:
        """One verdict per text, in their order; the run is the one whose turn it takes."""


Append = Callable[[StoredGroup], Awaitable[None]]
"""Returns once the group is on disk."""


async def collect(
    planned: PlannedVisit, prompt: Prompt, run: RunConfig, *, engine: Engine, verify: Verify, append: Append
) -> StoredGroup:
    """The group of this visit, after it was committed. Raises the StageError of the stage that failed."""
    visit = planned.visit
    group_id = "g_" + digest(run.name, prompt.id, visit.visit)
    size = planned.rollouts or run.sampling.n
    seeds = [seed_for(run.seed, "rollout", prompt.id, visit.visit, slot) for slot in range(size)]
    first = run.allocation.first if isinstance(run.allocation, Probe) else size

    with about(group=group_id):
        part = await _judged(seeds[:first], prompt, run, engine, verify)
        parts = [part]
        if first < size and part.is_informative:
            parts.append(await _judged(seeds[first:], prompt, run, engine, verify))
    rollouts = tuple(rollout for part in parts for rollout in part.rollouts)
    group = Group(group_id, run.name, prompt, visit.visit, parts[0].policy_version, rollouts)

    stored = StoredGroup(
        group,
        job=planned.job,
        policy=run.policy,
        temperature=run.sampling.temperature,
        sampling_seconds=sum(part.sampling_seconds for part in parts),
        verifying_seconds=sum(rollout.verdict.elapsed for rollout in rollouts),
    )
    with stage(StoreFailed, f"storing group {group_id}"):
        await append(stored)
    return stored


class _Part(NamedTuple):
    """Rollouts that were sampled together."""

    rollouts: list[Rollout]
    policy_version: int
    sampling_seconds: float

    @property
    def is_informative(self) -> bool:
        return kind_of([r.reward for r in self.rollouts if r.reward is not None]) is GroupKind.INFORMATIVE


async def _judged(seeds: Sequence[int], prompt: Prompt, run: RunConfig, engine: Engine, verify: Verify) -> _Part:
    started = time.monotonic()
    with stage(EngineFailed, f"sampling prompt {prompt.id}"):
        sampled = await engine.sample(prompt.text, run.sampling, seeds)
    seconds = time.monotonic() - started
    verdicts = await verify(prompt, [completion.text for completion in sampled.completions_G], run.name)
    return _Part(list(map(Rollout, sampled.completions_G, verdicts)), sampled.policy_version, seconds)
