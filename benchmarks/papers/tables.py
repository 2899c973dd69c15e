"""What was found, for people: a page of tables and a chart for each experiment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.papers.arms import (
    GRPO_RATE,
    GRPO_TRIED,
    OFFLINE_DPO_RATE,
    OFFLINE_DPO_TRIED,
    SYNCED_DPO_RATE,
    SYNCED_DPO_TRIED,
    Experiment,
    Plan,
)
from benchmarks.papers.cells import Done, Point
from benchmarks.papers.claims import (
    Claim,
    Cost,
    Curves,
    best,
    compute,
    compute_shares,
    final,
    gains,
    leads,
    mean_of,
    race,
    rollouts,
    seconds,
    settled,
    share_of_best,
    share_of_gain,
)

QUICK = "**Made with `--quick`: these numbers only show that everything works, and mean nothing.**"
TITLES = {
    Experiment.GRESO: "GRESO: rollouts to equal accuracy",
    Experiment.PODS: "PODS: time to equal accuracy",
    Experiment.G2D: "G2D: accuracy for the compute",
    Experiment.SEMI_ONLINE: "Semi-online DPO: how old the generator may be",
}
AXES: dict[Experiment, tuple[str, Cost]] = {
    Experiment.GRESO: ("rollouts sampled", rollouts),
    Experiment.PODS: ("seconds of training", seconds),
    Experiment.G2D: ("tokens generated and trained", compute),
    Experiment.SEMI_ONLINE: ("rollouts sampled", rollouts),
}


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that a page tells."""

    plans: Mapping[Experiment, Plan]
    curves: Mapping[Experiment, Curves]
    claims: Sequence[Claim]
    cells: Sequence[Done]
    workers: int
    quick: bool
    made_at: datetime


def page(found: Findings) -> str:
    commits = sorted({str(done.commit) for done in found.cells})
    machines = {", ".join(f"{name} {value}" for name, value in done.machine.items()) for done in found.cells}
    spent = sum(done.seconds for done in found.cells)
    head = [
        "# Four papers, with this service and this policy",
        *([QUICK] if found.quick else []),
        f"{found.made_at:%Y-%m-%d}, commit {', '.join(commits)}; {'; '.join(sorted(machines))}. {len(found.cells)} "
        f"cells, {spent / 3600:.1f} hours in all, {found.workers} at a time: they share the cores, so seconds compare "
        "arms and nothing else.",
        "Every arm starts from the same policy. Accuracy is the share of right greedy answers to held-out prompts, the "
        "mean of the last three evaluations. Intervals are 95 % of a bootstrap over seeds.",
        f"Learning rates, for all arms alike: GRPO {GRPO_RATE:g} of {_rates(GRPO_TRIED)}; DPO of G2D "
        f"{OFFLINE_DPO_RATE:g} of {_rates(OFFLINE_DPO_TRIED)}; DPO between syncs {SYNCED_DPO_RATE:g} of "
        f"{_rates(SYNCED_DPO_TRIED)}; searched for once with a seed of its own.",
        "## Claims",
        _table(
            ["claim", "figure", "verdict", "why"],
            [[claim.text, str(claim.interval or "-"), f"**{claim.verdict}**", claim.why] for claim in found.claims],
        ),
    ]
    return "\n\n".join([*head, *(_section(experiment, found) for experiment in found.curves)]) + "\n"


def _section(experiment: Experiment, found: Findings) -> str:
    curves, plan = found.curves[experiment], found.plans[experiment]
    more = {
        Experiment.GRESO: _races("dynamic_sampling", share_of_gain, {"rollouts": rollouts, "seconds": seconds}),
        Experiment.PODS: _races(
            "grpo", share_of_best, {"seconds": seconds, "generated tokens": _tokens, "rollouts": rollouts}
        ),
        Experiment.G2D: _computes,
        Experiment.SEMI_ONLINE: _leads,
    }[experiment](curves)
    names = list(next(iter(more.values())))
    rows = [[arm, *_spent(curves, arm), *(more[arm].get(name, "") for name in names)] for arm in curves]
    columns = ["arm", "seeds", "accuracy before", "at the end", "best", "rollouts", "generated", "trained", "seconds"]
    return "\n\n".join(
        [
            f"## {TITLES[experiment]}",
            _table([*columns, *names], rows),
            f"![{experiment}]({experiment}.png)",
            _table(["arm", "options"], [[arm, _options(plan, arm)] for arm in curves]),
            f"Prompts: {_pool(plan)}; measured on {plan.held_out} others of each.",
        ]
    )


