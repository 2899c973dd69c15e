"""The whole loop on real engines, with a live reload between the two halves of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.engines.addresses import Kind
from tests.engines.servers import python_of


@pytest.mark.parametrize("kind", [Kind.VLLM, Kind.SGLANG])
def test_the_demo_reloads_the_engine_and_gets_the_new_weights(tmp_path: Path, kind: Kind) -> None:
    command = [sys.executable, "-m", "refinery", "demo", "--out", str(tmp_path / "demo"), "--engine", kind]
    command += ["--engine-python", str(python_of(kind)), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    assert ended.returncode == 0, ended.stderr[-2000:]
    figures = json.loads(ended.stdout.splitlines()[-1])["figures"]
    report = json.loads((tmp_path / "demo/report.json").read_text())
    assert figures["accuracy_after"]["value"] > figures["accuracy_before"]["high"]
    for run in ("held-out-before", "held-out-after"):
        agreed = report["reload"][run]
        assert agreed["equal"] == agreed["compared"] > 40
        assert agreed["worst_logprob"] < 1e-4
    assert report["reload"]["changed"] > 10
    [worker] = report["workers"]
    assert (worker["dialect"], worker["state"], worker["version"]) == (kind, "live", 2)
