"""Supervised training of the embedded policy from scratch, on worked and on bare solutions mixed.

As in a real corpus, the right way of working is in there but is not the most frequent one. Sampling finds it
sometimes, a verifier sees when, and preference learning can bring it out: a policy without such latent skill
only gets worse under DPO (measured with bare answers alone: greedy 0.198 to 0.15-0.18).
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from trainers.policy import ANSWER_CLOSE, ANSWER_OPEN, byte_tokenizer, fresh_policy
from trainers.tasks import LEVELS, Problem, problems, worked_sum

IGNORED = -100


@dataclass(frozen=True, slots=True)
class SftRun:
    out: Path
    seed: int = 0
    steps: int = 3_000
    batch: int = 128
    learning_rate: float = 2e-3
    worked: float = 0.3
    """Share of the sums that come with their working; the rest show the bare answer."""


def corpus(run: SftRun) -> Iterator[tuple[str, str]]:
    """Endless (prompt, completion) texts, the levels mixed by their share."""
    rng = random.Random(run.seed)
    taught = [level for level in LEVELS if level.taught]
    sources = [problems(level, seed=run.seed + 1, held_out=False) for level in taught]
    while True:
        [source] = rng.choices(sources, weights=[level.taught for level in taught])
        problem = next(source)
        yield problem.text, completion(problem, worked=rng.random() < run.worked)


def completion(problem: Problem, *, worked: bool) -> str:
    working = worked_sum(problem) if worked and problem.level.task == "chain_sum" else ""
    return f"{working}{ANSWER_OPEN}{problem.entry['answer']}{ANSWER_CLOSE}"


def encode(
    tokenizer: PreTrainedTokenizerBase, rows: list[tuple[str, str]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, attention mask, labels), each B x T; the prompt and the padding carry no loss."""
    ids, labels = [], []
    for prompt, answer in rows:
        asked = tokenizer(prompt).input_ids
        answered = [*tokenizer(answer).input_ids, tokenizer.eos_token_id]
        ids.append(torch.tensor(asked + answered))
        labels.append(torch.tensor([IGNORED] * len(asked) + answered))
    ids_BT = pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
    labels_BT = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    return ids_BT, ids_BT.ne(tokenizer.pad_token_id).long(), labels_BT


def train(run: SftRun, *, report_every: int = 100) -> None:
    """Trains and saves the policy with its tokenizer to ``run.out``; prints the loss as it goes."""
    torch.set_num_threads(1)  # the order of additions, and so the checkpoint, would depend on their number
    torch.manual_seed(run.seed)
    tokenizer = byte_tokenizer()
    policy = fresh_policy(tokenizer).train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=run.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=run.learning_rate, total_steps=run.steps, pct_start=0.05
    )
    rows = corpus(run)

    for step in range(1, run.steps + 1):
        ids_BT, mask_BT, labels_BT = encode(tokenizer, [next(rows) for _ in range(run.batch)])
        loss = policy(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % report_every == 0:
            print(f"step {step}/{run.steps} loss {loss.item():.4f}", flush=True)

    policy.eval().save_pretrained(run.out)
    tokenizer.save_pretrained(run.out)
