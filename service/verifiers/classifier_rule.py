"""A reward model in the worker process itself: a transformers sequence classifier with one label."""

from functools import lru_cache
from typing import Any

from service.verifiers.base import Question, Rule, dialogue
from service.verifiers.rewards import ChatRewardOptions, rewarded


def judging(model: str) -> Rule:
    """`model` is a checkpoint folder or Hub id."""
    import torch

    _loaded(model)  # before the clock of the first check starts

    def judge(question: Question, text: str) -> tuple[float, str]:
        tokenizer, classifier = _loaded(model)
        longest = classifier.config.max_position_embeddings
        options = ChatRewardOptions.model_validate(question.options)
        inputs = _inputs(tokenizer, question.prompt, text, chat=options.chat)
        tokens = inputs["input_ids"].shape[1]
        if tokens > longest:
            raise ValueError(f"{tokens} tokens are more than the {longest} that the reward model reads")
        with torch.inference_mode():
            score = float(classifier(**inputs).logits[0, 0])
        judgement = rewarded(score, text, options)
        if judgement.reward is None:
            raise ValueError(judgement.detail)
        return judgement.reward, judgement.detail

    return judge


def _inputs(tokenizer: Any, prompt: str, text: str, *, chat: bool) -> Any:
    if chat:
        return tokenizer.apply_chat_template(dialogue(prompt, text), return_tensors="pt", return_dict=True)
    return tokenizer(prompt + text, return_tensors="pt")


@lru_cache(maxsize=1)  # they are large
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
