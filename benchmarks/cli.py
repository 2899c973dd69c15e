"""``refinery bench``."""

import json
from enum import StrEnum, auto
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.report import document


class Bench(StrEnum):
    SELECT = auto()
    ENGINE = auto()
    LEARNING = auto()
    VERIFY = auto()
    CODE = auto()
    CURATE = auto()
    STORE = auto()
    SQL = auto()
    SERVE = auto()
    PAPERS = auto()
    SOAK = auto()
    FAULTS = auto()


def register(app: typer.Typer) -> None:
    app.command()(bench)


def bench(
    name: Bench,
    engine: Annotated[
        list[str] | None, typer.Option(help="For engine: vllm, sglang; both by default. For faults: the embedded one.")
    ] = None,
    engine_python: Annotated[
        Path | None, typer.Option(help="For engine and faults: Python of its own environment.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="For select, verify and code: folder of recorded data.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="For learning and papers.")] = 5,
    steps: Annotated[int, typer.Option(min=3, help="For learning: gradient steps of each arm.")] = 30,
    groups: Annotated[int, typer.Option(min=8, help="For curate: stored groups of 8.")] = 1_000_000,
    rollouts: Annotated[int, typer.Option(min=80_000, help="For store and sql: how many are stored.")] = 1_000_000,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="For store: keep the store here. For sql: ask one that was kept. For faults: keep all of it."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="For papers: cells and results; it goes on with what is there.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="For papers: greso, pods, g2d, semi_online; all by default.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="For papers and faults: only to try whether everything works.")
    ] = False,
    policy: Annotated[Path | None, typer.Option(help="For papers: checkpoint instead of the embedded one.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="For papers: cells at a time.")] = 2,
    minutes: Annotated[float, typer.Option(min=0.5, help="For soak: of steady load.")] = 60.0,
    kills: Annotated[int | None, typer.Option(min=1, help="For faults: 500, or 60 with --quick.")] = None,
    seed: Annotated[int, typer.Option(help="For faults: of the schedule and of what clients do.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document only.")] = False,
) -> None:
    """Measures the ratios we claim, each against its yardstick in the same run."""
    match name:
        case Bench.SELECT:
            from benchmarks import select

            figures = select.run(data)
        case Bench.LEARNING:
            from benchmarks import learning

            figures = learning.run(seeds, steps)
        case Bench.ENGINE:
            from benchmarks import engine as engines
            from service.engines.addresses import Kind

            figures = engines.run(tuple(map(Kind, engine or ("vllm", "sglang"))), engine_python)
        case Bench.VERIFY:
            from benchmarks import verify

            figures = verify.run(data)
        case Bench.CODE:
            from benchmarks import code

            figures = code.run(data)
        case Bench.CURATE:
            from benchmarks import curate

            figures = curate.run(groups)
        case Bench.STORE:
            from benchmarks import store

            figures = store.run(rollouts, folder)
        case Bench.SQL:
            from benchmarks import sql

            figures = sql.run(rollouts, folder)
        case Bench.SERVE:
            from benchmarks import serve

            figures = serve.run()
        case Bench.PAPERS:
            from benchmarks import papers
            from benchmarks.papers.arms import Experiment

            figures = papers.run(
                out or papers.OUT,
                seeds=seeds,
                only=tuple(map(Experiment, only or ())),
                quick=quick,
                policy=policy,
                workers=workers,
            )
        case Bench.SOAK:
            from benchmarks import soak

            figures = soak.run(minutes)
        case Bench.FAULTS:
            from benchmarks.faults import bench as faults

            figures = faults.run(
                kills=kills,
                seed=seed,
                quick=quick,
                folder=folder,
                engine=engine[0] if engine else None,
                python=engine_python,
            )
    if as_json:
        print(json.dumps(document(name, figures)))
        return
    table = Table("figure", "median", "low", "high", "unit")
    for key, figure in figures.items():
        table.add_row(key, *(f"{figure[part]:.3f}" for part in ("value", "low", "high")), str(figure["unit"]))
    Console().print(table)
