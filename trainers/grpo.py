"""GRPO with TRL's trainer on groups that the service samples, judges and down-samples.

The service chooses the prompts (GRESO, say) and samples n rollouts of each; a step learns from the m that PODS keeps,
with advantages among those m. Read from top to bottom.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from trainers.client import Json
from trainers.evaluation import Evaluation, Examiner
from trainers.learning import Learning, Policy, Unfit, by_one, configured, finish, finished, learn, reached, team
from trainers.leasing import Leases, Supply, check_sync, share
from trainers.publishing import Keeping, Publisher, Publishing


@dataclass(frozen=True, slots=True)
class GrpoRun:
    learning: Learning
    service: str
    run: str
    """Of the service: policy, prompts, selector, and how many rollouts a group has."""
    steps: int
    groups: int = 32
    """Of a step, over all devices."""
    keep: int = 8
    """Rollouts of each group that are learned from."""
    down_sampling: str = "max_variance"
    zero_variance: bool = False
    """True learns from whatever was sampled, as plain GRPO does: the run must retain all texts."""
    micro_batch: int = 32
    """Rollouts at once on a device."""
    sync_every: int = 1
    """Steps between two publications of the weights."""
    max_staleness: int | None = 0
    """Versions that the policy may have moved on since a group was sampled."""
    ahead: int = 0
    """Groups that the service has ready beyond those of a step."""
    beta: float = 0.0
    """Weight of the KL divergence from the policy that this started from."""
    loss: str = "dapo"
    """TRL's name."""
    keep_weights_of: tuple[int, ...] = ()
    """Steps after which the weights are left in the folder of the run."""
    evaluation: Evaluation | None = None


def train(run: GrpoRun) -> Json:
    """Trains and saves policy and tokenizer to the run's folder; returns what came of it."""
    if (done := finished(run.learning.out, run)) is not None:
        return done
    config = by_one(lambda: config_of(run.service, run.run))
    check(run, config)
    policy = Policy.load(run.learning)
    leases = Leases(supply_of(run), run.learning.out)

    trainer = LeasedGRPOTrainer(
        model=policy.model,
        reward_funcs=verified,
        args=configured(
            GRPOConfig,
            **run.learning.trl(
                {"lr_scheduler_type": "constant"},
                max_steps=run.steps,
                ignore_data_skip=True,  # the data is a ticket for each group; groups come with the step
                per_device_train_batch_size=run.micro_batch,
                gradient_accumulation_steps=micro_batches(run),
                num_generations=run.keep,
                temperature=config["sampling"]["temperature"],
                max_completion_length=config["sampling"]["max_tokens"],
                beta=run.beta,
                loss_type=run.loss,
            ),
        ),
        train_dataset=Dataset.from_dict({"prompt": ["ticket"] * run.groups}),
        processing_class=policy.tokenizer,
        peft_config=policy.adapters,
        rollout_func=lambda prompts, trainer: rollouts(leases.rows(trainer, run.groups), run.keep, trainer),
        callbacks=[leases],
    )
    publisher = Publisher(run.service, config["policy"], run.learning.out)
    trainer.add_callback(Publishing(publisher, trainer, every=run.sync_every, start=run.learning.policy))
    trainer.add_callback(Keeping(trainer, run.keep_weights_of))
    if run.evaluation:
        trainer.add_callback(Examiner(run.evaluation, trainer, [run.run]))
    learn(trainer, run.learning.out, run)

    result = {"steps": trainer.state.global_step}
    if run.sync_every:
        result |= publisher.publish(trainer)
    return finish(run.learning.out, run, result, trainer, sampled_by=config)


def config_of(service: str, run: str) -> Json:
    """What a run of the service was told."""
    with reached(service) as refinery:
        config: Json = refinery.get(f"/v1/runs/{run}")["config"]
    return config


def check(run: GrpoRun, config: Json) -> None:
    """Raises Unfit for what could not work, before anything is sampled."""
    if config["sampling"]["temperature"] == 0:
        raise Unfit(f"run {run.run!r} samples at temperature 0: all rollouts of a group are equal")
    if run.keep > config["sampling"]["n"]:
        raise Unfit(f"run {run.run!r} samples {config['sampling']['n']} rollouts a group: {run.keep} cannot be kept")
    check_sync(run.sync_every, run.max_staleness, run.ahead, run.evaluation, config["policy"])


def supply_of(run: GrpoRun) -> Supply:
    """Rows of groups, as many rollouts of each as a step learns from."""
    recipe = {
        "shape": "groups",
        "down_sampling": {"kind": run.down_sampling, "keep": run.keep},
        "truncated": True,  # an answer that never came to its end was a wrong one, and GRPO is to see it
        "zero_variance": run.zero_variance,
        "seed": run.learning.seed,
    }
    return Supply(run.service, run.run, recipe, run.max_staleness, run.ahead)


def micro_batches(run: GrpoRun) -> int:
    """Of a step, on each device. Raises Unfit where the numbers do not go into each other."""
    of_step, at_once = run.groups * run.keep, run.micro_batch * team().num_processes
    if of_step % at_once:
        raise Unfit(
            f"{run.groups} groups of {run.keep} are {of_step} rollouts a step, which do not divide into micro-batches "
            f"of {run.micro_batch} on {team().num_processes} devices"
        )
    return int(of_step // at_once)


def rollouts(rows: Sequence[Json], keep: int, trainer: GRPOTrainer) -> Json:
    """As TRL takes them: the rollouts of one group after another, of this process only. A group of which too few could
    be judged is filled up with rollouts that count for nothing."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("prompt_ids", "completion_ids", "logprobs", "reward", "env_mask")
    }
    for row in rows:
        prompt_ids = trainer.processing_class(row["prompt"]).input_ids
        for place in range(keep):
            counts = place < len(row["rewards"])
            of_group = place if counts else 0
            token_ids, logprobs = row["token_ids"][of_group], row["logprobs"][of_group]
            if len(logprobs or ()) != len(token_ids):
                raise Unfit(
                    f"group {row['group_id']} has no logprobs of what was sampled, and without them there are no "
                    "importance weights: see what the engines' logprobs are in docs/engines.md"
                )
            columns["prompt_ids"].append(prompt_ids)
            columns["completion_ids"].append(token_ids)
            columns["logprobs"].append(logprobs)
            columns["reward"].append(row["rewards"][of_group] if counts else None)
            columns["env_mask"].append([int(counts)] * len(token_ids))
    return {name: share(values, trainer) for name, values in columns.items()}


def verified(completions: Sequence[str], reward: Sequence[float | None], **_: Any) -> list[float | None]:
    """The rewards that the service's verifiers gave."""
    return list(reward)


class LeasedGRPOTrainer(GRPOTrainer):
    """Weighs each token by how much likelier it has become since it was sampled. TRL asks the current policy instead
    of the one that sampled unless it drives the engine itself; groups from a lease may be versions old."""

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, torch.Tensor]:
        batch: dict[str, torch.Tensor] = super()._generate_and_score_completions(inputs)
        batch["old_per_token_logps"] = batch["sampling_per_token_logps"]
        return batch
