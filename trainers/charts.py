"""Charts: of the demo, of a replay, of a report."""

from itertools import product
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

EASY, HARD, INFORMATIVE, PLAIN = "#8fb339", "#b5483a", "#2f6690", "#9aa5b1"


def draw_charts(report: dict[str, Any], folder: Path) -> None:
    """Writes funnel.png, pass_rates.png and greso_skips.png."""
    for name, draw in (("funnel", _funnel), ("pass_rates", _pass_rates), ("greso_skips", _skips)):
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        draw(axes, report)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / f"{name}.png", dpi=120)
        plt.close(figure)


def _funnel(axes: Axes, report: dict[str, Any]) -> None:
    f = report["funnel"]
    bars = {
        "considered": (f["considered"], PLAIN),
        "skipped, easy": (f["skipped_easy"], EASY),
        "skipped, hard": (f["skipped_hard"], HARD),
        "sampled": (f["sampled"], PLAIN),
        "zero variance, easy": (f["easy"], EASY),
        "zero variance, hard": (f["hard"], HARD),
        "informative": (f["informative"], INFORMATIVE),
    }
    drawn = axes.barh(list(bars), [n for n, _ in bars.values()], color=[colour for _, colour in bars.values()])
    axes.bar_label(drawn, padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("visits")
    axes.set_title("From visits to informative groups")


def _pass_rates(axes: Axes, report: dict[str, Any]) -> None:
    rates = [report["pass_rates_before"], report["pass_rates_after"]]
    axes.hist(rates, bins=9, range=(0, 1), color=[PLAIN, INFORMATIVE], label=["policy 1", "policy 2"])
    axes.set_xlabel("pass rate of a prompt's first group")
    axes.set_ylabel("prompts")
    axes.set_title("Pass rates before and after DPO")
    axes.legend(frameon=False)


def _skips(axes: Axes, report: dict[str, Any]) -> None:
    epochs = report["epochs"]
    passes = [epoch["epoch"] + 1 for epoch in epochs]
    easy = [epoch["skipped_easy"] / epoch["considered"] for epoch in epochs]
    hard = [epoch["skipped_hard"] / epoch["considered"] for epoch in epochs]
    axes.bar(passes, easy, color=EASY, label="easy")
    axes.bar(passes, hard, bottom=easy, color=HARD, label="hard")
    axes.set_xticks(passes)
    axes.set_ylim(0, 1)
    axes.set_xlabel("visit of each prompt")
    axes.set_ylabel("share skipped")
    axes.set_title("What GRESO did not sample again")
    axes.legend(frameon=False)


def draw_replay(report: dict[str, Any], path: Path) -> None:
    """Precision against recall of every selector of a replay, with intervals."""
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for one in report["selectors"]:
        recall, precision = one["recall"], one["precision"]
        spread = [[precision["mean"] - precision["low"]], [precision["high"] - precision["mean"]]]
        axes.errorbar([recall["mean"]], [precision["mean"]], yerr=spread, fmt="o", label=one["selector"]["kind"])
    axes.set_xlabel("recall: informative visits that are sampled")
    axes.set_ylabel("precision: sampled visits that are informative")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_informativeness(rows: list[dict[str, Any]], path: Path) -> None:
    """Pass rates of every policy version, how its entropies move from version to version, and what a group costs."""
    versions = [row for row in rows if row["policy_version"] is not None]
    figure, (rates, entropies, costs) = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    for row in versions:
        share = [count / max(1, row["groups"]) for count in row["pass_rate_histogram"]]
        label = f"{row['run']}, version {row['policy_version']}"
        rates.plot([(b + 0.5) / 10 for b in range(10)], share, marker="o", label=label)
    rates.set_xlabel("mean reward of a group")
    rates.set_ylabel("share of groups")
    _by_version(entropies, versions, ("outcome_entropy", "outcome_entropy_of_pairs", "token_entropy"), "nats")
    priced = any(row["price_per_informative_group"] is not None for row in versions)
    cost = "price_per_informative_group" if priced else "tokens_per_informative_group"
    _by_version(costs, versions, (cost,), cost.replace("_", " "))
    for axes in (rates, entropies, costs):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _by_version(axes: Axes, versions: list[dict[str, Any]], fields: tuple[str, ...], unit: str) -> None:
    """A line for each field of each run."""
    runs = dict.fromkeys(row["run"] for row in versions)
    for run, field in product(runs, fields):
        of_run = [row for row in versions if row["run"] == run and row[field] is not None]
        label = field.replace("_", " ") + (f", {run}" if len(runs) > 1 else "")
        axes.plot([row["policy_version"] for row in of_run], [row[field] for row in of_run], marker="o", label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("policy version")
    axes.set_ylabel(unit)
