"""What selection and down-sampling cost, and what they save."""

import time
from collections.abc import Callable

import numpy as np

from benchmarks.report import Figure, spread
from benchmarks.static_pool import ORACLE, simulate
from curation.pods import max_variance_many
from curation.selection import Batch, Greso

GROUPS, GROUP_SIZE, KEEP = 100_000, 64, 16
REPEATS = 15
SEEDS = 5


def run() -> dict[str, Figure]:
    """`pods_sort_ratio`: max-variance selection against numpy.sort of the same matrix, in turn.
    `greso_prompts_per_step`, `greso_oracle_ratio`: see `benchmarks.static_pool`; with the release's floor."""
    costs = [
        simulate(Greso(floor=0.01), Batch(groups=64, prompts=96, least=16), seed=seed).prompts_per_step
        for seed in range(SEEDS)
    ]
    rng = np.random.default_rng(0)
    graded = rng.random((GROUPS, GROUP_SIZE))
    binary = rng.integers(0, 2, (GROUPS, GROUP_SIZE)).astype(np.float64)
    return {
        "pods_sort_ratio": _against_sort(graded),
        "pods_sort_ratio_binary": _against_sort(binary),
        "greso_prompts_per_step": spread(costs, "prompts"),
        "greso_oracle_ratio": spread([cost / ORACLE for cost in costs], "x"),
    }


def _against_sort(rewards_PG: np.ndarray) -> Figure:
    ratios = []
    for _ in range(REPEATS):
        sorting = _seconds(lambda: np.sort(rewards_PG, axis=1))
        selecting = _seconds(lambda: max_variance_many(rewards_PG, KEEP))
        ratios.append(selecting / sorting)
    return spread(ratios[2:], "x")  # the first two pay for fresh memory


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
