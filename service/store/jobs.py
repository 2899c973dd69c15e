"""Jobs and their events."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from curation.keys import canonical_json
from service.jobs import Job, JobEvent, JobKind, JobState
from service.store.duck import LISTED, Duck
from service.store.transaction import Row, Transaction


class Jobs:
    """The `JobLog` on disk."""

    def __init__(self, duck: Duck) -> None:
        self._duck = duck

    async def add(self, job: Job) -> None:
        row = {
            "job": job.id,
            "kind": job.kind.value,
            "run": job.run,
            "request": canonical_json(job.request),
            "created_at": job.created_at,
        }
        events = [_event_row(job.id, event) for event in job.events]

        def operation(tx: Transaction) -> None:
            tx.insert("jobs", [row])
            tx.insert("job_events", events)

        await self._duck.write(operation)

    async def append(self, job_id: str, event: JobEvent) -> None:
        await self._duck.write(lambda tx: tx.insert("job_events", [_event_row(job_id, event)]))

    async def find(self, job_id: str) -> Job | None:
        found = await self._jobs("select * from jobs where job = $job", {"job": job_id})
        return found[0] if found else None

    async def unfinished(self) -> list[Job]:
        """Oldest first."""
        return await self._jobs(
            "select j.* from jobs j anti join (select job from job_events where state in $final) using (job) "
            "order by created_at, job",
            {"final": [state.value for state in JobState if state.is_final]},
        )

    async def newest(self, limit: int, runs: Sequence[str] | None) -> list[Job]:
        """Of these runs, policies and datasets, or of all."""
        return await self._jobs(
            "select * from jobs where $runs is null or list_contains($runs, run) "
            "order by created_at desc, job desc limit $limit",
            {"limit": limit, "runs": None if runs is None else list(runs)},
        )

    async def runs(self) -> list[str]:
        return [row["run"] for row in await self._duck.read("select distinct run from jobs")]

    async def _jobs(self, sql: str, parameters: dict[str, Any]) -> list[Job]:
        """With their events, in the order of the question."""
        jobs = {
            row["job"]: Job(row["job"], JobKind(row["kind"]), row["run"], json.loads(row["request"]), row["created_at"])
            for row in await self._duck.read(sql, parameters)
        }
        events = f"select * from job_events where job in {LISTED} order by job, seq"
        for row in await self._duck.read(events, [list(jobs)]) if jobs else ():
            jobs[row["job"]].events.append(_event_of(row))
        return list(jobs.values())


def _event_row(job_id: str, event: JobEvent) -> dict[str, str | int | datetime]:
    return {
        "job": job_id,
        "seq": event.seq,
        "state": event.state.value,
        "data": canonical_json(event.data),
        "told_at": event.at,
    }


def _event_of(row: Row) -> JobEvent:
    return JobEvent(row["seq"], JobState(row["state"]), json.loads(row["data"]), row["told_at"])
