"""How good a policy is on prompts that it does not learn from, by the service's own engine and verifiers."""

import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainers.client import Refinery
from trainers.learning import by_one, identity, reached
from trainers.publishing import Publisher

GREEDY = {"n": 1, "temperature": 0.0}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a policy is measured on."""

    service: str
    prompt_set: str
    policy: str | None = None
    """That answers; None makes one of the run's own name."""
    every: int = 0
    """Steps between two evaluations; with 0 only at the end."""
    n: int = 1
    """Answers a prompt: a single one is greedy, more are sampled at temperature 1."""
    max_tokens: int = 512
    seed: int = 0


class Accuracy(NamedTuple):
    accuracy: float
    """Mean over the prompts of the share of their answers that are right; what no verifier could judge is not right."""
    standard_error: float
    """Of that mean over prompts."""
    prompts: int


def evaluate(evaluation: Evaluation, refinery: Refinery, policy: str, run: str) -> Accuracy:
    """Of the policy as it is live now. The answers stay in the run; asked for again, they are taken from there."""
    sampling = GREEDY if evaluation.n == 1 else {"n": evaluation.n, "temperature": 1.0}
    refinery.post(
        "/v1/runs",
        {
            "name": run,
            "policy": policy,
            "prompt_set": evaluation.prompt_set,
            "sampling": sampling | {"max_tokens": evaluation.max_tokens},
            "selector": {"kind": "all"},
            "retain": "all",
            "seed": evaluation.seed,
        },
    )
    refinery.once(f"/v1/runs/{run}/rollouts", {"passes": 1}, key=run)
    shares = [sum(reward >= 1.0 for reward in group["rewards"]) / group["rollouts"] for group in refinery.groups(run)]
    mean = fmean(shares)
    spread = math.sqrt(sum((share - mean) ** 2 for share in shares) / max(1, len(shares) - 1))
    return Accuracy(mean, spread / math.sqrt(len(shares)), len(shares))


class Examiner(TrainerCallback):
    """Evaluates every so many steps and at the end. What it finds is in TRL's log, beside what it took to get there:
    rollouts and tokens that the service sampled for training, and seconds without the evaluations.

    The policy that answers is one of its own wherever the service has room for a second one: an evaluation then leaves
    alone what the trainer's groups are sampled from.
    """

    def __init__(self, evaluation: Evaluation, trainer: Trainer, sampled_by: Collection[str] = ()) -> None:
        """`sampled_by` names the runs that the trainer learns from."""
        self._evaluation = evaluation
        self._publisher = Publisher(evaluation.service, evaluation.policy, Path(trainer.args.output_dir))
        self._trainer = trainer
        self._sampled_by = sampled_by
        self._began = 0.0
        """When training would have begun if it had not been interrupted and nobody had evaluated."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        earlier = max((entry.get("spent_seconds", 0.0) for entry in state.log_history), default=0.0)
        self._began = time.monotonic() - earlier
        if state.global_step == 0 and self._evaluation.every:
            self._examine(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        every = self._evaluation.every
        if state.global_step == state.max_steps or (every and state.global_step % every == 0):
            self._examine(state)

    def _examine(self, state: TrainerState) -> None:
        asked = time.monotonic()
        published = self._publisher.publish(self._trainer)
        found, spent = by_one(lambda: self._measured(state.global_step, published["version"]))
        measured = {f"eval_{name}": value for name, value in found._asdict().items()}
        # Not TRL's own: that would put the metrics of its next line into this one.
        Trainer.log(self._trainer, measured | spent | {"spent_seconds": asked - self._began})
        self._began += time.monotonic() - asked

    def _measured(self, step: int, version: int) -> tuple[Accuracy, dict[str, int]]:
        with reached(self._evaluation.service) as refinery:
            run = f"{identity(Path(self._trainer.args.output_dir))}-step-{step}-v{version}"
            found = evaluate(self._evaluation, refinery, self._publisher.policy, run)
            return found, _spent(self._sampled_by, refinery)


def _spent(runs: Collection[str], refinery: Refinery) -> dict[str, int]:
    funnels = [refinery.get(f"/v1/runs/{run}")["funnel"] for run in runs]
    return {f"spent_{what}": sum(funnel[what] for funnel in funnels) for what in ("rollouts", "tokens")}
