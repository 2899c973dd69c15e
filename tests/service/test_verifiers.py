"""Verifiers: what counts as right, and that nothing a completion does can hurt its neighbours."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from curation.records import Outcome, Prompt
from service.stages import VerifierFailed
from service.verifiers.base import Question, Rule
from service.verifiers.pool import VerifierPool
from service.verifiers.worker import judge

HANGS = r"\boxed{9^{9^{9^9}}}"


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    pool = VerifierPool(workers=1, seconds=2.0, memory_bytes=2 << 30)
    yield pool
    pool.close()


def outcomes(pool: VerifierPool, verifier: str, reference: str, *texts: str, **metadata: Any) -> list[Any]:
    """(outcome, reward) per text."""
    prompt = Prompt("p", "?", reference, verifier, metadata)
    return [(v.outcome, v.reward) for v in asyncio.run(pool.verify(prompt, texts))]


RIGHT, WRONG = (Outcome.SCORED, 1.0), (Outcome.SCORED, 0.0)
NO_ANSWER = (Outcome.NO_ANSWER, 0.0)


@pytest.mark.parametrize(
    ("verifier", "reference", "text", "expected"),
    [
        ("math", "18", "so she makes $18$", RIGHT),
        ("math", "18", "A: 19", WRONG),
        ("math", "18", "I do not know", NO_ANSWER),
        ("math", "18", "", NO_ANSWER),
        ("math", r"\frac12", "it is \\boxed{0.5}", RIGHT),
        # Bare golds that math-verify alone would misread.
        ("math", r"2\sqrt{113}", r"\boxed{2\sqrt{113}}", RIGHT),
        ("math", r"2\sqrt{113}", r"\boxed{2}", WRONG),
        ("math", r"1\frac45", r"\boxed{9/5}", RIGHT),
        ("math", "8", "first $3$, then <answer>8</answer>", RIGHT),
        ("exact", "forty two", "<answer> forty  two </answer>", RIGHT),
        ("exact", "forty two", "thinking\nforty two\n", RIGHT),
        ("exact", "forty two", "Forty two", WRONG),
        ("exact", "forty two", " \n ", NO_ANSWER),
        ("numeric", "1200", "<answer>1,200.0</answer>", RIGHT),
        ("numeric", "1200", "<answer>1201</answer>", WRONG),
        ("numeric", "145", "<answer>70+75</answer>", NO_ANSWER),
        ("numeric", "145", "<answer>NaN</answer>", NO_ANSWER),
        ("numeric", "145", "9" * 5000, NO_ANSWER),
        ("numeric", "many", "<answer>4</answer>", (Outcome.BAD_REFERENCE, None)),
    ],
)
def test_a_verdict_is_what_a_reader_would_say(
    pool: VerifierPool, verifier: str, reference: str, text: str, expected: Any
) -> None:
    assert outcomes(pool, verifier, reference, text) == [expected]


def test_reasoning_gym_scores_by_its_own_rule(pool: VerifierPool) -> None:
    entry = {"question": "361 - 220 =", "answer": "141", "metadata": {}}
    texts = ("<answer>141</answer>", "<answer>+141.0</answer>", "<answer>142</answer>", "<answer></answer>")

    judged = outcomes(pool, "reasoning_gym", "141", *texts, task="chain_sum", entry=entry)

    assert judged == [RIGHT, RIGHT, WRONG, NO_ANSWER]


@pytest.mark.parametrize("metadata", [{}, {"task": "no such task", "entry": {}}, {"task": "chain_sum"}])
def test_a_prompt_without_its_entry_is_at_fault_not_the_completion(pool: VerifierPool, metadata: Any) -> None:
    judged = outcomes(pool, "reasoning_gym", "141", "<answer>141</answer>", **metadata)

    assert judged == [(Outcome.BAD_REFERENCE, None)]


def test_a_hanging_check_is_a_timeout_and_its_neighbours_keep_their_verdicts(pool: VerifierPool) -> None:
    started = time.monotonic()

    judged = outcomes(pool, "math", "18", "A: 18", HANGS, "A: 19", HANGS, "A: 18")

    assert judged == [RIGHT, (Outcome.TIMEOUT, None), WRONG, (Outcome.TIMEOUT, None), RIGHT]
    assert time.monotonic() - started >= 4.0


def test_a_killed_worker_costs_one_verdict(pool: VerifierPool) -> None:
    prompt = Prompt("p", "?", "18", "math")

    async def kill_while_it_hangs() -> Any:
        checking = asyncio.create_task(pool.verify(prompt, ["A: 18", HANGS, "A: 18"]))
        await asyncio.sleep(1.0)
        [worker] = list(pool.pids)
        os.kill(worker, signal.SIGKILL)
        return await checking

    verdicts = asyncio.run(kill_while_it_hangs())

    assert [v.outcome for v in verdicts] == [Outcome.SCORED, Outcome.ERROR, Outcome.SCORED]


def test_many_groups_at_once_keep_order_and_identity(pool: VerifierPool) -> None:
    async def all_at_once() -> Any:
        prompts = [Prompt(str(i), "?", str(i), "numeric") for i in range(50)]
        return await asyncio.gather(*(pool.verify(p, [str(i), str(i + 1)]) for i, p in enumerate(prompts)))

    verdicts = asyncio.run(all_at_once())

    assert [[v.reward for v in group] for group in verdicts] == [[1.0, 0.0]] * 50


def test_an_unknown_verifier_is_no_verdict_at_all(pool: VerifierPool) -> None:
    with pytest.raises(VerifierFailed, match="vibes"):
        outcomes(pool, "vibes", "18", "18")


def raises(error: Exception) -> Rule:
    def rule(question: Question, text: str) -> tuple[float, str]:
        raise error

    return rule


@pytest.mark.parametrize("error", [ValueError("x"), MemoryError(), RecursionError(), KeyError("x")])
def test_whatever_a_rule_raises_is_an_error_and_never_a_zero(error: Exception) -> None:
    judged = judge(raises(error), Question("math", "18"), "18")

    assert (judged.outcome, judged.reward) == (Outcome.ERROR, None)


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -0.1, 1.1, None, "1", True])
def test_a_reward_that_is_none_is_an_error(reward: Any) -> None:
    judged = judge(lambda question, text: (reward, ""), Question("math", "18"), "18")

    assert (judged.outcome, judged.reward) == (Outcome.ERROR, None)
