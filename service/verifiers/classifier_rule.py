"""A reward model in the worker process itself: a transformers sequence classifier with one label."""

from functools import lru_cache
from typing import Any

from service.verifiers.base import Question
from service.verifiers.rewards import RewardOptions, rewarded


def judge(question: Question, text: str) -> tuple[float, str]:
    """The operator's `model` is a checkpoint folder or Hub id."""
    options = RewardOptions.model_validate(question.options)
    judgement = rewarded(_score(question.operator["model"], question.prompt + text), text, options)
    if judgement.reward is None:
        raise ValueError(judgement.detail)
    return judgement.reward, judgement.detail


def _score(source: str, text: str) -> float:
    import torch

    tokenizer, model = _loaded(source)
    inputs = tokenizer(text, return_tensors="pt")
    longest = model.config.max_position_embeddings
    if inputs.input_ids.shape[1] > longest:
        raise ValueError(f"{inputs.input_ids.shape[1]} tokens are more than the {longest} that the reward model reads")
    with torch.inference_mode():
        return float(model(**inputs).logits[0, 0])


@lru_cache(maxsize=1)
def _loaded(source: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModelForSequenceClassification.from_pretrained(source, dtype=torch.float32).eval()
    if model.config.num_labels != 1:
        raise ValueError(f"{source} has {model.config.num_labels} labels; a reward model has one")
    tokenizer = AutoTokenizer.from_pretrained(source)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id or 0
    return tokenizer, model
