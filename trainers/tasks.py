"""The reasoning-gym tasks that the embedded policy is taught and measured on.

- A *level* is one task at one difficulty; the levels together hold problems the policy always solves, sometimes
  solves and never solves, which is what curation is about.
- Problems are split by their own text: a held-out problem is never in the corpus and never in a prompt set,
  whatever seed drew it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import reasoning_gym

HELD_OUT_SHARE = 10
"""One problem in this many is held out."""


@dataclass(frozen=True, slots=True)
class Level:
    """One reasoning-gym task at one difficulty."""

    name: str
    task: str
    """Name of the reasoning-gym dataset."""
    config: dict[str, int]
    taught: float
    """Share of the training corpus; 0 means the policy never saw this difficulty."""


def _sums(digits: int, taught: float) -> Level:
    config = {"min_terms": 2, "max_terms": 2, "min_digits": digits, "max_digits": digits}
    return Level(f"sum of {digits} digits", "chain_sum", config, taught)


def _products(digits: int, taught: float) -> Level:
    config = {"min_terms": 2, "max_terms": 2, "min_digits": digits, "max_digits": digits}
    return Level(f"product of {digits} digits", "products", config, taught)


LEVELS = (
    _sums(2, 0.12),
    _sums(3, 0.22),
    _sums(4, 0.26),
    _sums(5, 0.30),
    _sums(6, 0.0),
    _products(1, 0.05),
    _products(2, 0.05),
    _products(3, 0.0),
)


@dataclass(frozen=True, slots=True)
class Problem:
    """A reasoning-gym entry, asked the short way: ``361 - 220 =`` instead of a sentence around it."""

    level: Level
    entry: dict[str, Any]

    @property
    def text(self) -> str:
        return f"{self.expression} ="

    @property
    def expression(self) -> str:
        return str(self.entry["metadata"]["expression"])

    @property
    def is_held_out(self) -> bool:
        return hashlib.blake2b(self.expression.encode(), digest_size=1).digest()[0] % HELD_OUT_SHARE == 0

    def as_prompt(self) -> dict[str, Any]:
        """The row that ``POST /v1/prompts`` takes; reasoning-gym's own scorer judges it."""
        entry = {"question": self.entry["question"], "answer": self.entry["answer"], "metadata": {}}
        return {
            "prompt": self.text,
            "reference": self.entry["answer"],
            "verifier": "reasoning_gym",
            "metadata": {"task": self.level.task, "level": self.level.name, "entry": entry},
        }


def problems(level: Level, *, seed: int, held_out: bool) -> Iterator[Problem]:
    """Endless problems of one level, from one side of the split; the same ones for the same seed.

    Problems repeat where the level holds only a few (one-digit products).
    """
    for block in count():
        source = reasoning_gym.create_dataset(level.task, seed=seed * 100_003 + block, size=1_000, **level.config)
        for entry in source:
            problem = Problem(level, entry)
            if problem.is_held_out == held_out:
                yield problem


def distinct(level: Level, size: int, *, seed: int, held_out: bool) -> list[Problem]:
    """Up to `size` different problems of a level; fewer when a small level runs out."""
    found: dict[str, Problem] = {}
    for problem in islice(problems(level, seed=seed, held_out=held_out), 50 * size):
        found.setdefault(problem.text, problem)
        if len(found) == size:
            break
    return list(found.values())


def worked_sum(problem: Problem) -> str:
    """The column-by-column working of a two-term sum, lowest digit first.

    ``57 + 68`` becomes ``7+8=15,5+6+1=12;``; a subtraction borrows: ``52 - 17`` becomes ``2-7=-5,5-1-1=3;``.
    A difference below zero is worked the other way round after a leading ``~``.
    """
    left, sign, right = problem.expression.split(" ")
    if sign == "+":
        return _columns(left, right, "+")
    if int(left) >= int(right):
        return _columns(left, right, "-")
    return "~" + _columns(right, left, "-")


def _columns(upper: str, lower: str, sign: str) -> str:
    width = max(len(upper), len(lower))
    carry = 0
    columns = []
    for a, b in zip(reversed(upper.zfill(width)), reversed(lower.zfill(width)), strict=True):
        total = int(a) + carry + int(b) if sign == "+" else int(a) - carry - int(b)
        columns.append(f"{a}{sign}{b}" + (f"{sign}1" if carry else "") + f"={total}")
        carry = int(total > 9 or total < 0)
    return ",".join(columns) + ";"
