"""Semi-online DPO (arXiv 2506.21495) with TRL's trainer on pairs that the service samples between two publications.

The generator is the policy as it was published last: after every step it is online DPO, after every so many steps
semi-online, never again offline. What the loss compares with, the reference, is synced by a knob of its own. Read from
top to bottom.

A micro-batch holds pairs of one task only: what a verifier judged and what a reward model judged are not comparable.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig, DPOTrainer

from curation.keys import rng_for
from trainers.client import Json
from trainers.dpo import weighted
from trainers.evaluation import Evaluation, Examiner
from trainers.grpo import config_of
from trainers.learning import Learning, Policy, Unfit, by_one, checkpoints, configured, finish, finished, learn, team
from trainers.leasing import Leases, Supply, check_sync, share
from trainers.publishing import Publisher, Publishing


@dataclass(frozen=True, slots=True)
class Task:
    """Prompts with one way of judging them."""

    run: str
    """Of the service."""
    weight: float = 1.0
    """Its share of the micro-batches."""
    pairs: str = "first_right_first_wrong"
    """The rule; `best_with_worst` where rewards are graded."""


@dataclass(frozen=True, slots=True)
class SemiOnlineRun:
    learning: Learning
    service: str
    tasks: tuple[Task, ...]
    steps: int
    batch: int = 32
    """Pairs of a micro-batch, over all devices."""
    micro_batches: int = 1
    """Of a step."""
    sync_every: int = 10
    """Steps between two publications of the weights: 1 is online DPO, 0 never again, which is offline DPO."""
    sync_reference_every: int = 0
    """Steps after which the reference becomes the policy; 0 keeps the one that training started from."""
    beta: float = 0.1
    losses: tuple[str, ...] = ("sigmoid",)
    """TRL's names."""
    nll: float = 0.0
    """Weight of the negative log-likelihood of the chosen side, per token."""
    entropy: float = 0.0
    """Weight of the mean entropy of the policy over the tokens of the chosen side, which the loss rewards."""
    max_staleness: int | None = 0
    ahead: int = 0
    evaluation: Evaluation | None = None


def train(run: SemiOnlineRun) -> Json:
    """Trains and saves policy and tokenizer to the run's folder; returns what came of it."""
    if (done := finished(run.learning.out, run)) is not None:
        return done
    disable_progress_bars()  # a few for each micro-batch
    generator = by_one(lambda: policy_of(run))
    check(run, generator)
    policy = Policy.load(run.learning)
    tickets = run.batch * run.micro_batches  # an epoch is a step: the end of one would cut a step short
    reference = {"sync_ref_model": True, "ref_model_sync_steps": run.sync_reference_every, "ref_model_mixup_alpha": 1.0}

    trainer = LeasedDPOTrainer(
        run,
        model=policy.model,
        args=configured(
            DPOConfig,
            **run.learning.trl(
                {"lr_scheduler_type": "constant"},
                max_steps=run.steps,
                ignore_data_skip=True,  # the data is a ticket for each pair; pairs come with the step
                per_device_train_batch_size=run.batch // team().num_processes,
                gradient_accumulation_steps=run.micro_batches,
                beta=run.beta,
                **weighted(run.losses, run.nll),
                **(reference if run.sync_reference_every else {}),
                max_length=None,  # the run's max_tokens is the limit
                disable_dropout=not run.learning.has_dropout,
            ),
        ),
        train_dataset=Dataset.from_list([{"prompt": "ticket ", "chosen": "a", "rejected": "b"}] * tickets),
        processing_class=policy.tokenizer,
        peft_config=policy.adapters,
    )
    if run.sync_reference_every:
        trainer.add_callback(KeptReference(trainer, run.sync_reference_every))
    publisher = Publisher(run.service, generator, run.learning.out)
    trainer.add_callback(Publishing(publisher, trainer, every=run.sync_every, start=run.learning.policy))
    if run.evaluation:
        trainer.add_callback(Examiner(run.evaluation, trainer, [task.run for task in run.tasks]))
    learn(trainer, run.learning.out, run)

    result = {"steps": trainer.state.global_step}
    if run.sync_every:
        result |= publisher.publish(trainer)
    return finish(run.learning.out, run, result, trainer)


