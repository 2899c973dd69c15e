"""Prompts that share a run of words with an evaluation set (n-gram overlap, as GPT-3's and later reports do it)."""

import re
from collections.abc import Iterable, Iterator

from curation.keys import digest

WORD = re.compile(r"\w+")


def runs_of_words(text: str, words: int) -> Iterator[str]:
    """Every run of `words` words, in lower case and without punctuation; of a shorter text all of it."""
    found = WORD.findall(text.lower())
    if not found:
        return
    for start in range(max(1, len(found) - words + 1)):
        yield " ".join(found[start : start + words])


class Forbidden:
    """The runs of words of an evaluation set."""

    def __init__(self, texts: Iterable[str], words: int) -> None:
        self._words = words
        self._runs = frozenset(run for text in texts for run in runs_of_words(text, words))

    def is_in(self, text: str) -> bool:
        return any(run in self._runs for run in runs_of_words(text, self._words))

    @property
    def digest(self) -> str:
        """Names the set, whatever order its texts came in."""
        return digest(self._words, *sorted(self._runs))
