"""What TRL makes of leased rows: advantages among the kept rollouts, ratios to the policy that sampled."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig

from curation.pods import advantages
from service.run_config import NAME
from tests.trainers.conftest import learning
from trainers.grpo import LeasedGRPOTrainer, rollouts, verified
from trainers.learning import Policy, Unfit, claim, identity

pytestmark = pytest.mark.filterwarnings("ignore")
KEEP = 4


def a_row(*rewards: float, group_id: str = "g") -> dict[str, Any]:
    """Rollouts of different lengths, sampled by a policy that found each token as likely as a coin's head."""
    token_ids = [[5, 6, *range(7, 7 + place), 1] for place in range(len(rewards))]
    logprobs = [[math.log(0.5)] * len(ids) for ids in token_ids]
    return {
        "prompt": "1 + 1 =",
        "group_id": group_id,
        "rewards": list(rewards),
        "token_ids": token_ids,
        "logprobs": logprobs,
    }


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> LeasedGRPOTrainer:
    """It leases `trainer.rows`."""
    policy = Policy.load(learning(out := tmp_path_factory.mktemp("out")))
    told = learning(out).trl(per_device_train_batch_size=8, num_generations=KEEP, max_steps=1, max_completion_length=96)
    return LeasedGRPOTrainer(
        model=policy.model,
        reward_funcs=verified,
        args=GRPOConfig(**told),
        train_dataset=Dataset.from_dict({"prompt": ["ticket"] * 2}),
        processing_class=policy.tokenizer,
        rollout_func=lambda prompts, trainer: rollouts(trainer.rows, KEEP, trainer),
    )


def batch_of(trainer: LeasedGRPOTrainer, *rows: dict[str, Any]) -> dict[str, torch.Tensor]:
    trainer.rows = rows
    trainer.model.train()
    return trainer._generate_and_score_completions([{"prompt": "ticket"} for _ in range(KEEP * len(rows))])


def test_advantages_are_those_among_the_kept_rollouts_of_a_group(trainer: LeasedGRPOTrainer) -> None:
    rewards = ((1.0, 0.0, 0.0, 1.0), (0.25, 0.5, 0.0, 1.0))

    batch = batch_of(trainer, *(a_row(*one) for one in rewards))

    expected = [advantage for one in rewards for advantage in advantages(one)]
    assert batch["advantages"].tolist() == pytest.approx(expected, abs=1e-5)


def test_tokens_are_those_that_were_sampled_and_weigh_against_their_stored_logprobs(trainer: LeasedGRPOTrainer) -> None:
    row = a_row(1.0, 0.0, 0.0, 1.0)

    batch = batch_of(trainer, row)

    for place in range(KEEP):
        held = batch["completion_mask"][place].bool()
        assert batch["completion_ids"][place][held].tolist() == row["token_ids"][place]
        assert batch["old_per_token_logps"][place][held].tolist() == pytest.approx(row["logprobs"][place])
        prompt = batch["prompt_ids"][place][batch["prompt_mask"][place].bool()]
        assert trainer.processing_class.decode(prompt) == row["prompt"]


def test_a_group_of_which_some_could_not_be_judged_is_filled_up_with_what_counts_for_nothing(
    trainer: LeasedGRPOTrainer,
) -> None:
    batch = batch_of(trainer, a_row(1.0, 0.0, 0.0))

    assert batch["advantages"].tolist() == pytest.approx([*advantages([1.0, 0.0, 0.0]), 0.0], abs=1e-5)
    counted = (batch["completion_mask"] * batch["tool_mask"]).sum(1)
    assert counted.tolist() == [3, 4, 5, 0]
    assert batch["num_items_in_batch"].item() == 12


def test_groups_without_logprobs_are_refused(trainer: LeasedGRPOTrainer) -> None:
    row = a_row(1.0, 0.0, 1.0, 0.0, group_id="g_7")
    row["logprobs"][2] = []

    with pytest.raises(Unfit, match="group g_7 has no logprobs"):
        batch_of(trainer, row)


def test_the_loss_is_the_clipped_ratio_times_the_advantage(trainer: LeasedGRPOTrainer) -> None:
    """By hand, of the policy as it is."""
    rewards = (1.0, 0.0, 0.0, 1.0)
    batch = batch_of(trainer, a_row(*rewards))

    trainer.current_gradient_accumulation_steps = 1  # as the training loop says
    loss = trainer.compute_loss(trainer.model, batch)

    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    held = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        logits = trainer.model(input_ids=ids, attention_mask=held).logits[:, :-1]
    logprobs = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0][:, -batch["completion_ids"].size(1) :]
    ratio = torch.exp(logprobs - math.log(0.5))
    advantage = torch.tensor(advantages(rewards))[:, None]
    of_token = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage) * batch["completion_mask"]
    assert loss.item() == pytest.approx(-of_token.sum().item() / batch["completion_mask"].sum().item(), rel=1e-4)


@pytest.mark.parametrize("name", ["plain", "with blanks, and (more)", "...", "ü" * 60])
def test_a_run_has_a_name_of_its_own_whatever_its_folder_is_called(name: str, tmp_path: Path) -> None:
    names = []
    for _ in range(2):
        claim(tmp_path / name, learning(tmp_path / name))
        names.append(identity(tmp_path / name))
        shutil.rmtree(tmp_path / name)  # and begun anew

    assert all(re.fullmatch(NAME, one) for one in names)
    assert names[0] != names[1]
