"""The verbs ``report`` and ``warmup``: how much a run or a dataset can teach, policy version by policy version."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trainers.options import DEFAULT_SERVICE, AsJson, Service, service_at, written

LINES = {
    "groups": "groups",
    "informative": "informative",
    "easy": "all right",
    "hard": "all wrong",
    "mean_reward": "mean reward",
    "outcome_entropy": "outcome entropy (nats)",
    "outcome_entropy_of_pairs": "the same of informative groups",
    "goldilocks_share": "mean reward within 0.2 to 0.8",
    "wasted_again": "P(zero variance | zero variance before)",
    "wasted_after_informative": "P(zero variance | informative before)",
    "unique_answer_share": "different answers / answers",
    "duplicate_completion_share": "completions that repeat another",
    "tokens_right": "tokens of right completions",
    "tokens_wrong": "tokens of wrong completions",
    "token_entropy": "token entropy (nats)",
    "tokens_per_informative_group": "tokens per informative group",
    "price_per_informative_group": "price per informative group",
}


def register(app: typer.Typer) -> None:
    app.command()(report)
    app.command()(warmup)


def report(
    name: Annotated[str, typer.Argument(help="A run, or a dataset as NAME@VERSION; latest is a version.")],
    price: Annotated[float | None, typer.Option(min=0, help="Of a million sampled tokens.")] = None,
    chart: Annotated[Path | None, typer.Option(help="Draws it into this PNG.")] = None,
    service: Service = DEFAULT_SERVICE,
    as_json: AsJson = False,
) -> None:
    """Shows how much groups can teach, as a whole and by policy version: those of a run, or those in a dataset."""
    with service_at(service) as refinery:
        rows = refinery.get(f"/v1/{'datasets' if '@' in name else 'runs'}/{name}/informativeness", price=price)
    if chart is not None:
        from trainers.charts import draw_informativeness

        with written(chart):
            draw_informativeness(rows, chart)
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(name, *(_scope(row) for row in rows))
    for field, told in LINES.items():
        table.add_row(told, *(_told(row[field]) for row in rows))
    Console().print(table)


def warmup(
    run: Annotated[str, typer.Argument(help="Run that sampled several policy versions.")],
    measure: Annotated[str, typer.Option(help="pair_entropy, group_entropy or pair_share.")] = "pair_entropy",
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    service: Service = DEFAULT_SERVICE,
    as_json: AsJson = False,
) -> None:
    """Advises which policy version to harvest pairs from, or says that the evidence is thin."""
    with service_at(service) as refinery:
        advice = refinery.get(f"/v1/runs/{run}/warmup", measure=measure, seed=seed)
    if as_json:
        print(json.dumps(advice))
        return
    table = Table("version", "groups", measure.replace("_", " "), "95 %", "best")
    for one in advice["versions"]:
        span = f"{one['low']:.4g} to {one['high']:.4g}"
        table.add_row(str(one["version"]), str(one["groups"]), f"{one['value']:.4g}", span, f"{one['best']:.1%}")
    Console().print(table)
    print(advice["reason"])


def _scope(row: dict[str, Any]) -> str:
    if row["run"] is None:
        return "all"
    return f"{row['run']}, " + ("all" if row["policy_version"] is None else f"version {row['policy_version']}")


def _told(value: Any) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
