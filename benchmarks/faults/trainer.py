"""Leases groups and acknowledges them as a trainer does: it gives some back, lets the time of others run out, and dies
between a lease and its acknowledgement."""

import random
import time

from benchmarks.faults.desk import Desk, digest_of
from benchmarks.faults.importer import RUN as RECORDED
from benchmarks.faults.journal import Event, Json
from benchmarks.faults.requester import EVERYTHING, GRESO
from trainers.client import RefineryError

LEASE, END, REOPENED = "lease", "end", "reopened"
"""What is written into the journal: what was handed out, what became of it, and that it was asked for again."""
LONG_SECONDS, SHORT_SECONDS = 600.0, 1.0
WAIT_SECONDS = 5.0
RECIPES: dict[str, Json] = {
    GRESO: {"shape": "groups", "truncated": True},
    EVERYTHING: {"shape": "groups", "truncated": True, "zero_variance": True},
    RECORDED: {"shape": "groups", "truncated": True},
}
"""By run. What a run keeps the texts of gives rows under its recipe: so what is left to lease can be counted."""


def act(desk: Desk, op: int) -> None:
    rng = desk.rng(op)
    kind = rng.random()
    if kind < 0.1:
        _ask_for_an_old_one(desk, op, rng)
        return
    is_short = kind < 0.2
    run = rng.choices((GRESO, EVERYTHING, RECORDED), (6, 2, 2))[0]
    asked: Json = {
        "run": run,
        "groups": rng.randint(1, 4),
        "key": f"step {op}",
        "consumer": desk.name,
        "recipe": RECIPES[run],
        "seconds": SHORT_SECONDS if is_short else LONG_SECONDS,
        "sample": run != RECORDED,
        "wait": WAIT_SECONDS,
    }
    answer = desk.tell(op, LEASE, asked, lambda asked: desk.refinery.lease(**asked), keep=_kept)
    if not answer.is_good:
        return
    lease = answer.told
    _look_at(desk, op, lease, run)
    if is_short:
        time.sleep(SHORT_SECONDS + 0.2)
    elif kind < 0.35:
        _same_again(desk, op, asked, lease, may_be_lost=False)
        _end(desk, op, lease, "ack")
    elif kind < 0.5:
        desk.die(op)
        _same_again(desk, op, asked, lease, may_be_lost=False)
        _end(desk, op, lease, "ack")
    elif kind < 0.62:
        _end(desk, op, lease, "release")
    else:
        _end(desk, op, lease, "ack")


def _kept(lease: Json) -> Json:
    groups_of_rows = list(dict.fromkeys(row["group_id"] for row in lease["rows"]))
    kept = {name: lease[name] for name in ("lease", "group_ids", "state")}
    return kept | {"rows": digest_of(lease["rows"]), "groups_of_rows": groups_of_rows}


def _look_at(desk: Desk, op: int, lease: Json, run: str) -> None:
    if sorted(lease["groups_of_rows"]) != sorted(set(lease["group_ids"])):
        desk.broken(op, f"the rows of lease {lease['lease']} are not those of its groups")
    done = {
        group
        for line in desk.journal.lines
        if (line.what, line.event) == (END, Event.ACKNOWLEDGED)
        and line.told["state"] == "acknowledged"
        and line.op != op
        for group in line.told["group_ids"]
    }
    if again := done & set(lease["group_ids"]):
        desk.broken(op, f"groups that were acknowledged are handed out again: {', '.join(sorted(again))}")


def _end(desk: Desk, op: int, lease: Json, how: str) -> None:
    """Acknowledged or given back. Its time is not over, so nobody can have taken its groups."""
    say = desk.refinery.acknowledge if how == "ack" else desk.refinery.release
    answer = desk.tell(op, END, {"lease": lease["lease"], "how": how}, say, keep=_told)
    if not answer.is_good:
        desk.broken(op, f"lease {lease['lease']} cannot be ended: {answer.told['code']}")


def _told(lease: Json) -> Json:
    return {name: lease[name] for name in ("lease", "group_ids", "state")}


def _same_again(desk: Desk, op: int, asked: Json, lease: Json, *, may_be_lost: bool) -> bool:
    """Whether the key gives a lease still; the very same, then."""
    try:
        again = _kept(desk.patiently(lambda: desk.refinery.lease(**asked)))
    except RefineryError as error:
        if not (may_be_lost and error.code == "lease_lost"):
            desk.broken(op, f"lease {lease['lease']} was there, and asked again it is {error.code}")
        return False
    for name in ("lease", "group_ids", "rows"):
        if again[name] != lease[name]:
            desk.broken(op, f"{asked['key']!r} gives another {name} when it is asked again: lease {lease['lease']}")
    return True


def _ask_for_an_old_one(desk: Desk, op: int, rng: random.Random) -> None:
    """The key of any lease before. One that had been acknowledged is there for ever; another one is, too, unless
    another lease has its groups by now, and is acknowledged then."""
    leases = [line for line in desk.journal.lines if (line.what, line.event) == (LEASE, Event.ACKNOWLEDGED)]
    if not leases:
        return
    old = rng.choice(leases)
    is_done = any(
        line.told.get("state") == "acknowledged" and line.told.get("lease") == old.told["lease"]
        for line in desk.journal.lines
        if (line.what, line.event) == (END, Event.ACKNOWLEDGED)
    )
    asked = desk.find(old.op, LEASE, Event.SENT)
    assert asked is not None
    asked = asked | {"seconds": LONG_SECONDS}
    desk.note_once(op, REOPENED, {"lease": old.told["lease"]})
    if not _same_again(desk, op, asked, old.told, may_be_lost=not is_done) or is_done:
        return
    _end(desk, op, old.told, "ack")