def _spent(curves: Curves, arm: str) -> list[str]:
    of_arm = curves[arm].values()
    ends = [curve[-1] for curve in of_arm]
    return [
        str(len(ends)),
        _spread([curve[0].accuracy for curve in of_arm]) if all(len(curve) > 1 for curve in of_arm) else "-",
        _spread([final(curve).accuracy for curve in of_arm]),
        _spread([best(curve).accuracy for curve in of_arm]),
        *(f"{fmean(cost(end) for end in ends):,.0f}" for cost in (rollouts, _tokens, _trained, seconds)),
    ]


def _races(
    yardstick: str, wanted: Callable[[tuple[Point, ...]], float], costs: Mapping[str, Cost]
) -> Callable[[Curves], dict[str, dict[str, str]]]:
    def told(curves: Curves) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for arm in curves:
            races = {name: race(curves, arm, yardstick, wanted, cost) for name, cost in costs.items()}
            found[arm] = {f"times fewer {name}": str(one.interval or "-") for name, one in races.items()}
            one = next(iter(races.values()))
            found[arm]["got there"] = f"{len(one.reached)} of {len(one.seeds)}"
        return found

    return told


def _computes(curves: Curves) -> dict[str, dict[str, str]]:
    return {
        arm: {
            "compute, of GRPO's to its best": f"{fmean(compute_shares(curves, arm)):.2f}",
            "accuracy less GRPO's best": str(mean_of(gains(curves, arm, "grpo"))),
        }
        for arm in curves
    }


def _leads(curves: Curves) -> dict[str, dict[str, str]]:
    return {
        arm: {
            "less online": str(mean_of(leads(curves, arm, "s_1"))),
            "less offline": str(mean_of(leads(curves, arm, "s_inf"))),
        }
        for arm in curves
    }


def _options(plan: Plan, arm: str) -> str:
    told = plan.arms[arm]
    options = " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in told.options.items())
    of_run: dict[str, Any] = {"n": told.n, "selector": dict(told.selector), "batch": dict(told.batch)}
    return f"`train {told.verb} {options}` on a run with `{of_run}`"


def _rates(tried: Sequence[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in tried)


def _pool(plan: Plan) -> str:
    return ", ".join(f"{size} x {level}" for level, size in plan.pool.items())


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _tokens(point: Point) -> float:
    return point.tokens


def _trained(point: Point) -> float:
    return point.trained_tokens


# ---- charts


def draw(experiment: Experiment, curves: Curves, path: Path) -> None:
    """Accuracy against what it cost: the mean of the seeds, and from the lowest to the highest."""
    label, cost = AXES[experiment]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for arm, of_seeds in curves.items():
        _line(axes, arm, [settled(curve) for curve in of_seeds.values()], cost)
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy on held-out prompts")
    axes.set_title(TITLES[experiment])
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _line(axes: Axes, arm: str, curves: Sequence[tuple[Point, ...]], cost: Cost) -> None:
    places = list(zip(*curves, strict=True))
    spent = [fmean(cost(point) for point in points) for points in places]
    accuracies = [[point.accuracy for point in points] for points in places]
    means = [fmean(values) for values in accuracies]
    if len(places) == 1:
        below, above = means[0] - min(accuracies[0]), max(accuracies[0]) - means[0]
        axes.errorbar(spent, means, yerr=[[below], [above]], fmt="o", label=arm)
        return
    [drawn] = axes.plot(spent, means, label=arm)
    lows, highs = [min(values) for values in accuracies], [max(values) for values in accuracies]
    axes.fill_between(spent, lows, highs, color=drawn.get_color(), alpha=0.15, linewidth=0)
