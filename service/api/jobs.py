"""/v1/jobs"""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import StreamingResponse

from service.api.routes import OWN_READS, OWN_WRITES, CallerDep, PartsDep
from service.api.wire import JobEventOut, JobOut
from service.jobs import Job, JobBoard, no_job
from service.stages import Invalid

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
HEARTBEAT_SECONDS = 15.0
Wait = Annotated[float, Query(ge=0, le=60, description="Answer at the end of the job, or after so many seconds.")]


EVENT_STREAM = "text/event-stream"
EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["id", "event", "data"],
    "properties": {
        "id": {"type": "string", "pattern": "^[0-9]+$"},
        "event": {"$ref": "#/components/schemas/JobState"},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/JobEventOut"},
        },
    },
}
EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {EVENT_STREAM: {"itemSchema": EVENT}}}}


async def _own(job_id: str, parts: PartsDep, caller: CallerDep) -> Job:
    """What is none of the caller's is not there."""
    job = await parts.jobs.get(job_id)
    if not caller.reaches(job.run):
        raise no_job(job_id)
    return job


JobDep = Annotated[Job, Depends(_own)]


@router.get("", dependencies=[OWN_READS])
async def list_jobs(parts: PartsDep, caller: CallerDep) -> list[JobOut]:
    """Newest first."""
    return [JobOut.of(job) for job in await parts.jobs.newest(1000, caller.reaches if caller.names else None)]


@router.get("/{job_id}", dependencies=[OWN_READS])
async def get_job(job: JobDep, parts: PartsDep, wait: Wait = 0) -> JobOut:
    if wait:
        await parts.jobs.wait(job, seconds=wait)
    return JobOut.of(job)


@router.delete("/{job_id}", status_code=202, dependencies=[OWN_WRITES])
async def cancel_job(job: JobDep, parts: PartsDep) -> JobOut:
    """Stops asking for more; groups that are sampling are finished and stored."""
    await parts.jobs.cancel(job)
    return JobOut.of(job)


@router.get("/{job_id}/events", response_class=StreamingResponse, responses=EVENTS, dependencies=[OWN_READS])
async def stream_events(
    job: JobDep, parts: PartsDep, last_event_id: Annotated[str | None, Header()] = None
) -> StreamingResponse:
    """Server-sent events; with ``Last-Event-ID`` those after it. Ends with the final one."""
    try:
        after = int(last_event_id or 0)
    except ValueError:
        raise Invalid("bad_event_id", f"Last-Event-ID {last_event_id!r} is not a number") from None
    return StreamingResponse(_events(job, parts.jobs, after), media_type=EVENT_STREAM)


async def _events(job: Job, board: JobBoard, after: int) -> AsyncIterator[str]:
    while True:
        fresh = [event for event in job.events if event.seq > after]
        for event in fresh:
            after = event.seq
            yield f"id: {event.seq}\nevent: {event.state}\ndata: {JobEventOut.of(event).model_dump_json()}\n\n"
        if job.state.is_final and after >= job.events[-1].seq:
            return
        await board.wait(job, seconds=HEARTBEAT_SECONDS, beyond=after)
        if job.events[-1].seq == after:
            yield ": still here\n\n"
