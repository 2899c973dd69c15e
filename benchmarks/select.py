"""What selection and down-sampling cost, and what they save."""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean

import numpy as np

from benchmarks.pools import DRIFT, ORACLE, harvest, simulate
from benchmarks.report import Figure, spread
from curation.allocation import Fixed, Knapsack, Probe
from curation.pods import max_variance_many
from curation.replay import Recorded, Replayed, replay, then_of
from curation.selection import Batch, SelectorChoices
from curation.selectors.posterior import Posterior
from curation.selectors.ranking import Learnability, Mopps
from curation.selectors.simple import Band, Everything, Greso, Pools, RandomShare, Retire

GROUPS, GROUP_SIZE, KEEP = 100_000, 64, 16
REPEATS = 15
SEEDS = 20
FEW_SEEDS = 3
"""For selectors that stand beside."""
RELEASE = Greso(floor=0.01)
ROUNDS = Batch(groups=64, prompts=96, least=16)
FIXED_ROUNDS = Batch(groups=64, prompts=96, adaptive=False)
SMALL_ROUNDS = Batch(groups=64, prompts=96, least=1)
BESIDE: dict[str, SelectorChoices] = {
    "pools": Pools(),
    "pools_removed": Pools(hard_up_to=0, easy_from=1, keep_hard=0, keep_easy=0),
    "band": Band(),
    "retire": Retire(),
    "mopps": Mopps(),
    "learnability": Learnability(),
    "random": RandomShare(share=0.5),
}


def run(data: Path | None) -> dict[str, Figure]:
    """`pods_sort_ratio`: max-variance selection against numpy.sort of the same matrix, in turn. `..._prompts_per_step`
    and `oracle_ratio_...`, ours over the oracle: see `benchmarks.pools`. With `data`, a folder of recorded histories,
    `history_...`: see `_on_history`."""
    rng = np.random.default_rng(0)
    graded = rng.random((GROUPS, GROUP_SIZE))
    binary = rng.integers(0, 2, (GROUPS, GROUP_SIZE)).astype(np.float64)
    return {
        "pods_sort_ratio": _against_sort(graded),
        "pods_sort_ratio_binary": _against_sort(binary),
        **_on_pools(),
        **(_on_history(data / "reward_history/accuracy_by_visit.json") if data else {}),
    }


# ---- made-up pools


def _on_pools() -> dict[str, Figure]:
    figures = {
        "dynamic_sampling_prompts_per_step": _cost(Everything(), FIXED_ROUNDS, SEEDS),
        "dynamic_sampling_abs_prompts_per_step": _cost(Everything(), ROUNDS, SEEDS),
        "greso_prompts_per_step": _cost(RELEASE, ROUNDS, SEEDS),
        "greso_in_chunks_prompts_per_step": _cost(RELEASE, ROUNDS, SEEDS, chunk=8),
        "greso_drift_prompts_per_step": _cost(RELEASE, ROUNDS, SEEDS, DRIFT),
        "oracle_ratio_static": _cost(Posterior(), SMALL_ROUNDS, SEEDS, unit=ORACLE),
        "oracle_ratio_drift": _cost(Posterior(), SMALL_ROUNDS, SEEDS, DRIFT, unit=ORACLE),
    }
    for name, choice in BESIDE.items():
        figures[f"{name}_prompts_per_step"] = _cost(choice, ROUNDS, FEW_SEEDS)
        figures[f"{name}_drift_prompts_per_step"] = _cost(choice, ROUNDS, FEW_SEEDS, DRIFT)
    for allocation in (Fixed(), Probe(), Knapsack()):
        harvests = [harvest(allocation, seed=seed) for seed in range(FEW_SEEDS)]
        figures[f"{allocation.kind}_informative_per_thousand"] = spread([h.informative for h in harvests], "groups")
        figures[f"{allocation.kind}_value_per_thousand"] = spread([h.value for h in harvests], "p (1 - p)^2")
    for name, choice, batch in (("greso", RELEASE, ROUNDS), ("posterior", Posterior(), SMALL_ROUNDS)):
        found = [simulate(choice, batch, seed=seed, drift=DRIFT).found for seed in range(FEW_SEEDS)]
        figures[f"{name}_drift_found"] = spread(found, "share")
    return figures


def _cost(
    choice: SelectorChoices, batch: Batch, seeds: int, drift: float = 0.0, unit: float = 1.0, chunk: int = 1
) -> Figure:
    ended = [simulate(choice, batch, seed=seed, drift=drift, chunk=chunk) for seed in range(seeds)]
    costs = [cost.prompts_per_step / unit for cost in ended]
    return spread(costs, "prompts" if unit == 1.0 else "x")


# ---- recorded history


def _on_history(path: Path) -> dict[str, Figure]:
    """Precision and recall of every selector on all prompts. `history_precision_at_greso_recall`: our target is chosen
    on every second prompt, so that the recall there is GRESO's, and the precision is reported on the others. Beside it
    what both have there, and ours with the target that gives GRESO's recall there."""
    accuracies = json.loads(path.read_text())
    recorded = {prompt: [then_of(a, 8) for a in visits] for prompt, visits in sorted(accuracies.items(), key=_number)}
    ours, others = (dict(list(recorded.items())[start::2]) for start in (0, 1))
    wanted = fmean(replay(RELEASE, ours, seed=seed).recall for seed in range(FEW_SEEDS))
    target = _target_for(wanted, ours)
    chosen = [replay(Posterior(target=target, coverage=0.0), others, seed=seed) for seed in range(FEW_SEEDS)]
    greso = [replay(RELEASE, others, seed=seed) for seed in range(FEW_SEEDS)]
    greso_there = fmean(one.recall for one in greso)
    figures = {
        "history_target": spread([target], "share"),
        "history_precision_at_greso_recall": spread([one.precision for one in chosen], "share"),
        "history_recall_there": spread([one.recall for one in chosen], "share"),
        "history_precision_at_greso_recall_there": spread([_precision_at(greso_there, others)], "share"),
        "history_greso_precision_there": spread([one.precision for one in greso], "share"),
        "history_greso_recall_there": spread([one.recall for one in greso], "share"),
    }
    everyone: dict[str, SelectorChoices] = {
        "all": Everything(),
        "greso": RELEASE,
        "posterior": Posterior(target=target, coverage=0.0),
        **BESIDE,
    }
    for name, choice in everyone.items():
        figures |= _both(name, [replay(choice, recorded, seed=seed) for seed in range(FEW_SEEDS)])
    return figures


def _number(item: tuple[str, object]) -> int:
    return int(item[0])


def _both(name: str, replays: Iterable[Replayed]) -> dict[str, Figure]:
    replays = list(replays)
    return {
        f"history_{name}_precision": spread([one.precision for one in replays], "share"),
        f"history_{name}_recall": spread([one.recall for one in replays], "share"),
    }


def _precision_at(recall: float, recorded: Recorded) -> float:
    """Ours, at the highest target that has this recall here."""
    choice = Posterior(target=_target_for(recall, recorded), coverage=0.0)
    return fmean(replay(choice, recorded, seed=seed).precision for seed in range(FEW_SEEDS))


def _target_for(recall: float, recorded: Recorded) -> float:
    """The highest target, to 0.002, at which the recall is not below."""
    low, high = 0.5, 0.98
    while high - low > 0.002:
        middle = (low + high) / 2
        choice = Posterior(target=middle, coverage=0.0)
        enough = fmean(replay(choice, recorded, seed=seed).recall for seed in range(FEW_SEEDS)) >= recall
        low, high = (middle, high) if enough else (low, middle)
    return round(low, 3)


# ---- max-variance


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
