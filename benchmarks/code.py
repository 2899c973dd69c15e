"""What judging code costs, and whether it finds what others found: HumanEval's own solutions, and the 100 samples for
each of its problems that github.com/microsoft/CodeT publishes of CodeGen-16B (temperature 0.8)."""

import asyncio
import time
from math import comb
from pathlib import Path
from statistics import fmean

from benchmarks.labelled import rows_of
from benchmarks.report import Figure, spread
from benchmarks.verify import judge_all
from curation.records import Outcome, Prompt
from service.verifiers.worker import Limits

LIMITS = Limits(wall_seconds=60.0, cpu_seconds=5.0, memory_bytes=2 << 30)


def run(data: Path) -> dict[str, Figure]:
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
