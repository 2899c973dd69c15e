"""Sampling what a lease lacks, by rollouts jobs of its run.

- Whoever lacks groups waits for the rollouts job of the run that is there; a new one is made only where there is none.
- The jobs of a lease are numbered. Asking for it again, after whatever crash, finds them and samples nothing twice.
- A run that cannot give is told once; whoever asks again after that wants another try.
"""

from curation.keys import digest
from curation.recipe import GroupRule
from service.harvest import Budget, RolloutsRequest, Stop
from service.jobs import Job, JobBoard, JobKind, JobState
from service.stages import Conflict

MOST_IN_VAIN = 3
"""Jobs of a lease in a row that stop short, or whose groups cannot be leased, until it is given up."""


class Refilling:
    def __init__(self, jobs: JobBoard) -> None:
        self._jobs = jobs
        self._told: dict[str, int] = {}
        """How many jobs of a lease those had seen who were told that there are no groups."""

    def at_work(self, run: str) -> Job | None:
        """The rollouts job of the run that has not ended."""
        return self._jobs.unfinished(JobKind.ROLLOUTS, run)

    async def fill(self, lease_id: str, run: str, lacking: int, recipe: GroupRule) -> Job:
        """The job that brings what is lacking. Raises Conflict if there is no hope."""
        if job := self.at_work(run):
            return job
        earlier: list[Job] = []
        while job := await self._jobs.find(_job_id(lease_id, len(earlier))):
            earlier.append(job)
        if why := _hopeless(earlier[self._told.get(lease_id, 0) :], lacking, recipe):
            self._told[lease_id] = len(earlier)
            raise Conflict("no_groups", f"run {run!r} gives no more groups: {why}", job=earlier[-1].id)
        request = request_for(lacking, recipe).model_dump(mode="json")
        return await self._jobs.submit(_job_id(lease_id, len(earlier)), JobKind.ROLLOUTS, run, request)


def request_for(lacking: int, recipe: GroupRule) -> RolloutsRequest:
    """Informative groups; or, where every group will do, exactly so many prompts."""
    return RolloutsRequest(groups=lacking, budget=Budget(prompts=lacking) if recipe.zero_variance else Budget())


def _hopeless(jobs: list[Job], lacking: int, recipe: GroupRule) -> str:
    """Why no other job would help; empty if one might."""
    if not jobs:
        return ""
    if jobs[-1].state is not JobState.DONE:
        result = jobs[-1].result or {}
        return f"job {jobs[-1].id} ended as {jobs[-1].state}: {result.get('detail', 'somebody cancelled it')}"
    lacking_after = [*(job.request["groups"] for job in jobs[1:]), lacking]
    in_vain = [_was_in_vain(job, left, recipe) for job, left in zip(jobs, lacking_after, strict=True)]
    if len(jobs) < MOST_IN_VAIN or not all(in_vain[-MOST_IN_VAIN:]):
        return ""
    stops = ", ".join(str((job.result or {}).get("stop")) for job in jobs[-MOST_IN_VAIN:])
    return f"{MOST_IN_VAIN} jobs in a row ended ({stops}), and {lacking} are lacking still"


def _was_in_vain(job: Job, lacking_after: int, recipe: GroupRule) -> bool:
    stopped_short = (job.result or {}).get("stop") != Stop.ENOUGH and not recipe.zero_variance
    return job.state is not JobState.DONE or stopped_short or lacking_after >= job.request["groups"]


def _job_id(lease_id: str, number: int) -> str:
    return "j_" + digest(JobKind.ROLLOUTS, lease_id, number)
