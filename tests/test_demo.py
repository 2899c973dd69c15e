"""The main job, end to end and for real: service, embedded policy, verifiers, DPO, and a better policy."""

import json
import os
import subprocess
import sys
from pathlib import Path

from trainers.tasks import HELD_OUT_SHARE, LEVELS, distinct


def test_the_demo_ends_with_a_better_policy_and_a_report(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "refinery", "demo", "--out", str(tmp_path / "demo"), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    assert ended.returncode == 0, ended.stderr[-2000:]
    line = json.loads(ended.stdout.splitlines()[-1])
    before, after = (line["figures"][f"accuracy_{when}"] for when in ("before", "after"))
    assert line["bench"] == "demo"
    assert line["figures"]["informative_groups"]["value"] >= 64
    assert after["value"] - before["value"] > 3 * (before["high"] - before["value"])
    assert {p.name for p in (tmp_path / "demo").glob("*.png")} == {"funnel.png", "pass_rates.png", "greso_skips.png"}
    report = json.loads((tmp_path / "demo/report.json").read_text())
    assert [epoch["epoch"] for epoch in report["epochs"]] == [0, 1, 2]
    assert report["epochs"][0]["skipped_easy"] == 0 < report["epochs"][1]["skipped_easy"]


def test_held_out_problems_are_a_fixed_share() -> None:
    [level] = [level for level in LEVELS if level.name == "sum of 3 digits"]
    drawn = distinct(level, 500, seed=0, held_out=False) + distinct(level, 500, seed=0, held_out=True)

    assert {p.is_held_out for p in drawn} == {True, False}
    assert HELD_OUT_SHARE == 10
