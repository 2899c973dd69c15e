"""Pairs and a policy to train, small enough for a test."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainers.learning import Learning
from trainers.tasks import LEVELS, distinct, worked_sum

POLICY = Path(__file__).parents[2] / "service/embedded_policy"


def learning(out: Path, **told: Any) -> Learning:
    """From the embedded policy, at a rate that shows in a few steps."""
    return Learning(str(POLICY), out, **({"learning_rate": 2e-4} | told))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFINERY_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """The worked solution against a wrong bare answer, with columns TRL has no use for."""
    problems = distinct(LEVELS[1], 32, seed=0, held_out=False)
    rows = [
        {
            "prompt": p.text,
            "chosen": f"{worked_sum(p)}<answer>{p.entry['answer']}</answer>",
            "rejected": "<answer>1</answer>",
            "margin": 1.0,
            "group_id": "g",
        }
        for p in problems
    ]
    path = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
