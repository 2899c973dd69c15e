"""Verifiers: what counts as right, and that nothing a completion does can hurt its neighbours."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.processes import descendants
from curation.records import Outcome, Prompt, Verdict
from service.stages import VerifierFailed
from service.verifiers.base import Question, Rule
from service.verifiers.catalogue import Catalogue
from service.verifiers.panel import Panel
from service.verifiers.pool import Check, VerifierPool
from service.verifiers.worker import Limits, judge

HANGS = r"\boxed{9^{9^{9^9}}}"


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    pool = VerifierPool(workers=1, limits=Limits(wall_seconds=20.0, cpu_seconds=1.0, memory_bytes=2 << 30))
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def panel(pool: VerifierPool) -> Panel:
    return Panel(Catalogue(), pool)


def outcomes(panel: Panel, verifier: str, reference: str, *texts: str, **metadata: Any) -> list[Any]:
    """(outcome, reward) per text."""
    prompt = Prompt("p", "?", reference, verifier, metadata)
    return [(v.outcome, v.reward) for v in asyncio.run(panel.verify(prompt, texts))]


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
    panel: Panel, verifier: str, reference: str, text: str, expected: Any
) -> None:
    assert outcomes(panel, verifier, reference, text) == [expected]


def test_reasoning_gym_scores_by_its_own_rule(panel: Panel) -> None:
    entry = {"question": "361 - 220 =", "answer": "141", "metadata": {}}
    texts = ("<answer>141</answer>", "<answer>+141.0</answer>", "<answer>142</answer>", "<answer></answer>")

    judged = outcomes(panel, "reasoning_gym", "141", *texts, task="chain_sum", entry=entry)

    assert judged == [RIGHT, RIGHT, WRONG, NO_ANSWER]


@pytest.mark.parametrize("metadata", [{}, {"task": "no such task", "entry": {}}, {"task": "chain_sum"}])
def test_a_prompt_without_its_entry_is_at_fault_not_the_completion(panel: Panel, metadata: Any) -> None:
    judged = outcomes(panel, "reasoning_gym", "141", "<answer>141</answer>", **metadata)

    assert judged == [(Outcome.BAD_REFERENCE, None)]


def test_a_hanging_check_is_a_timeout_and_its_neighbours_keep_their_verdicts(panel: Panel) -> None:
    judged = outcomes(panel, "math", "18", "A: 18", HANGS, "A: 19", f"again {HANGS}", "A: 18")

    assert judged == [RIGHT, (Outcome.TIMEOUT, None), WRONG, (Outcome.TIMEOUT, None), RIGHT]


def test_a_timeout_is_a_matter_of_cpu_time_and_not_of_the_load(panel: Panel) -> None:
    [verdict] = asyncio.run(panel.verify(Prompt("p", "?", "18", "math"), [HANGS]))

    assert verdict.detail == "killed after 1 s of CPU"


def test_equal_completions_are_checked_once(panel: Panel, pool: VerifierPool) -> None:
    before = pool.restarts

    judged = outcomes(panel, "math", "18", *[HANGS] * 5, "A: 18")

    assert judged == [(Outcome.TIMEOUT, None)] * 5 + [RIGHT]
    assert pool.restarts == before + 1


def test_a_check_that_waits_ends_by_the_wall_clock() -> None:
    pool = VerifierPool(workers=1, limits=Limits(wall_seconds=0.5, cpu_seconds=5.0, memory_bytes=2 << 30))
    sleeper = Check("sleeper@1", "tests.service.rules_for_tests:sleeps", Question("?", ""))
    try:
        [late, fine] = asyncio.run(pool.verify(sleeper, ["100", "0"]))
    finally:
        pool.close()

    assert (late.outcome, late.detail) == (Outcome.TIMEOUT, "killed after 0.5 s")
    assert fine.reward == 1.0


@pytest.mark.parametrize(
    ("rule", "outcome", "detail"),
    [
        ("balloon", Outcome.ERROR, "out of memory"),
        ("segfaults", Outcome.ERROR, "exit status -11"),
        ("exits", Outcome.ERROR, "exit status 3"),
        ("not_there", Outcome.ERROR, "has no attribute 'not_there'"),
        ("says_none", Outcome.ERROR, "the verifier gave the reward None"),
    ],
)
def test_whatever_a_rule_does_to_its_worker_the_neighbours_are_judged(
    pool: VerifierPool, rule: str, outcome: Outcome, detail: str
) -> None:
    hostile = Check("hostile@1", f"tests.service.rules_for_tests:{rule}", Question("?", ""))
    kind = Check("kind@1", "tests.service.rules_for_tests:sleeps", Question("?", ""))

    async def both() -> list[list[Verdict]]:
        return await asyncio.gather(*(pool.verify(c, [t]) for c, t in ((kind, "0"), (hostile, "0"), (kind, "0.01"))))

    [[before], [judged], [after]] = asyncio.run(both())

    assert judged.outcome is outcome
    assert detail in judged.detail
    assert (before.reward, after.reward) == (1.0, 1.0)


def test_a_worker_is_replaced_after_many_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.verifiers.pool.CHECKS_PER_WORKER", 10)
    pool = VerifierPool(workers=1, limits=Limits(wall_seconds=5.0, cpu_seconds=5.0, memory_bytes=2 << 30))
    check = Check("kind@1", "tests.service.rules_for_tests:sleeps", Question("?", ""))
    seen = set()
    try:
        for number in range(5):
            asyncio.run(pool.verify(check, [f"0.000{number}{i}" for i in range(5)]))
            seen.update(pool.pids)
    finally:
        pool.close()

    assert (len(seen), pool.restarts) == (3, 0)


def test_closing_leaves_no_process(pool: VerifierPool) -> None:
    mine = VerifierPool(workers=2, limits=Limits(wall_seconds=5.0, cpu_seconds=5.0, memory_bytes=2 << 30))
    check = Check("kind@1", "tests.service.rules_for_tests:sleeps", Question("?", ""))

    async def use() -> None:
        await asyncio.gather(*(mine.verify(check, ["0.1"]) for _ in range(4)))

    asyncio.run(use())
    pids = mine.pids
    mine.close()

    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize(("kills", "outcome"), [(1, Outcome.SCORED), (2, Outcome.ERROR)])
def test_a_check_whose_worker_was_killed_is_tried_once_more(pool: VerifierPool, kills: int, outcome: Outcome) -> None:
    sleeper = Check("sleeper@1", "tests.service.rules_for_tests:sleeps", Question("?", ""))

    async def kill_while_it_sleeps() -> list[Verdict]:
        checking = asyncio.create_task(pool.verify(sleeper, ["0", "1.5", "0.01"]))
        killed: set[int] = set()
        while len(killed) < kills:
            await asyncio.sleep(0.7)
            os.kill(worker := next(pid for pid in pool.pids if pid not in killed), signal.SIGKILL)
            killed.add(worker)
        return await checking

    verdicts = asyncio.run(kill_while_it_sleeps())

    assert [v.outcome for v in verdicts] == [Outcome.SCORED, outcome, Outcome.SCORED]


@pytest.mark.parametrize("victim", ["worker", "its fork server"])
@pytest.mark.parametrize(("kills", "seconds"), [(3, 0.0), (1, 0.5)], ids=["while it loads", "while it judges"])
def test_whatever_a_worker_is_at_its_end_costs_no_verdict(victim: str, kills: int, seconds: float) -> None:
    mine = VerifierPool(workers=1, limits=Limits(wall_seconds=20.0, cpu_seconds=1.0, memory_bytes=2 << 30))
    sleeper = Check("sleeper@1", "tests.service.rules_for_tests:sleeps", Question("?", ""))
    killed: set[int] = set()
    try:
        with ThreadPoolExecutor(1) as thread:
            checking = thread.submit(lambda: asyncio.run(mine.verify(sleeper, ["1", "0"])))
            while len(killed) < kills and not checking.done():  # it may be faster than whoever kills
                for worker in set(mine.pids) - killed:
                    time.sleep(seconds)
                    parent = int(Path(f"/proc/{worker}/stat").read_text().split()[3])
                    os.kill(worker if victim == "worker" else parent, signal.SIGKILL)
                    killed.add(worker)
                time.sleep(0.001)
            verdicts = checking.result()
    finally:
        mine.close()

    assert [verdict.reward for verdict in verdicts] == [1.0, 1.0]


@pytest.mark.parametrize(("seconds", "outcome"), [(0.5, Outcome.SCORED), (5.0, Outcome.TIMEOUT)])
def test_a_worker_that_stands_still_costs_its_check_at_most(seconds: float, outcome: Outcome) -> None:
    mine = VerifierPool(workers=1, limits=Limits(wall_seconds=2.0, cpu_seconds=5.0, memory_bytes=2 << 30))
    sleeper = Check("sleeper@1", "tests.service.rules_for_tests:sleeps", Question("?", ""))

    async def stop_while_it_sleeps() -> tuple[int, list[Verdict]]:
        await mine.verify(sleeper, ["0"])
        [worker] = mine.pids
        checking = asyncio.create_task(mine.verify(sleeper, ["0.7", "0.01"]))
        await asyncio.sleep(0.3)
        os.kill(worker, signal.SIGSTOP)
        await asyncio.wait({checking}, timeout=seconds)
        if not checking.done():
            os.kill(worker, signal.SIGCONT)
        return worker, await checking

    try:
        worker, [stopped, behind] = asyncio.run(stop_while_it_sleeps())
        is_gone = not Path(f"/proc/{worker}").exists()
        was_replaced = worker not in mine.pids
    finally:
        mine.close()

    assert (stopped.outcome, stopped.reward) == (outcome, 1.0 if outcome is Outcome.SCORED else None)
    assert behind.reward == 1.0
    assert was_replaced == is_gone == (outcome is Outcome.TIMEOUT)


@pytest.mark.parametrize("rule", ["kills_itself", "exits"])
def test_nothing_is_left_of_hundreds_of_workers_that_ended(pool: VerifierPool, rule: str) -> None:
    hostile = Check("hostile@1", f"tests.service.rules_for_tests:{rule}", Question("?", ""))
    kind = Check("kind@1", "tests.service.rules_for_tests:sleeps", Question("?", ""))

    def kept() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(descendants(os.getpid()))

    asyncio.run(pool.verify(hostile, ["0"]))
    [before] = asyncio.run(pool.verify(kind, ["0"]))
    files, processes = kept()
    ended = pool.restarts
    verdicts = asyncio.run(pool.verify(hostile, [str(number) for number in range(150)]))
    [after] = asyncio.run(pool.verify(kind, ["0"]))

    assert {(verdict.outcome, verdict.reward) for verdict in verdicts} == {(Outcome.ERROR, None)}
    assert pool.restarts - ended == 150 * (2 if rule == "kills_itself" else 1)  # who was killed is tried once more
    assert (before.reward, after.reward) == (1.0, 1.0)
    assert kept() == (files, processes)


def test_many_groups_at_once_keep_order_and_identity(panel: Panel) -> None:
    async def all_at_once() -> Any:
        prompts = [Prompt(str(i), "?", str(i), "numeric") for i in range(50)]
        return await asyncio.gather(*(panel.verify(p, [str(i), str(i + 1)]) for i, p in enumerate(prompts)))

    verdicts = asyncio.run(all_at_once())

    assert [[v.reward for v in group] for group in verdicts] == [[1.0, 0.0]] * 50


def test_an_unknown_verifier_is_no_verdict_at_all(panel: Panel) -> None:
    with pytest.raises(VerifierFailed, match="vibes"):
        outcomes(panel, "vibes", "18", "18")


def raises(error: Exception) -> Rule:
    def rule(question: Question, text: str) -> tuple[float, str]:
        raise error

    return rule


@pytest.mark.parametrize("error", [ValueError("x"), MemoryError(), RecursionError(), KeyError("x")])
def test_whatever_a_rule_raises_is_an_error_and_never_a_zero(error: Exception) -> None:
    judged = judge(raises(error), Question("?", "18"), "18")

    assert (judged.outcome, judged.reward) == (Outcome.ERROR, None)


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -0.1, 1.1, 1e308, None, "1", True])
def test_a_reward_that_is_none_is_an_error(reward: Any) -> None:
    judged = judge(lambda question, text: (reward, ""), Question("?", "18"), "18")

    assert (judged.outcome, judged.reward) == (Outcome.ERROR, None)


HOSTILE = {
    "a tower of powers": r"\boxed{9^{9^{9^{9}}}}",
    "a large power": r"\boxed{10^{10^{10}}}",
    "a factorial": r"\boxed{100000000!}",
    "a binomial": r"\boxed{\binom{10^9}{5\cdot10^8}}",
    "a long sum": r"\boxed{\sum_{k=1}^{10^7} k!}",
    "100,000 digits": r"\boxed{" + "7" * 100_000 + "}",
    "nested braces": r"\boxed{" + "{" * 5000 + "18" + "}" * 5000 + "}",
    "nested fractions": r"\boxed{" + r"\frac{1}{" * 400 + "2" + "}" * 400 + "}",
    "a megabyte of words": "so " * 350_000,
    "a megabyte of numbers": "12 " * 350_000,
    "a long chain": r"$" + "a=" * 20_000 + "17$",
    "a differential equation": r"$ml\ddot{\theta}(t)-mg\sin\theta(t)=\frac{d}{dt}\left(\dot{\theta}(t)\right)$",
}


def test_hostile_completions_are_never_right_and_their_neighbours_are_judged(panel: Panel) -> None:
    judged = outcomes(panel, "math", "18", *(t for text in HOSTILE.values() for t in (text, f"so {text} A: 18"[-4:])))

    hostile, kind = judged[::2], judged[1::2]
    assert kind == [RIGHT] * len(HOSTILE)
    assert [name for name, (_, reward) in zip(HOSTILE, hostile, strict=True) if reward == 1.0] == []
    assert hostile[0] == hostile[2] == (Outcome.TIMEOUT, None)


def test_verdicts_do_not_depend_on_the_load_of_the_machine(panel: Panel) -> None:
    completions = [rf"Attempt {i}: \boxed{{\frac{{{i}}}{{4}}}}" for i in range(150)]
    completions[50], completions[100] = HANGS, rf"again {HANGS}"

    quiet = outcomes(panel, "math", "9/2", *completions)
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        loaded = outcomes(panel, "math", "9/2", *completions)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()

    assert loaded == quiet
    assert quiet.count(RIGHT) == 1
    assert quiet.count((Outcome.TIMEOUT, None)) == 2


def test_a_few_that_hang_crash_and_balloon_cost_nobody_else_a_verdict_and_keep_the_loop_free() -> None:
    """`refinery bench verify` does it with ten thousand."""
    pool = VerifierPool(workers=2, limits=Limits(wall_seconds=20.0, cpu_seconds=1.0, memory_bytes=2 << 30))
    panel = Panel(Catalogue(), pool)
    texts = [[rf"Attempt {i}: \boxed{{{n + i % 2}}}" for i in range(8)] for n in range(60)]
    texts[20][3], texts[40][5] = HANGS, rf"again {HANGS}"
    hostile = [
        Check(f"{rule}@1", f"tests.service.rules_for_tests:{rule}", Question("?", ""))
        for rule in ("segfaults", "balloon", "exits")
    ]
    busy: list[float] = []

    async def tick() -> None:
        """How long the loop computes from one turn of it to the next, whatever else the machine does."""
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.005)
            busy.append(time.thread_time() - before)

    async def verify() -> tuple[list[list[Verdict]], list[list[Verdict]]]:
        await panel.verify(Prompt("p", "?", "1", "math"), ["A: 1"])  # whatever is imported first is by then
        ticking = asyncio.create_task(tick())
        groups = [panel.verify(Prompt(str(n), "?", str(n), "math"), of) for n, of in enumerate(texts)]
        attacks = [pool.verify(check, ["0"], "attacker") for check in hostile]
        judged = await asyncio.gather(*groups), await asyncio.gather(*attacks)
        ticking.cancel()
        return judged

    try:
        judged, attacked = asyncio.run(verify())
    finally:
        pool.close()

    told = [[(verdict.outcome, verdict.reward) for verdict in group] for group in judged]
    expected = [[RIGHT, WRONG] * 4 for _ in texts]
    expected[20][3] = expected[40][5] = (Outcome.TIMEOUT, None)
    assert told == expected
    assert [verdict.outcome for [verdict] in attacked] == [Outcome.ERROR] * 3
    assert all(verdict.detail for [verdict] in attacked)
    assert max(busy) < 0.1


@pytest.mark.parametrize(
    ("verifier", "reference", "text", "expected"),
    [
        ("math?literal=true", "241", "<answer>70+75+96</answer>", WRONG),
        ("math?literal=true", "241", r"\boxed{70+75+96}", WRONG),
        ("math?literal=true", "241", r"\boxed{70+75+96 = 241}", RIGHT),
        ("math?literal=true", "241", r"\boxed{241}", RIGHT),
        ("math?literal=true", "241", r"\boxed{241\text{ apples}}", RIGHT),
        ("math?literal=true", "241", r"\boxed{\$241.00}", RIGHT),
        ("math?literal=true", "1200", r"\boxed{1,200}", RIGHT),
        ("math?literal=true", "-3", r"\boxed{-3}", RIGHT),
        ("math?literal=true", "-3", r"\boxed{4-7}", WRONG),
        ("math?literal=true", "3/4", r"\boxed{\frac{3}{4}}", RIGHT),
        ("math?literal=true", r"\frac{3}{4}", r"\boxed{6/8}", RIGHT),
        ("math?literal=true", "8", r"\boxed{2^3}", WRONG),
        ("math?literal=true", "8", r"\boxed{2\cdot 4}", WRONG),
        ("math?literal=true", "8", r"\boxed{\sqrt{64}}", WRONG),
        ("math?literal=true", "120", r"\boxed{5!}", WRONG),
        ("math?literal=true", r"2\sqrt{113}", r"\boxed{\sqrt{452}}", RIGHT),
        ("math", "241", r"\boxed{70+75+96}", RIGHT),
        ("math?percent=true", "20", r"\boxed{0.2}", RIGHT),
        ("math?percent=true", "20", r"\boxed{2000}", RIGHT),
        ("math?percent=true", "20", r"\boxed{2}", WRONG),
        ("math", "20", r"\boxed{2000}", WRONG),
        ("math?tolerance=0.01", "100", r"\boxed{100.9}", RIGHT),
        ("math?tolerance=0.01", "100", r"\boxed{101.1}", WRONG),
        ("math", "100", r"\boxed{100.9}", WRONG),
        ("math?extract=boxed", "8", r"<answer>8</answer> \boxed{9}", WRONG),
        ("math?extract=answer", "8", r"<answer>8</answer> \boxed{9}", RIGHT),
        ("math?extract=answer", "8", r"so it is \boxed{8}", NO_ANSWER),
        ("math?extract=boxed", "8", "the answer is 8", NO_ANSWER),
        ("math?extract=boxed,last", "8", "the answer is 8", RIGHT),
        ("choice", "B", "<answer>B</answer>", RIGHT),
        ("choice", "B", r"it follows: \boxed{\text{B}}", RIGHT),
        ("choice", "B", "The answer is (B).", RIGHT),
        ("choice", "B", "The answer is B) because A is not", RIGHT),
        ("choice", "(B)", "**Answer: C**", WRONG),
        ("choice", "B", "A cat and I", NO_ANSWER),
        ("choice", "B", "thinking\n**B**\n", RIGHT),
        ("choice", "B", "(A) is silly, (B) is it", RIGHT),
        ("choice", "B", "I cannot say", NO_ANSWER),
        ("choice?letters=AB", "C", "(A)", (Outcome.BAD_REFERENCE, None)),
        ("3*numeric+1*exact", "8", "<answer>8.0</answer>", (Outcome.SCORED, 0.75)),
    ],
)
def test_options_change_what_counts_as_right(
    panel: Panel, verifier: str, reference: str, text: str, expected: Any
) -> None:
    assert outcomes(panel, verifier, reference, text) == [expected]


@pytest.mark.parametrize(
    ("text", "source"),
    [("<answer>8</answer>", "answer: 8"), (r"\boxed{8}", "boxed: 8"), ("the answer is 8", "last: 8")],
)
def test_a_verdict_says_where_the_answer_stood(panel: Panel, text: str, source: str) -> None:
    [verdict] = asyncio.run(panel.verify(Prompt("p", "?", "8", "math"), [text]))

    assert verdict.detail == source
