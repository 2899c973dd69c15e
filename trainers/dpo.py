"""Offline DPO with plain TRL on frozen datasets, wherever they are served.

Read from top to bottom. The log-probabilities of the reference are computed once for a dataset and a policy, and found
again by every later run with the same two.
"""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer

from curation.keys import digest
from trainers.cache import cache, unfinished
from trainers.evaluation import Evaluation, Examiner
from trainers.learning import Learning, Policy, by_one, configured, finish, finished, learn
from trainers.pairs import Source, check, fetch, mixed
from trainers.publishing import Publisher

TOKENS = ["prompt_ids", "chosen_ids", "rejected_ids"]
REFERENCE = ["ref_chosen_logps", "ref_rejected_logps"]


@dataclass(frozen=True, slots=True)
class DpoRun:
    datasets: tuple[Source, ...]
    """Of pairs, as texts or as chat messages."""
    learning: Learning
    service: str
    """URL, for datasets by name, for publishing and for evaluation."""
    batch: int = 16
    """Pairs of a step, on each device."""
    beta: float = 0.1
    losses: tuple[str, ...] = ("sigmoid",)
    """TRL's names."""
    nll: float = 0.0
    """Weight of the negative log-likelihood of the chosen side, per token (the RPO term)."""
    epochs: float = 1.0
    max_length: int | None = None
    """Tokens of prompt and completion together; None for the policy's context."""
    precompute: bool = True
    """The reference is asked before training, not during it."""
    publish_to: str | None = None
    """Policy that the result becomes the next version of."""
    evaluation: Evaluation | None = None


def train(run: DpoRun) -> dict[str, Any]:
    """Trains and saves policy and tokenizer to the run's folder; returns what came of it."""
    if (done := finished(run.learning.out, run)) is not None:
        return done
    policy = Policy.load(run.learning)
    fetched = [fetch(source, run.service) for source in run.datasets]
    pairs = mixed(run.datasets, fetched, run.learning.seed)
    check(pairs, policy, run.max_length)

    trainer = CachedReferenceDPOTrainer(
        model=policy.model,
        args=configured(
            DPOConfig,
            **run.learning.trl(
                num_train_epochs=run.epochs,
                per_device_train_batch_size=run.batch,
                beta=run.beta,
                **weighted(run.losses, run.nll),
                max_length=run.max_length,
                precompute_ref_log_probs=run.precompute,
                truncation_mode="keep_start",
                disable_dropout=not run.learning.has_dropout,
            ),
        ),
        train_dataset=pairs,
        processing_class=policy.tokenizer,
        peft_config=policy.adapters,
    )
    if run.evaluation:
        trainer.add_callback(Examiner(run.evaluation, trainer))
    learn(trainer, run.learning.out, run)

    result = {"pairs": len(pairs), "steps": trainer.state.global_step}
    if run.publish_to:
        result |= Publisher(run.service, run.publish_to, run.learning.out).publish(trainer)
    seen = [asdict(file) | {"path": str(file.path)} for files in fetched for file in files]
    return finish(run.learning.out, run, result, trainer, data=seen)


def weighted(losses: tuple[str, ...], nll: float) -> dict[str, Any]:
    """The losses in TRL's words; its own `sft` is the negative log-likelihood of the chosen side, per token."""
    if not nll:
        return {"loss_type": list(losses)}
    return {"loss_type": [*losses, "sft"], "loss_weights": [*[1.0] * len(losses), nll]}


class CachedReferenceDPOTrainer(DPOTrainer):
    """Asks the reference once about the same pairs, wherever they came from and wherever the run writes to. TRL keeps
    its answers under a name that changes with the output folder."""

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        tokens = dataset.with_format("arrow").select_columns(TOKENS)[:]
        precision = (self.args.bf16, self.args.fp16, self.args.max_length, self.ld_alpha)
        known = cache("reference") / f"{digest(_content_of(tokens), _weights_of(self.model), *precision)}.parquet"
        answers = by_one(lambda: pq.read_table(known) if known.exists() else None)
        if answers is not None:
            for column in REFERENCE:
                dataset = dataset.add_column(column, answers[column].to_numpy())
            return dataset
        answered = super()._precompute_ref_logps(dataset, name, batch_size)
        if self.accelerator.is_main_process:
            with unfinished(known.parent) as file:
                pq.write_table(answered.with_format("arrow").select_columns(REFERENCE)[:], file)
                file.rename(known)
        self.accelerator.wait_for_everyone()
        return answered


def _weights_of(model: PreTrainedModel) -> str:
    """Names the weights, without those of adapters: as the reference they are left away."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if "lora_" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            found.update(str((plain, tensor.dtype)).encode())
            found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _content_of(table: pa.Table) -> str:
    """Names the rows, however they lie in memory."""
    found = hashlib.sha256()
    for column in table.combine_chunks().columns:
        for batch in column.chunks:
            found.update(batch.flatten().to_numpy().tobytes() + batch.value_lengths().to_numpy().tobytes())
    return found.hexdigest()
