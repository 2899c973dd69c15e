"""One cell: an arm with one seed, as a user would run it, in a service of its own with nothing else in it.

- Prompts and the run are made by REST, the trainer is `refinery train`, and what happened is asked for in SQL. What the
  trainer wrote down must say the same.
- A cell is one Parquet file, written whole or not at all, with the settings that it was made with. A cell that was
  killed is begun anew: half a run has no wall time.
- Service and trainer end with the process that started them, however that ends.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from math import isclose
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.papers.arms import MAX_TOKENS, Arm, Experiment, Plan, Verb
from service.engines.process import LEASH
from trainers.cache import weights_of
from trainers.client import Json, Refinery
from trainers.launch import running_service
from trainers.learning import DONE
from trainers.provenance import commit, machine
from trainers.tasks import LEVELS, distinct

POLICY, EXAMINED = "policy", "held-out"
"""Names in the service: of the policy that learns, and of the one that answers what it is measured on."""
LOG_LINES = 8
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
POINTS = """
with answered as (
    select policy, policy_version, seq, len(list_filter(rewards, reward -> reward >= 1)) / rollouts as share
    from groups where policy = 'held-out'
), examined as (
    select step, policy_version, avg(share) as accuracy, stddev_samp(share) / sqrt(count(*)) as standard_error,
           count(*) as prompts, max(seq) as last
    from answered join policy_versions v on v.policy = answered.policy and v.version = policy_version
    group by all
)
select step, accuracy, standard_error, prompts, coalesce(sum(rollouts), 0)::bigint as rollouts,
       coalesce(sum(tokens), 0)::bigint as tokens, e.policy_version
from examined e left join groups g on g.policy = 'policy' and g.seq < e.last
group by all order by step
"""
"""How good every version was, and what had been sampled for training by then."""


class CellFailed(Exception):
    """A trainer or its service did not do what it should."""


@dataclass(frozen=True, slots=True)
class Point:
    """What was known when a policy was measured."""

    experiment: str
    arm: str
    seed: int
    stage: str
    """The trainer that had made the step."""
    step: int
    accuracy: float
    """Share of right greedy answers to held-out prompts."""
    standard_error: float
    prompts: int
    rollouts: int
    """Sampled for training so far."""
    tokens: int
    """Of these rollouts."""
    trained_tokens: int
    """Prompts and completions that went through the loss so far; the reference's pass over them is not counted."""
    seconds: float
    """Of wall time, without the evaluations."""
    policy_version: int

    @property
    def compute(self) -> int:
        """Tokens generated and tokens trained."""
        return self.tokens + self.trained_tokens


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    experiment: Experiment
    arm: str
    seed: int
    plan: Plan
    policy: Path

    @property
    def name(self) -> str:
        return f"{self.experiment}-{self.arm}-seed{self.seed}"

    @property
    def trained_by(self) -> Arm:
        return self.plan.arms[self.arm]

    @property
    def settings(self) -> Json:
        """Everything that decides on its points."""
        settings: Json = {
            "pool": dict(self.plan.pool),
            "held_out": self.plan.held_out,
            "seed": self.seed,
            "policy": weights_of(self.policy),
            **asdict(self.trained_by),
        }
        return settings


class Done(NamedTuple):
    """A cell that was run."""

    points: tuple[Point, ...]
    settings: Json
    commit: str | None
    machine: Json
    seconds: float
    """That the whole cell took."""


def stored(cell: Cell, folder: Path) -> Done | None:
    """None if it is still to be run. Raises CellFailed if the file was made with other settings."""
    file = folder / f"{cell.name}.parquet"
    if not file.exists():
        return None
    table = pq.read_table(file)
    told = json.loads(table.schema.metadata[b"cell"])
    if told["settings"] != cell.settings:
        known, asked = told["settings"], cell.settings
        differing = sorted(name for name in known.keys() | asked.keys() if known.get(name) != asked.get(name))
        raise CellFailed(f"{file} was made with another {', '.join(differing)}: choose another --out, or remove it")
    return Done(tuple(Point(**row) for row in table.to_pylist()), **told)


