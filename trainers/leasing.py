"""What an online trainer learns from: groups leased step by step, acknowledged once the optimizer has made the step.

- A lease belongs to a step of a run. A trainer that was killed asks for the same step again and gets the same groups,
  whether they were acknowledged or not: it loses nothing and trains on nothing twice.
- One process asks; all processes of a trainer get the same rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainers.client import Json
from trainers.evaluation import Evaluation
from trainers.learning import Unfit, by_one, identity, reached


@dataclass(frozen=True, slots=True)
class Supply:
    """Where groups come from."""

    service: str
    run: str
    recipe: Json
    """What a row is and which rollouts stay: down-sampling for groups, a rule for pairs."""
    max_staleness: int | None = 0
    """Versions that the policy may have moved on since a group was sampled."""
    ahead: int = 0
    """Groups that the service has ready beyond those of the step."""
    seconds: float = 3600.0
    """Until groups that were neither acknowledged nor asked for again go to another trainer of the same name."""


@dataclass(slots=True)
class Leases(TrainerCallback):
    """The leases of a run of a trainer: no other run gets these, under whatever folder it was told to write to."""

    supply: Supply
    out: Path
    """Folder of the run."""
    _open: list[Json] = field(default_factory=list)

    def rows(self, trainer: Trainer, groups: int, part: str = "") -> list[Json]:
        """Of the trainer's next step, or of a part of it: as many groups, sampled now where they are not there yet."""
        return by_one(lambda: self._rows(groups, f"step {trainer.state.global_step}{part}"))

    def _rows(self, groups: int, key: str) -> list[Json]:
        supply = self.supply
        with reached(supply.service) as refinery:
            lease = refinery.lease(
                supply.run,
                groups,
                key=key,
                consumer=identity(self.out),
                recipe=supply.recipe,
                max_staleness=supply.max_staleness,
                ahead=supply.ahead,
                seconds=supply.seconds,
                sample=True,
            )
        self._open.append(lease)
        rows: list[Json] = lease["rows"]
        return rows

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        by_one(self._acknowledge)

    def _acknowledge(self) -> None:
        if self._open:
            with reached(self.supply.service) as refinery:
                for lease in self._open:
                    refinery.acknowledge(lease)
        self._open.clear()


def check_sync(
    sync_every: int, max_staleness: int | None, ahead: int, evaluation: Evaluation | None, policy: str
) -> None:
    """Raises Unfit for options that work against each other."""
    if ahead and max_staleness == 0 and sync_every == 1:
        raise Unfit("what is sampled ahead is stale as soon as weights are published: allow --max-staleness 1 at least")
    if evaluation and evaluation.policy == policy and (not sync_every or evaluation.every % sync_every):
        raise Unfit(
            f"an evaluation publishes what it measures: as {policy!r}, which groups are sampled from, it can only be "
            f"every --sync-every steps or a multiple of it, and --evaluate-every is {evaluation.every}"
        )


def share(rows: Sequence[Any], trainer: Trainer) -> list[Any]:
    """Those that this process works on: an equal part, in order."""
    accelerator = trainer.accelerator
    size = len(rows) // accelerator.num_processes
    return list(rows[accelerator.process_index * size : (accelerator.process_index + 1) * size])
