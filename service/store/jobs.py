"""Jobs and their events."""

import json
from datetime import datetime

from curation.keys import canonical_json
from service.jobs import Job, JobEvent, JobKind, JobState
from service.store.duck import Duck
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

    async def all(self) -> list[Job]:
        """Every job with its events, oldest first."""
        jobs = {
            row["job"]: Job(row["job"], JobKind(row["kind"]), row["run"], json.loads(row["request"]), row["created_at"])
            for row in await self._duck.read("select * from jobs order by created_at, job")
        }
        for row in await self._duck.read("select * from job_events order by job, seq"):
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