def run(cell: Cell, folder: Path, scratch: Path) -> Done:
    """Runs the cell and stores it in the folder; `scratch` is for what is of no use afterwards."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"{cell.name}-", dir=scratch) as made:
        points = tuple(_points(cell, Path(made)))
    done = Done(points, cell.settings, commit(), machine(), round(time.monotonic() - began, 1))
    told = {name: value for name, value in done._asdict().items() if name != "points"}
    unfinished = scratch / f"{cell.name}.parquet"
    pq.write_table(table_of(done.points).replace_schema_metadata({"cell": json.dumps(told)}), unfinished)
    unfinished.rename(folder / unfinished.name)
    return done


def table_of(points: tuple[Point, ...]) -> pa.Table:
    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    columns = {field.name: kinds[getattr(field.type, "__name__", str(field.type))] for field in fields(Point)}
    return pa.Table.from_pylist([asdict(point) for point in points], pa.schema(columns))


def _points(cell: Cell, folder: Path) -> Iterator[Point]:
    leash = [sys.executable, str(LEASH), "0"]
    policy = ["--policy", str(cell.policy)]
    with running_service(folder / "data", *policy, log=folder / "service.log", leash=leash) as url:
        with Refinery(url) as refinery:
            _prepare(cell, refinery)
            _train(cell, folder, url, leash)
            refinery.post("/v1/store/compact", {})  # what is asked in SQL is what was sealed
            rows = pq.read_table(BytesIO(b"".join(refinery.stream("/v1/sql", {"sql": POINTS, "format": "parquet"}))))
        yield from _joined(cell, rows.to_pylist(), folder / "policy")


def _prepare(cell: Cell, refinery: Refinery) -> None:
    levels = {level.name: level for level in LEVELS}
    for level, size in cell.plan.pool.items():
        for prompt_set, wanted in (("train", size), ("held-out", cell.plan.held_out)):
            drawn = distinct(levels[level], wanted, seed=cell.seed, held_out=prompt_set == "held-out")
            refinery.add_prompts((problem.as_prompt() for problem in drawn), prompt_set)
    arm = cell.trained_by
    run = {
        "name": "training",
        "policy": POLICY,
        "prompt_set": "train",
        "sampling": {"n": arm.n, "temperature": 1.0, "max_tokens": MAX_TOKENS},
        "selector": dict(arm.selector),
        "batch": dict(arm.batch),
        "retain": "all",
        "seed": cell.seed,
    }
    refinery.post("/v1/runs", run)


def _train(cell: Cell, folder: Path, url: str, leash: list[str]) -> None:
    told = {
        "service": url,
        "run": "training",
        "policy": str(cell.policy),
        "out": str(folder / "policy"),
        "seed": cell.seed,
        "save-every": 1_000_000,
        "trl": "logging_steps=1",
        "evaluate-on": "held-out",
        "evaluate-as": EXAMINED,
        "evaluate-tokens": MAX_TOKENS,
        **cell.trained_by.options,
    }
    command = [*leash, sys.executable, "-m", "refinery", "train", cell.trained_by.verb]
    for name, value in told.items():
        command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    environment = os.environ | ENVIRONMENT | {"REFINERY_CACHE": str(folder / "cache")}
    log = folder / "train.log"
    with log.open("w") as said:
        code = subprocess.run(command, stdout=said, stderr=said, env=environment, check=False).returncode
    if code:
        tail = "\n".join(log.read_text().splitlines()[-LOG_LINES:])
        raise CellFailed(f"{cell.name}: `refinery train {cell.trained_by.verb}` ended with {code}:\n{tail}")


def _joined(cell: Cell, rows: list[Json], out: Path) -> Iterator[Point]:
    """What the service stored, beside what the trainer wrote down. Raises CellFailed where they do not agree."""
    before = _Spent(0, 0.0)
    written = json.loads((out / DONE).read_text())
    if cell.trained_by.verb is Verb.G2D:
        before = _before_dpo(out, written)
        written = json.loads((out / "dpo" / DONE).read_text())
    log = written["log"]
    measured = {entry["step"]: entry for entry in log if "eval_accuracy" in entry}
    if [row["step"] for row in rows] != sorted(measured):
        raise CellFailed(f"{cell.name}: the service measured steps {[r['step'] for r in rows]}, not {sorted(measured)}")
    for row in rows:
        entry = measured[row["step"]]
        _check(cell, row, entry)
        yield Point(
            experiment=str(cell.experiment),
            arm=cell.arm,
            seed=cell.seed,
            stage="dpo" if cell.trained_by.verb is Verb.G2D else str(cell.trained_by.verb),
            trained_tokens=before.trained_tokens + _trained(log, row["step"]),
            seconds=before.seconds + entry["spent_seconds"],
            **row,
        )


class _Spent(NamedTuple):
    trained_tokens: int
    seconds: float


def _before_dpo(out: Path, written: Json) -> _Spent:
    """Of the warm-up and of the harvest."""
    harvesting = sum(harvest["funnel"]["seconds"] for harvest in written["harvests"].values())
    if not written["warmed"]["steps"]:
        return _Spent(0, harvesting)
    log = json.loads((out / "warm-up" / DONE).read_text())["log"]
    return _Spent(_trained(log, written["warmed"]["steps"]), harvesting + log[-1]["train_runtime"])


def _trained(log: list[Json], step: int) -> int:
    """Tokens that went through the loss up to a step."""
    return int(max((entry.get("num_tokens", 0) for entry in log if entry["step"] <= step), default=0))


def _check(cell: Cell, row: Json, entry: dict[str, Any]) -> None:
    pairs = {name: (row[name], entry[f"eval_{name}"]) for name in ("accuracy", "standard_error", "prompts")}
    if cell.trained_by.verb is not Verb.G2D:  # where DPO samples nothing
        pairs |= {name: (row[name], entry[f"spent_{name}"]) for name in ("rollouts", "tokens")}
    for name, (stored, told) in pairs.items():
        if not isclose(stored, told, rel_tol=1e-9, abs_tol=1e-12):
            raise CellFailed(
                f"{cell.name}, step {row['step']}: the service stored {name} {stored}, the trainer wrote {told}"
            )
