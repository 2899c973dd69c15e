"""reasoning-gym's own scorers: the prompt's metadata names the task and carries the entry it was made from."""

from functools import lru_cache
from typing import Any

from reasoning_gym.factory import get_score_answer_fn

from service.verifiers.base import BadReference, NoAnswer, Question
from service.verifiers.extraction import plain_answer

score_function = lru_cache(maxsize=128)(get_score_answer_fn)


def judge(question: Question, text: str) -> tuple[float, str]:
    """The task's score, which may be graded. Needs metadata ``{"task": ..., "entry": {...}}``."""
    task, entry = question.metadata.get("task"), _entry(question)
    try:
        score = score_function(str(task))
    except ValueError as cause:
        raise BadReference(str(cause)) from None
    answer = plain_answer(text)
    if not answer:
        raise NoAnswer
    return float(score(answer, entry)), answer[:200]


def _entry(question: Question) -> dict[str, Any]:
    entry = question.metadata.get("entry")
    if not isinstance(entry, dict):
        raise BadReference('metadata has no "entry" of a reasoning-gym dataset')
    return entry
