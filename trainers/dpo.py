"""Offline DPO with plain TRL on a frozen dataset, wherever it is served.

Read from top to bottom. Nothing is truncated in silence: a pair that does not fit into `max_length` is refused before
the first step, with the numbers.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer
from trl.data_utils import apply_chat_template, is_conversational

SMALL = 20_000_000
"""Parameters up to which one thread is fastest."""


class Unfit(Exception):
    """Pairs that this policy cannot learn from as they are."""


@dataclass(frozen=True, slots=True)
class DpoRun:
    dataset: tuple[str, ...]
    """URLs or paths of Parquet or JSONL files with prompt, chosen and rejected, as texts or as chat messages."""
    policy: str
    """Checkpoint folder to start from; also the reference model."""
    out: Path
    learning_rate: float = 1e-6
    beta: float = 0.1
    epochs: float = 1.0
    batch: int = 16
    max_length: int = 1024
    """Tokens of prompt and completion together."""
    seed: int = 0


def train(run: DpoRun) -> dict[str, Any]:
    """Trains, saves policy and tokenizer to ``run.out``, and returns what TRL measured."""
    model = AutoModelForCausalLM.from_pretrained(run.policy, dtype="float32", use_safetensors=True)
    if model.num_parameters() <= SMALL:
        torch.set_num_threads(1)  # threads of so small a product only wait for each other
    tokenizer = AutoTokenizer.from_pretrained(run.policy)
    pairs = read_pairs(run.dataset)
    check_lengths(pairs, tokenizer, run.max_length)
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(run.out),
            learning_rate=run.learning_rate,
            beta=run.beta,
            num_train_epochs=run.epochs,
            per_device_train_batch_size=run.batch,
            max_length=run.max_length,
            seed=run.seed,
            data_seed=run.seed,
            bf16=False,
            save_strategy="no",
            report_to="none",
            logging_steps=10,
        ),
        train_dataset=pairs,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(run.out))
    measured = trainer.state.log_history
    (run.out / "training.json").write_text(
        json.dumps({"run": asdict(run) | {"out": str(run.out)}, "pairs": len(pairs), "log": measured}, indent=1)
    )
    return {"pairs": len(pairs), "steps": trainer.state.global_step}


def read_pairs(files: Sequence[str]) -> Dataset:
    kind = "json" if files[0].endswith((".jsonl", ".json")) else "parquet"
    return load_dataset(kind, data_files=list(files), split="train")


def check_lengths(pairs: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Raises Unfit if prompt, completion and EOS of any pair exceed `max_length` tokens, or are chat messages that the
    policy has no template for."""
    is_chat = is_conversational(pairs[0])
    if is_chat and tokenizer.chat_template is None:
        raise Unfit("the pairs are chat messages, and the policy has no chat template: freeze them in standard format")

    def longer_side(row: dict[str, Any]) -> int:
        row = apply_chat_template(row, tokenizer) if is_chat else row
        sides = (row["prompt"] + row[side] for side in ("chosen", "rejected"))
        return 1 + max(len(tokenizer(text).input_ids) for text in sides)

    lengths = sorted(longer_side(row) for row in pairs.select_columns(["prompt", "chosen", "rejected"]))
    over = sum(length > max_length for length in lengths)
    if over:
        raise Unfit(
            f"{over} of {len(lengths)} pairs are longer than max_length {max_length}: median "
            f"{lengths[len(lengths) // 2]}, longest {lengths[-1]} tokens. Answers would lose their end, where the "
            f"result stands: pass --max-length {lengths[-1]}, or leave long completions out by a recipe"
        )
