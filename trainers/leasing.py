"""What an online trainer learns from: groups leased step by step, acknowledged once the optimizer has made the step.

- A lease belongs to a step of a run. A trainer that was killed asks for the same step again and gets the same groups,
  whether they were acknowledged or not: it loses nothing and trains on nothing twice.
- One process asks; all processes of a trainer get the same rows.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from curation.keys import digest
from trainers.client import Json, Refinery
from trainers.learning import Learning


@dataclass(frozen=True, slots=True)
class Supply:
    """Where groups come from."""

    service: str
    run: str
    consumer: str
    """Trainers that learn from one run under different names each get every group; under one name they share them."""
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
    """The leases of a trainer."""

    supply: Supply
    _open: list[Json] = field(default_factory=list)

    def rows(self, trainer: Trainer, groups: int, part: str = "") -> list[Json]:
        """Of the trainer's next step, or of a part of it: as many groups, sampled now where they are not there yet."""
        lease: Json | None = None
        if trainer.is_world_process_zero():
            lease = self._lease(groups, f"step {trainer.state.global_step}{part}")
            self._open.append(lease)
        [lease] = broadcast_object_list([lease])
        assert lease is not None
        rows: list[Json] = lease["rows"]
        return rows

    def _lease(self, groups: int, key: str) -> Json:
        supply = self.supply
        with Refinery(supply.service) as refinery:
            return refinery.lease(
                supply.run,
                groups,
                key=key,
                consumer=supply.consumer,
                recipe=supply.recipe,
                max_staleness=supply.max_staleness,
                ahead=supply.ahead,
                seconds=supply.seconds,
                sample=True,
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._open:
            with Refinery(self.supply.service) as refinery:
                for lease in self._open:
                    refinery.acknowledge(lease)
        self._open = []


def consumer_of(learning: Learning) -> str:
    """A name that belongs to the folder of a run, whatever is started there; the service takes it as it is."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", learning.out.name)[:80].strip("._-") or "trainer"
    return f"{readable}-{digest(learning.out.absolute(), size=4)}"


def share(rows: Sequence[Any], trainer: Trainer) -> list[Any]:
    """Those that this process works on: an equal part, in order."""
    accelerator = trainer.accelerator
    size = len(rows) // accelerator.num_processes
    return list(rows[accelerator.process_index * size : (accelerator.process_index + 1) * size])
