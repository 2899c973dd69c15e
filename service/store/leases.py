"""Leases: which groups the consumers of a run were given, and what became of them.

- A lease with its groups is a row that never changes; the newest of its events says what became of it.
- A group is taken from one lease by another only: the one that had it is expired from that commit on, for good.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum, auto
from typing import Any, NamedTuple

from curation.keys import canonical_json
from service.stages import NotFound
from service.store.duck import Duck
from service.store.transaction import Row, Transaction


class LeaseState(StrEnum):
    OPEN = auto()
    """Its groups are with the consumer, until its time is over."""
    ACKNOWLEDGED = auto()
    """The consumer has done with its groups, and is never given them again."""
    RELEASED = auto()
    """Its groups were given back."""
    EXPIRED = auto()
    """Its time is over; in the store: and another lease has some of its groups."""

    @property
    def is_final(self) -> bool:
        return not _MOVES[self]

    def to(self, other: "LeaseState") -> "LeaseState":
        """The next state, if the move is legal."""
        if other not in _MOVES[self]:
            raise ValueError(f"a lease that is {self} cannot become {other}")
        return other


_MOVES = {
    LeaseState.OPEN: {LeaseState.OPEN, LeaseState.ACKNOWLEDGED, LeaseState.RELEASED, LeaseState.EXPIRED},
    LeaseState.ACKNOWLEDGED: set(),
    LeaseState.RELEASED: {LeaseState.OPEN, LeaseState.EXPIRED},
    LeaseState.EXPIRED: set(),
}


@dataclass(frozen=True, slots=True)
class Lease:
    id: str
    run: str
    consumer: str
    request: dict[str, Any]
    """What was asked for, as far as it decides on the rows."""
    group_ids: tuple[str, ...]
    """In the order in which their prompts were chosen."""
    watermark: int
    """Of the store, when it was leased: later groups and rescores change no row."""
    leased_at: datetime
    state: LeaseState
    seconds: float
    """That it is good for, counted anew with each renewal."""
    told_at: datetime
    events: int = 1
    """How many there were of it."""
    seq: int = 0
    """Order of all leases, counted from 1."""


class Candidates(NamedTuple):
    """Groups that could be leased if the recipe gives rows of them."""

    fresh: list[str]
    """In the order in which their prompts were chosen."""
    stale: int
    """How many more there were if they were not too old."""
    watermark: int


def no_lease(lease_id: str) -> NotFound:
    return NotFound("lease_not_found", f"there is no lease {lease_id!r}")


class Leases:
    def __init__(self, duck: Duck) -> None:
        self._duck = duck

    async def find(self, lease_id: str) -> Lease | None:
        rows = await self._duck.read("select * from current_leases where lease = ?", [lease_id])
        return _lease_of(rows[0]) if rows else None

    async def get(self, lease_id: str) -> Lease:
        lease = await self.find(lease_id)
        if lease is None:
            raise no_lease(lease_id)
        return lease

    async def page(self, run: str, after: int, limit: int) -> list[Lease]:
        """Of a run, oldest first, those after sequence number `after`."""
        sql = "select * from current_leases where run = ? and seq > ? order by seq limit ?"
        return [_lease_of(row) for row in await self._duck.read(sql, [run, after, limit])]

    async def open(self) -> dict[str, float]:
        """How many seconds each open lease is good for."""
        rows = await self._duck.read("select lease, seconds from current_leases where state = 'open'")
        return {row["lease"]: row["seconds"] for row in rows}

    async def candidates(
        self, run: str, consumer: str, *, over: Collection[str], oldest: int, contrasting: bool
    ) -> Candidates:
        """What this consumer could be given now: groups of policy version `oldest` or newer, with text, that differ in
        their rewards if only `contrasting` ones will do. The time of some open leases is `over`."""
        scope = {"run": run, "consumer": consumer, "over": list(over), "oldest": oldest, "contrasting": contrasting}
        [row] = await self._duck.read(CANDIDATES, scope)
        return Candidates(row["fresh"], row["stale"], row["watermark"])

    async def add(self, lease: Lease, policy: str, version: int | None) -> list[str] | None:
        """Stores a lease of groups that nobody has; returns the leases that had some of them. None, and nothing is
        stored, if the policy has gone on from the version by which they were chosen."""

        def operation(tx: Transaction) -> list[str] | None:
            if version is not None and tx.rows(LIVE, [policy]) != [(version,)]:
                return None
            taken_from = tx.rows(TAKEN_FROM, [lease.run, lease.consumer, list(lease.group_ids)])
            for lease_id, events, state, seconds in taken_from:
                moved = LeaseState(state).to(LeaseState.EXPIRED)
                tx.insert("lease_events", [_event_row(lease_id, events + 1, moved, seconds, lease.told_at)])
            tx.insert("leases", [_row_of(lease, tx.next_seq("leases"))])
            tx.insert("lease_events", [_event_row(lease.id, 1, lease.state, lease.seconds, lease.told_at)])
            return [lease_id for lease_id, *_ in taken_from]

        return await self._duck.write(operation)

    async def tell(self, lease: Lease, state: LeaseState, seconds: float, now: datetime) -> Lease:
        """The lease in its next state."""
        events = lease.events + 1
        row = _event_row(lease.id, events, lease.state.to(state), seconds, now)
        await self._duck.write(lambda tx: tx.insert("lease_events", [row]))
        return replace(lease, state=state, seconds=seconds, told_at=now, events=events)


CANDIDATES = """
with taken as (
    select unnest(group_ids) as group_id from current_leases
    where run = $run and consumer = $consumer
          and (state = 'acknowledged' or (state = 'open' and not list_contains($over, lease)))
), unended as (
    select v.seq from visits v
    anti join groups g using (run, prompt_id, visit) anti join failures f using (run, prompt_id, visit)
    anti join (select job from job_events where state in ('done', 'failed', 'cancelled')) e using (job)
    where v.run = $run and v.action = 'sampled'
), candidates as (
    select g.group_id, g.seq, coalesce(v.seq, 0) as place, g.policy_version >= $oldest as fresh
    from judged_groups g left join visits v using (run, prompt_id, visit)
    where g.run = $run and g.has_text and (not $contrasting or g.kind = 'informative')
          and g.group_id not in (from taken) and coalesce(v.seq, 0) < (select coalesce(min(seq), 2**62) from unended)
)
select coalesce(list(group_id order by place, seq) filter (where fresh), []) as fresh,
       count(*) filter (where not fresh) as stale,
       (select coalesce(max(seq), 0) from (
           select seq from groups where run = $run union all select seq from rescores where run = $run)) as watermark
from candidates
"""
"""All of it at one moment: a group that came later must not be passed over by one behind it."""

LIVE = "select max(version) from policy_versions where policy = ?"
TAKEN_FROM = """
select lease, events, state, seconds from current_leases
where run = ? and consumer = ? and state in ('open', 'released') and list_has_any(group_ids, ?)
"""


def _row_of(lease: Lease, seq: int) -> Row:
    return {
        "seq": seq,
        "lease": lease.id,
        "run": lease.run,
        "consumer": lease.consumer,
        "request": canonical_json(lease.request),
        "group_ids": list(lease.group_ids),
        "watermark": lease.watermark,
        "leased_at": lease.leased_at,
    }


def _event_row(lease_id: str, seq: int, state: LeaseState, seconds: float, now: datetime) -> Row:
    return {"lease": lease_id, "seq": seq, "state": state.value, "seconds": seconds, "told_at": now}


def _lease_of(row: Row) -> Lease:
    return Lease(
        row["lease"],
        row["run"],
        row["consumer"],
        json.loads(row["request"]),
        tuple(row["group_ids"]),
        row["watermark"],
        row["leased_at"],
        LeaseState(row["state"]),
        row["seconds"],
        row["told_at"],
        row["events"],
        row["seq"],
    )
