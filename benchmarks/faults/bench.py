"""``refinery bench faults``: the workload, the faults, the audit, and what came of it in figures."""

import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

from benchmarks.faults.__main__ import ACTS
from benchmarks.faults.audit import Asked, Broken, Kind, audit, lost, other
from benchmarks.faults.chaos import Chaos
from benchmarks.faults.desk import SETTINGS
from benchmarks.faults.importer import PROMPT_SET
from benchmarks.faults.journal import Event, Json, read
from benchmarks.faults.requester import ENDLESS, EVERYTHING, GRESO, POLICY
from benchmarks.faults.schedule import FULL, QUICK, Plan, schedule, with_engine
from benchmarks.faults.served import NotServed, Served, until_ready
from benchmarks.faults.undisturbed import differences
from benchmarks.report import Figure, spread
from service.checkpoints import EMBEDDED
from trainers.client import Refinery, RefineryError

KILLS, QUICK_KILLS = 500, 60
PACE, QUICK_PACE = 0.2, 0.05
"""Seconds between two operations of a client."""
JOBS_SECONDS = 900.0
"""That the jobs have to end in when nobody disturbs them any more."""
SETTLING_SECONDS = 2.0
"""After the last start: leases for a second begin anew with it, and are over by then."""
SAMPLING = {"n": 4, "max_tokens": 64}
RUNS: list[Json] = [
    {
        "name": GRESO,
        "policy": "policy",
        "prompt_set": "s",
        "selector": {"kind": "greso"},
        "sampling": SAMPLING,
        "batch": {"groups": 8, "prompts": 16, "least": 4},
    },
    {
        "name": EVERYTHING,
        "policy": "policy",
        "prompt_set": PROMPT_SET,
        "sampling": SAMPLING,
        "batch": {"groups": 4, "prompts": 8, "least": 2},
        "retain": "all",
        "seed": 1,
    },
]


class Found(NamedTuple):
    """What a run of the bench ends with."""

    chaos: Chaos
    served: Served
    broken: list[Broken]
    acknowledged: int
    seconds: float


def run(
    *,
    kills: int | None = None,
    seed: int = 0,
    quick: bool = False,
    folder: Path | None = None,
    engine: str | None = None,
    python: Path | None = None,
) -> dict[str, Figure]:
    """Says what is broken, line by line; figures count it. Data, journals and logs stay in the folder if there is
    one."""
    wanted = kills or (QUICK_KILLS if quick else KILLS)
    plan = QUICK if quick else FULL
    arguments: list[str] = []
    if engine:
        plan = with_engine(plan)
        arguments = ["--engine", engine, *(("--engine-python", str(python.absolute())) if python else ())]
    if folder:
        if folder.exists() and any(folder.iterdir()):
            sys.exit(f"refinery bench faults: {folder} is not empty")
        folder.mkdir(parents=True, exist_ok=True)
    kept = nullcontext(str(folder)) if folder else tempfile.TemporaryDirectory(prefix="refinery-faults-")
    with _ended_by_signals(), kept as made:
        try:
            found = _run(Path(made), wanted, seed, quick, plan, arguments)
        except (NotServed, RefineryError) as failure:
            sys.exit(f"refinery bench faults: {failure}")
    return _figures(found)


