"""What transformers makes of a checkpoint, in double precision: the yardstick of every engine."""

from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from curation.records import Completion


@cache
def _model(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder).double().eval()


@cache
def _tokenizer(folder: Path):  # type: ignore[no-untyped-def]
    return AutoTokenizer.from_pretrained(folder)


def greedy(folder: Path, prompt: str, max_tokens: int) -> list[int]:
    asked = _tokenizer(folder)(prompt, return_tensors="pt")
    with torch.no_grad():
        out = _model(folder).generate(**asked, max_new_tokens=max_tokens, do_sample=False)
    return out[0, asked.input_ids.shape[1] :].tolist()


def logprobs(folder: Path, prompt: str, token_ids_T: tuple[int, ...], temperature: float = 1.0) -> torch.Tensor:
    """Of each token of a completion, full softmax at the temperature. Shape (T,)."""
    ids = _tokenizer(folder)(prompt).input_ids
    with torch.no_grad():
        logits = _model(folder)(torch.tensor([[*ids, *token_ids_T]])).logits[0, len(ids) - 1 : -1]
    every = torch.log_softmax(logits / temperature, dim=-1)
    return every.gather(1, torch.tensor(token_ids_T)[:, None])[:, 0]


def worst_difference(folder: Path, prompt: str, completion: Completion, temperature: float = 1.0) -> float:
    """Largest distance of a reported logprob from the reference."""
    expected = logprobs(folder, prompt, completion.token_ids_T, temperature)
    return (expected - torch.tensor(completion.logprobs_T, dtype=torch.float64)).abs().max().item()
