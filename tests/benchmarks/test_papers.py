"""The bench of the papers for real, with its smallest numbers: stopped in the middle, and taken up again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.papers import cells
from benchmarks.papers.arms import Experiment, plan_of
from benchmarks.papers.cells import Cell, CellFailed
from service.checkpoints import EMBEDDED

COMMAND = [sys.executable, "-m", "refinery", "bench", "papers", "--quick", "--only", "g2d", "--json", "--out"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
PATIENCE = 300.0


def test_a_bench_that_was_killed_goes_on_and_ends_with_points_that_agree(tmp_path: Path) -> None:
    out = tmp_path / "papers"
    first = subprocess.Popen([*COMMAND, str(out)], stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    deadline = time.monotonic() + PATIENCE
    while not (done := list(out.glob("cells/*.parquet"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    known = {file.name: file.stat().st_mtime_ns for file in done}

    ended = subprocess.run([*COMMAND, str(out)], capture_output=True, text=True, env=ENVIRONMENT, check=False)

    assert ended.returncode == 0, ended.stderr[-3000:]
    assert known
    assert known == {name: (out / "cells" / name).stat().st_mtime_ns for name in known}
    line = json.loads(ended.stdout.splitlines()[-1])
    assert (line["bench"], line["machine"]["cores"]) == ("papers", os.cpu_count())
    assert not (out / "scratch").exists()
    assert (out / "g2d.png").stat().st_size > 10_000
    tables = (out / "tables.md").read_text()
    assert "mean nothing" in tables
    assert all(f"| {arm} |" in tables for arm in plan_of(Experiment.G2D, quick=True).arms)
    [claim] = json.loads((out / "claims.json").read_text())["claims"]
    assert (claim["key"], claim["verdict"]) == ("g2d_accuracy_gain", "undecided")

    points = pq.read_table(out / "points.parquet").to_pylist()
    assert {point["arm"] for point in points} == set(plan_of(Experiment.G2D, quick=True).arms)
    assert {point["stage"] for point in points} == {"grpo", "dpo"}
    [start, *_, end] = [point for point in points if point["arm"] == "grpo"]
    assert (start["step"], start["rollouts"], start["trained_tokens"], start["policy_version"]) == (0, 0, 0, 1)
    assert (end["step"], end["rollouts"]) == (4, 4 * 4 * 8)
    assert end["trained_tokens"] > end["tokens"] > 0
    warm, cold = ([p for p in points if p["arm"] == arm][-1] for arm in ("g2d_2", "g2d_0"))
    assert warm["rollouts"] - cold["rollouts"] == 2 * 4 * 8


def test_a_cell_made_with_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    plan = plan_of(Experiment.PODS, quick=True)
    made, asked = (Cell(Experiment.PODS, "pods", seed, plan, EMBEDDED) for seed in (0, 1))
    told = {"settings": made.settings, "commit": None, "machine": {}, "seconds": 1.0}
    table = cells.table_of(()).replace_schema_metadata({"cell": json.dumps(told)})
    for cell in (made, asked):
        pq.write_table(table, tmp_path / f"{cell.name}.parquet")

    assert cells.stored(made, tmp_path) is not None
    with pytest.raises(CellFailed, match="another seed"):
        cells.stored(asked, tmp_path)


def test_arms_of_an_experiment_learn_at_one_rate_and_are_measured_as_often() -> None:
    for experiment in Experiment:
        arms = plan_of(experiment, quick=False).arms.values()
        told = {
            (arm.verb, arm.options["learning-rate"], arm.options.get("evaluate-every"), arm.options.get("steps"))
            for arm in arms
        }
        assert len(told) == len({arm.verb for arm in arms})
