"""The headline ratios of four papers, measured by this service, its trainers and a policy that fits on a laptop.

- Everything is done as a user would do it: each cell, one arm with one seed, is a service of its own, asked by REST,
  with `refinery train` beside it.
- A bench that was stopped goes on where it was: a cell that is done is never run again.
- What is claimed is decided before anything is measured: `benchmarks.papers.claims` has the thresholds.
"""

import fcntl
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

import pyarrow.parquet as pq

from benchmarks.papers.arms import Experiment, Plan, plan_of
from benchmarks.papers.cells import Cell, CellFailed, Done, stored, table_of
from benchmarks.papers.cells import run as run_cell
from benchmarks.papers.claims import Claim, Curve, claims_of
from benchmarks.papers.tables import Findings, draw, page
from benchmarks.report import Figure
from service.checkpoints import EMBEDDED
from trainers.provenance import commit, machine

OUT = Path("benchmarks/results/papers")


def run(
    out: Path = OUT,
    *,
    seeds: int = 5,
    only: Sequence[Experiment] = (),
    quick: bool = False,
    policy: Path | None = None,
    workers: int = 2,
) -> dict[str, Figure]:
    """Runs the cells that are not there yet and writes points, tables, claims and charts; a figure for each claim."""
    plans = {experiment: plan_of(experiment, quick=quick) for experiment in (only or Experiment)}
    cells = [
        Cell(experiment, arm, seed, plan, (policy or EMBEDDED).absolute())
        for seed in range(1 if quick else seeds)
        for experiment, plan in plans.items()
        for arm in plan.arms
    ]
    out.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(out):
            done = _run_all(cells, out, workers)
    except CellFailed as failure:
        sys.exit(f"refinery bench papers: {failure}")
    return _tell(plans, done, out, workers=workers, quick=quick)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    with (out / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CellFailed(f"another bench is at work in {out}") from None
        yield


def _run_all(cells: Sequence[Cell], out: Path, workers: int) -> dict[Cell, Done]:
    """What one cell does not survive, the others do. Raises CellFailed at the end."""
    folder, scratch = out / "cells", out / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)  # of cells that were killed
    for made in (folder, scratch):
        made.mkdir(exist_ok=True)
    known = {cell: stored(cell, folder) for cell in cells}
    done = {cell: one for cell, one in known.items() if one is not None}
    left = [cell for cell in cells if cell not in done]
    _say(f"{len(done)} of {len(cells)} cells are there already")
    failures = []
    with ThreadPoolExecutor(workers) as pool:
        asked = {pool.submit(run_cell, cell, folder, scratch): cell for cell in left}
        try:
            for future in as_completed(asked):
                cell = asked[future]
                if failure := future.exception():
                    failures.append(cell.name)
                    _say(f"{cell.name} failed: {failure!r}")
                    continue
                done[cell] = future.result()
                left.remove(cell)
                count = f"{len(done)} of {len(cells)} cells"
                _say(f"{count}, {cell.name}: {_result(done[cell])}; {_left(done, left, workers)}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    shutil.rmtree(scratch, ignore_errors=True)
    if failures:
        raise CellFailed(f"{len(failures)} cells failed; the same command runs them again: {', '.join(failures)}")
    return {cell: done[cell] for cell in cells}


def _result(done: Done) -> str:
    end = done.points[-1]
    return f"accuracy {end.accuracy:.3f}, {end.rollouts} rollouts, {done.seconds:.0f} s"


def _left(done: Mapping[Cell, Done], left: Sequence[Cell], workers: int) -> str:
    """A cell takes as long as those of its arm took, or of all."""
    overall = fmean(one.seconds for one in done.values())
    of_arm: dict[tuple[Experiment, str], list[float]] = {}
    for cell, one in done.items():
        of_arm.setdefault((cell.experiment, cell.arm), []).append(one.seconds)
    seconds = sum(fmean(of_arm.get((cell.experiment, cell.arm), [overall])) for cell in left) / workers
    return f"about {seconds / 60:.0f} minutes to go"


def _tell(
    plans: Mapping[Experiment, Plan], done: Mapping[Cell, Done], out: Path, *, workers: int, quick: bool
) -> dict[str, Figure]:
    curves: dict[Experiment, dict[str, dict[int, Curve]]] = {}
    for cell, one in done.items():
        curves.setdefault(cell.experiment, {}).setdefault(cell.arm, {})[cell.seed] = one.points
    claims = claims_of(curves)
    found = Findings(plans, curves, claims, list(done.values()), workers, quick, datetime.now(UTC))
    pq.write_table(table_of(tuple(point for one in done.values() for point in one.points)), out / "points.parquet")
    (out / "tables.md").write_text(page(found))
    provenance = {"commit": commit(), "machine": machine(), "made_at": found.made_at.isoformat(), "quick": quick}
    told = provenance | {"claims": [asdict(claim) for claim in claims]}
    (out / "claims.json").write_text(json.dumps(told, indent=1))
    for experiment, of_arms in curves.items():
        draw(experiment, of_arms, out / f"{experiment}.png")
    for claim in claims:
        _say(f"{claim.verdict}: {claim.text}. {claim.why}")
    return {claim.key: _figure(claim) for claim in claims if claim.interval}


def _figure(claim: Claim) -> Figure:
    assert claim.interval
    return {"unit": claim.unit, **asdict(claim.interval)}


def _say(told: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} papers: {told}", file=sys.stderr, flush=True)
