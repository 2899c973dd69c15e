"""/v1/jobs"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from service.api.routes import PartsDep
from service.api.wire import JobEventOut, JobOut
from service.jobs import Job, JobBoard
from service.stages import Invalid

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
HEARTBEAT_SECONDS = 15.0
Wait = Annotated[float, Query(ge=0, le=60, description="Answer at the end of the job, or after so many seconds.")]


@router.get("")
async def list_jobs(parts: PartsDep) -> list[JobOut]:
    """Newest first."""
    return [JobOut.of(job) for job in parts.jobs.all()[:1000]]


@router.get("/{job_id}")
async def get_job(job_id: str, parts: PartsDep, wait: Wait = 0) -> JobOut:
    job = parts.jobs.get(job_id)
    if wait:
        await parts.jobs.wait(job, seconds=wait)
    return JobOut.of(job)


@router.delete("/{job_id}", status_code=202)
async def cancel_job(job_id: str, parts: PartsDep) -> JobOut:
    """Stops asking for more; groups that are sampling are finished and stored."""
    return JobOut.of(await parts.jobs.cancel(job_id))


@router.get("/{job_id}/events", response_class=StreamingResponse)
async def stream_events(
    job_id: str, parts: PartsDep, last_event_id: Annotated[str | None, Header()] = None
) -> StreamingResponse:
    """Server-sent events; with ``Last-Event-ID`` those after it. Ends with the final one."""
    job = parts.jobs.get(job_id)
    try:
        after = int(last_event_id or 0)
    except ValueError:
        raise Invalid("bad_event_id", f"Last-Event-ID {last_event_id!r} is not a number") from None
    return StreamingResponse(_events(job, parts.jobs, after), media_type="text/event-stream")


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
