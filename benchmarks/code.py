"""What judging code costs, clean and under attack; and whether it finds what others found: HumanEval's own solutions,
and the 100 samples for each of its problems that github.com/microsoft/CodeT publishes of CodeGen-16B (temperature 0.8).
"""

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import comb
from pathlib import Path
from statistics import fmean

from benchmarks.labelled import rows_of
from benchmarks.report import Figure, spread
from benchmarks.verify import WORKERS, judge_all
from curation.records import Outcome, Prompt, Verdict
from service.verifiers.worker import Limits

LIMITS = Limits(wall_seconds=60.0, cpu_seconds=5.0, memory_bytes=2 << 30)
ITEMS = 10_000
GROUP = 8
HOSTILE_SHARE = 0.01
SECONDS = 10
"""Of wall clock for one program."""
STOPPED = frozenset({Outcome.TIMEOUT, Outcome.ERROR})
REFUSED = frozenset({Outcome.SCORED})
"""What it asks for does not exist, so it raises: wrong."""


@dataclass(frozen=True, slots=True)
class Attack:
    code: str
    ends: frozenset[Outcome]
    seconds: float = 0.0
    """That it takes a worker, if nothing but its limit stops it."""


ATTACKS = (
    Attack("while True: pass", STOPPED, 5.0),
    Attack("import time; time.sleep(1000)", STOPPED, SECONDS),
    Attack("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", STOPPED, SECONDS),
    Attack("def add(a, b): return 'x' * (50 << 20)", STOPPED),
    Attack("while True: print('x' * 1000)", STOPPED, 5.0),
    Attack("held = bytearray(4 << 30)", STOPPED | REFUSED),
    Attack("open('/etc/shadow').read()", REFUSED),
    Attack("import socket; socket.create_connection(('127.0.0.1', 80), 2)", REFUSED),
)


def run(data: Path | None) -> dict[str, Figure]:
    """`clean_milliseconds`: wall clock of one program with three tests, on all cores. `hostile_ideal_ratio`: the ideal
    wall time, clean programs as measured and hostile ones for as long as their limit lets them, over ours. `lost`:
    programs with another verdict than the right one. With `data`, what `_published` says."""
    clean = [list(_group(random.Random(n), 0.0)) for n in range(ITEMS // GROUP)]
    attacked = [list(_group(random.Random(n), HOSTILE_SHARE)) for n in range(ITEMS // GROUP)]
    clean_seconds, lost = _timed(clean)
    seconds, lost_under_attack = _timed(attacked)
    hostile = [said for group in attacked for said in group if isinstance(said, Attack)]
    ideal = clean_seconds * (1 - len(hostile) / ITEMS) + sum(attack.seconds for attack in hostile) / WORKERS
    return {
        "clean_milliseconds": spread([1000 * clean_seconds / ITEMS], "ms"),
        "hostile": spread([len(hostile)], f"of {ITEMS}"),
        "hostile_seconds": spread([seconds], "s"),
        "hostile_ideal_ratio": spread([ideal / seconds], "x"),
        "lost": spread([lost + lost_under_attack], "items"),
        **(_published(data) if data else {}),
    }


# ---- clean and under attack


def _group(rng: random.Random, hostile: float) -> Iterator[bool | Attack]:
    """Whether a sum is right, or an attack in its place."""
    for _ in range(GROUP):
        yield rng.choice(ATTACKS) if rng.random() < hostile else rng.random() < 2 / 3


def _timed(groups: list[list[bool | Attack]]) -> tuple[float, int]:
    """(seconds, verdicts that are not the right ones)"""
    tests = {"test_list": [f"assert add({n}, 2) == {n + 2}" for n in range(3)]}
    asked = [
        (Prompt("p", "Add.", "", f"code?seconds={SECONDS}", tests), [_program(said, n) for n, said in enumerate(group)])
        for group in groups
    ]
    started = time.perf_counter()
    judged = asyncio.run(judge_all(asked, LIMITS))
    seconds = time.perf_counter() - started
    pairs = [pair for group, verdicts in zip(groups, judged, strict=True) for pair in zip(group, verdicts, strict=True)]
    return seconds, sum(not _is_expected(said, verdict) for said, verdict in pairs)


def _program(said: bool | Attack, number: int) -> str:
    code = said.code if isinstance(said, Attack) else f"def add(a, b):\n    return a + b + {int(not said)}"
    return f"# attempt {number}\n{code}"


def _is_expected(said: bool | Attack, verdict: Verdict) -> bool:
    if isinstance(said, Attack):
        return verdict.outcome in said.ends and not verdict.reward
    return verdict.reward == float(said)


# ---- published samples


def _published(data: Path) -> dict[str, Figure]:
    """`canonical`: right ones of the solutions that come with the problems. `pass_at_k`: unbiased, over all samples,
    where one without a verdict counts as not passed. `milliseconds`: wall clock per sample, on all cores."""
    tests = {row["task_id"]: row for row in rows_of(data / "humaneval/HumanEval.jsonl.gz")}
    codegen = data / "rollouts_humaneval_codegen16b_x100"
    samples = {row["prompt"]: row["samples"] for row in rows_of(codegen / "samples.jsonl.gz")}
    problems = list(rows_of(codegen / "problems.jsonl"))

    solutions = [(_prompt(row["prompt"], row), [row["canonical_solution"]]) for row in tests.values()]
    canonical = asyncio.run(judge_all(solutions, LIMITS))
    groups = [(_prompt(row["prompt"], tests[row["task_id"]]), samples[row["prompt"]]) for row in problems]
    started = time.perf_counter()
    sampled = asyncio.run(judge_all(groups, LIMITS))
    seconds = time.perf_counter() - started
    flat = [verdict for group in sampled for verdict in group]
    right = [(len(group), sum(v.reward == 1.0 for v in group)) for group in sampled]
    return {
        "canonical": spread([sum(v.reward == 1.0 for [v] in canonical)], f"of {len(canonical)}"),
        **{f"pass_at_{k}": spread([fmean(_pass_at(k, *counts) for counts in right)], "share") for k in (1, 10, 100)},
        **{
            outcome.value: spread([sum(v.outcome is outcome for v in flat)], f"of {len(flat)}")
            for outcome in (Outcome.TIMEOUT, Outcome.ERROR, Outcome.NO_ANSWER)
        },
        "seconds": spread([seconds], "s"),
        "milliseconds": spread([1000 * seconds / len(flat)], "ms"),
    }


def _prompt(text: str, problem: dict[str, str]) -> Prompt:
    return Prompt("p", text, "", "code", {"entry_point": problem["entry_point"], "test": problem["test"]})


def _pass_at(k: int, n: int, right: int) -> float:
    """Chance that one of k samples drawn without replacement is right (arXiv 2107.03374, equation 1)."""
    return 1 - comb(n - right, k) / comb(n, k)
