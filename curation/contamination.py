"""Prompts that share a run of words with an evaluation set (n-gram overlap, as GPT-3's and later reports do it)."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from curation.keys import digest

WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """In lower case and without punctuation."""
    return WORD.findall(text.lower())


def runs_of_words(found: list[str], words: int) -> Iterator[str]:
    """Every run of `words` of these words; of fewer all of them as one."""
    if not found:
        return
    for start in range(max(1, len(found) - words + 1)):
        yield " ".join(found[start : start + words])


class Forbidden:
    """The runs of words of an evaluation set; see `curation.recipe.Decontamination` for what counts."""

    def __init__(self, texts: Iterable[str], words: int, least: int) -> None:
        self._settings = words, least
        self._runs: dict[int, set[str]] = defaultdict(set)
        """By their number of words."""
        self._whole: set[str] = set()
        for text in texts:
            found = words_of(text)
            self._whole.add(" ".join(found))
            if len(found) >= min(least, words):
                self._runs[min(len(found), words)].update(runs_of_words(found, words))

    def is_in(self, text: str) -> bool:
        found = words_of(text)
        if found and " ".join(found) in self._whole:
            return True
        return any(run in runs for length, runs in self._runs.items() for run in runs_of_words(found, length))

    @property
    def digest(self) -> str:
        """Names the set, whatever order its texts came in."""
        return digest(*self._settings, *sorted(self._whole))