def _run(folder: Path, kills: int, seed: int, quick: bool, plan: Plan, arguments: list[str]) -> Found:
    began = time.monotonic()
    served = Served(folder, arguments)
    chaos = Chaos(served)
    broken: list[Broken] = []

    def note(found: Iterable[Broken]) -> None:
        for one in found:
            broken.append(one)
            _say(f"BROKEN: {one.line}")

    try:
        until_ready(served)
        prompts = _prompts(quick)
        _prepare(served, folder, prompts, can_publish=not arguments)
        for name in ACTS:
            chaos.start(name, folder, seed, QUICK_PACE if quick else PACE)
        chaos.run(schedule(seed, plan), kills, _say)
        chaos.close_clients(folder)
        with Refinery(served.url) as refinery:
            note(_unended(refinery))
        note(other(f"{corpse} has ended, and the service does not look after it") for corpse in served.corpses())
        served.end()
        until_ready(served)
        time.sleep(SETTLING_SECONDS)
        _say("everything was started once more, and is looked at now")
        journals = {name: read(folder / f"{name}.jsonl") for name in ACTS}
        with Refinery(served.url) as refinery:
            note(audit(refinery, journals))
            if not arguments:
                note(differences(Asked(refinery, journals), folder, prompts, RUNS[0]))
        served.close()
        note(other(line) for line in chaos.broken)
        note(other(f"{orphan} outlived its service") for orphan in served.orphans())
        note(other(f"the log says: {line}") for line in served.unforeseen())
    finally:
        chaos.close()
        served.close()
    told = [line.event for lines in journals.values() for line in lines]
    return Found(chaos, served, broken, told.count(Event.ACKNOWLEDGED), time.monotonic() - began)


def _prompts(quick: bool) -> list[Json]:
    """What the policy always, sometimes and never solves."""
    from trainers.tasks import LEVELS, distinct  # brings reasoning-gym: not for every client

    each = 8 if quick else 40
    return [problem.as_prompt() for level in LEVELS for problem in distinct(level, each, seed=5, held_out=False)]


def _prepare(served: Served, folder: Path, prompts: list[Json], *, can_publish: bool) -> None:
    """A fleet of engines serves one policy only."""
    with Refinery(served.url) as refinery:
        for prompt_set, rows in ((RUNS[0]["prompt_set"], prompts), (PROMPT_SET, prompts[:24])):
            refinery.add_prompts(rows, prompt_set)
        for run in RUNS:
            refinery.post("/v1/runs", run)
        if can_publish:
            refinery.once("/v1/policies", {"name": POLICY, "checkpoint": str(EMBEDDED)}, key="first")
        ids = [prompt["id"] for prompt in refinery.prompts(RUNS[0]["prompt_set"])]
    told = {"prompts": ids, "checkpoint": str(EMBEDDED) if can_publish else None}
    (folder / SETTINGS).write_text(json.dumps(told))


def _unended(refinery: Refinery) -> Iterator[Broken]:
    """Jobs that do not end although nobody disturbs them."""
    give_up = time.monotonic() + JOBS_SECONDS
    left: list[Json] = []
    for job in refinery.get("/v1/jobs"):
        if job["request"].get("passes") == ENDLESS["passes"]:  # whoever wanted to stop it was ended before
            refinery.delete(f"/v1/jobs/{job['id']}")
    while time.monotonic() < give_up:
        left = [job for job in refinery.get("/v1/jobs") if job["state"] in {"queued", "running"}]
        if not left:
            return
        time.sleep(0.5)
    yield from (lost(f"job {job['id']} on {job['on']} does not end") for job in left)


def _figures(found: Found) -> dict[str, Figure]:
    kinds = Counter(one.kind for one in found.broken)
    of_target: Counter[str] = Counter()
    for target, count in found.chaos.kills.items():
        of_target[f"kills_of_{target}"] += count
    counts = {
        "kills": found.chaos.kills.total(),
        **of_target,
        "stops": found.chaos.stops,
        "acknowledged": found.acknowledged,
        "lost": kinds[Kind.LOST],
        "duplicated": kinds[Kind.DUPLICATED],
        "broken_invariants": len(found.broken),
    }
    figures = {name: spread([count], "") for name, count in counts.items()}
    for name, seconds in (("recovery_seconds", found.served.recoveries), ("ending_seconds", found.served.endings)):
        if seconds:
            figures[name] = spread(seconds, "s")
    return figures | {"minutes": spread([found.seconds / 60], "min")}


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM is as good as Ctrl-C: either ends every process of ours."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(told: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} faults: {told}", file=sys.stderr, flush=True)
