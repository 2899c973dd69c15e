"""Freezes versions of the recorded groups, and holds the files of all versions against the sums that were told."""

from benchmarks.faults.desk import Desk, request
from benchmarks.faults.importer import RUN
from benchmarks.faults.journal import Event, Json

NAME = "frozen"
FREEZE = "freeze"
"""What is written into the journal."""
GIVEN_UP_SHARE = 0.08


def act(desk: Desk, op: int) -> None:
    rng = desk.rng(op)
    kind = rng.random()
    if kind < 0.15:
        desk.repeat(op, FREEZE)
    elif kind < 0.6:
        is_given_up = rng.random() < GIVEN_UP_SHARE
        asked = request("/v1/datasets", {"name": NAME, "recipe": recipe_of(op)}, f"freeze {op}")
        answer = desk.tell(op, FREEZE, asked, desk.post, is_given_up=is_given_up)
        if answer.is_good:
            _compare(desk, op, answer.told, rng.random())
    versions = [line.told for line in desk.journal.lines if (line.what, line.event) == (FREEZE, Event.ACKNOWLEDGED)]
    if versions:
        _compare(desk, op, rng.choice(versions), rng.random())


def recipe_of(op: int) -> Json:
    """Another one for each operation: so its version is known among all others."""
    return {"runs": [RUN], "pairs": {"kind": "all_right_with_wrong"}, "max_pairs": 40, "test_share": 0.2, "seed": op}


def _compare(desk: Desk, op: int, version: Json, pick: float) -> None:
    """One of its files with what its manifest says."""
    files = sorted(version["urls"].items())
    name, url = files[int(pick * len(files))]
    if desk.sum_of(url)["sha256"] != version["manifest"]["files"][name]["sha256"]:
        desk.broken(op, f"{name} of {version['name']}@{version['version']} has changed")
