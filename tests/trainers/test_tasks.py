"""The problems the embedded policy is taught, sampled and measured on."""

from itertools import islice

import pytest

from trainers.sft import SftRun, completion, corpus
from trainers.tasks import LEVELS, Level, Problem, distinct, problems, worked_sum

SUMS = [level for level in LEVELS if level.task == "chain_sum"]
by_name = pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)


@by_name
def test_the_same_seed_draws_the_same_problems(level: Level) -> None:
    first, again = ([p.text for p in distinct(level, 20, seed=3, held_out=False)] for _ in range(2))

    assert first == again
    assert len(set(first)) == len(first)


@by_name
def test_no_problem_is_on_both_sides_of_the_split_whatever_the_seed(level: Level) -> None:
    taught = {p.text for p in distinct(level, 200, seed=0, held_out=False)}
    held_out = {p.text for p in distinct(level, 200, seed=1, held_out=True)}

    assert taught
    assert held_out
    assert taught & held_out == set()


def test_the_corpus_never_shows_a_held_out_problem() -> None:
    held_out = {p.text for level in LEVELS for p in distinct(level, 200, seed=0, held_out=True)}

    shown = {prompt for prompt, _ in islice(corpus(SftRun(out=None, seed=7)), 3000)}  # type: ignore[arg-type]

    assert shown & held_out == set()


@pytest.mark.parametrize("level", SUMS, ids=lambda level: level.name)
def test_a_working_adds_up_to_the_answer(level: Level) -> None:
    for problem in islice(problems(level, seed=11, held_out=False), 300):
        assert value_of(worked_sum(problem)) == int(problem.entry["answer"])


def value_of(working: str) -> int:
    """Reads the answer off the columns: each says what it leaves, and what it carries goes into the next."""
    columns = [int(column.rpartition("=")[2]) for column in working.strip("~;").split(",")]
    digits = [column % 10 for column in columns[:-1]] + [columns[-1]]
    value = sum(digit * 10**place for place, digit in enumerate(digits))
    return -value if working.startswith("~") else value


def test_every_completion_ends_with_the_tagged_answer() -> None:
    problem = Problem(SUMS[0], {"answer": "28", "metadata": {"expression": "12 + 16"}})

    assert completion(problem, worked=False) == "<answer>28</answer>"
    assert completion(problem, worked=True) == "2+6=8,1+1=2;<answer>28</answer>"
