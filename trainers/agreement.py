"""Whether an engine answers with the weights it says it has: its greedy answers against transformers' own."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar


class Greedy(NamedTuple):
    """A greedy answer as an engine gave it."""

    prompt: str
    token_ids_T: list[int]
    logprobs_T: list[float]


class Agreement(NamedTuple):
    compared: int
    equal: int
    """Answers that transformers gives too, token for token."""
    worst_logprob: float
    """Largest difference of a logprob, in nats."""


def agreement(answers: Sequence[Greedy], checkpoint: Path) -> Agreement:
    """In double precision, on the CPU. An answer is greedy if every token is the likeliest after those before it."""
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(checkpoint, use_safetensors=True).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    equal, worst = 0, 0.0
    for answer in answers:
        prompt_ids = tokenizer(answer.prompt).input_ids
        with torch.no_grad():
            logits_TV = model(torch.tensor([prompt_ids + answer.token_ids_T])).logits[0, len(prompt_ids) - 1 : -1]
        said_T = torch.tensor(answer.token_ids_T)
        logprobs_T = torch.log_softmax(logits_TV, dim=-1).gather(1, said_T[:, None])[:, 0]
        equal += bool((logits_TV.argmax(dim=-1) == said_T).all())
        difference = (logprobs_T - torch.tensor(answer.logprobs_T, dtype=torch.float64)).abs().max().item()
        worst = max(worst, difference)
    return Agreement(len(answers), equal, worst)