def check(run: SemiOnlineRun, generator: str) -> None:
    """Raises Unfit for what could not work, before anything is sampled."""
    if run.batch % team().num_processes:
        raise Unfit(f"a micro-batch of {run.batch} pairs does not divide among {team().num_processes} devices")
    if run.sync_reference_every and run.learning.lora:
        raise Unfit("the reference of adapters is the policy without them: it cannot be synced")
    if any(task.weight <= 0 for task in run.tasks):
        raise Unfit("the weight of a run is more than 0")
    check_sync(run.sync_every, run.max_staleness, run.ahead, run.evaluation, generator)


def policy_of(run: SemiOnlineRun) -> str:
    """The policy that all its tasks sample from. Raises Unfit where there are several."""
    found = {config_of(run.service, task.run)["policy"] for task in run.tasks}
    if len(found) > 1:
        raise Unfit(f"the runs sample from different policies, {', '.join(sorted(found))}: one trainer learns one")
    return str(found.pop())


def task_of(run: SemiOnlineRun, step: int, part: int) -> Task:
    """Of a micro-batch: drawn by the seed, with the weights of the tasks."""
    rng = rng_for(run.learning.seed, "task", step, part)
    return rng.choices(run.tasks, [task.weight for task in run.tasks])[0]


class LeasedDPOTrainer(DPOTrainer):
    """Gets its pairs with the step. A data loader collates a batch ahead: its pairs would come from weights that are a
    step older than they need be."""

    def __init__(self, run: SemiOnlineRun, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._run = run
        self._part = 0
        """Of the step: which micro-batch."""
        self._leases = {task: Leases(supply_of(task, run), run.learning.out) for task in run.tasks}
        for leases in self._leases.values():
            self.add_callback(leases)
        self._entropy: torch.Tensor | None = None
        """Of each token, by the latest forward pass of the policy."""
        if run.entropy:
            self.accelerator.unwrap_model(self.model).register_forward_hook(self._note_entropy)

    def _prepare_inputs(self, inputs: Any) -> Any:
        return super()._prepare_inputs(self._batch() if self.model.training else inputs)

    def _batch(self) -> dict[str, torch.Tensor]:
        """The next micro-batch, of this process."""
        task = task_of(self._run, self.state.global_step, self._part)
        rows = self._leases[task].rows(self, self._run.batch, f".{self._part}")
        self._part = (self._part + 1) % self._run.micro_batches
        pairs = Dataset.from_list([{side: row[side] for side in ("prompt", "chosen", "rejected")} for row in rows])
        tokenized = self._prepare_dataset(pairs, self.processing_class, self.args, "leased")
        batch: dict[str, torch.Tensor] = self.data_collator(share(list(tokenized), self))
        return batch

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **more: Any) -> Any:
        loss = super().compute_loss(model, inputs, *arguments, **more)
        if self._entropy is None:
            return loss
        chosen_BT, _ = inputs["completion_mask"][:, 1:].chunk(2)
        entropy_BT, _ = self._entropy[:, -chosen_BT.size(1) :].chunk(2)
        mean_B = (entropy_BT * chosen_BT).sum(1) / chosen_BT.sum(1).clamp(min=1)
        return loss - self._run.entropy * mean_B.mean()

    def _note_entropy(self, module: Any, arguments: Any, outputs: Any) -> None:
        if torch.is_grad_enabled():  # as the reference an adapter's model is asked without
            self._entropy = outputs.entropy


class KeptReference(TrainerCallback):
    """Finds the reference again after an interruption: TRL's checkpoints are without it. It is the policy as it was
    when it was synced last, which is kept for as long as a checkpoint may need it."""

    def __init__(self, trainer: DPOTrainer, every: int) -> None:
        self._trainer = trainer
        self._every = every
        self._folder = Path(trainer.args.output_dir) / "reference"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if synced := state.global_step // self._every * self._every:
            kept = AutoModelForCausalLM.from_pretrained(self._of_step(synced), dtype="auto")
            reference = self._trainer.accelerator.unwrap_model(self._trainer.ref_model)
            reference.load_state_dict(kept.state_dict())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self._every:
            return
        self._trainer.save_model(str(self._of_step(state.global_step)))
        needed = min(checkpoints(self._folder.parent), default=0) // self._every * self._every
        if self._trainer.is_world_process_zero():
            for old in self._folder.iterdir():
                if int(old.name) < needed:
                    shutil.rmtree(old)

    def _of_step(self, step: int) -> Path:
        return self._folder / str(step)


def supply_of(task: Task, run: SemiOnlineRun) -> Supply:
    recipe = {"shape": "pairs", "pairs": {"kind": task.pairs}, "seed": run.learning.seed}
    return Supply(run.service, task.run, recipe, run.max_staleness, run.ahead)
