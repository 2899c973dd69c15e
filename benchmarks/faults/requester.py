"""Asks for rollouts, for runs to have them in and for versions of a policy; stops some of its jobs, and remembers how
they ended."""

import random
from collections.abc import Iterator
from functools import partial

from benchmarks.faults.desk import Desk, request, settings
from benchmarks.faults.importer import PROMPT_SET
from benchmarks.faults.journal import Event, Json

GRESO, EVERYTHING = "r", "all"
"""The run whose decisions are compared with those of an undisturbed service, and the one that keeps every text."""
POLICY = "published"
"""What is published over and over, beside the policy that is sampled."""
RUN, JOB, PUBLISH, CANCEL, FINAL = "run", "job", "publish", "cancel", "final"
"""What is written into the journal."""
GIVEN_UP_SHARE = 0.1
MOST_WAITING = 3
"""Jobs of ours that have not ended, when another is asked for."""
FINAL_STATES = {"done", "failed", "cancelled"}
WAIT_SECONDS = 5
ENDLESS = {"passes": 10_000}
"""Only to be stopped."""


def act(desk: Desk, op: int) -> None:
    rng = desk.rng(op)
    kind = rng.random()
    is_given_up = rng.random() < GIVEN_UP_SHARE
    _see_jobs(desk, op)
    if kind < 0.08:
        desk.repeat(op, rng.choice((JOB, RUN, PUBLISH)))
    elif kind < 0.25:
        _new_run(desk, op, rng)
    elif kind < 0.35:
        if checkpoint := settings(desk.folder)["checkpoint"]:
            asked = {"checkpoint": checkpoint, "step": op}
            desk.tell(op, PUBLISH, request(f"/v1/policies/{POLICY}/versions", asked, f"publish {op}"), desk.post)
    else:
        run, body = _job(desk, rng)
        desk.tell(op, JOB, request(f"/v1/runs/{run}/rollouts", body, f"job {op}"), desk.post, is_given_up=is_given_up)


def _job(desk: Desk, rng: random.Random) -> tuple[str, Json]:
    kind = rng.random()
    if kind < 0.5:
        return GRESO, {"groups": rng.randint(2, 5)}
    if kind < 0.65:
        return GRESO, {"prompts": rng.sample(settings(desk.folder)["prompts"], 4)}
    if kind < 0.9:
        return EVERYTHING, {"groups": rng.randint(1, 4), "budget": {"prompts": 24}}
    return rng.choice(((GRESO, {"groups": 1, "passes": 1}), ("nobody", {"groups": 1})))


def _new_run(desk: Desk, op: int, rng: random.Random) -> None:
    """With a job in it, which may be one that has to be stopped."""
    name, is_refused, is_stopped = f"run-{op}", rng.random() < 0.2, rng.random() < 0.6
    run = {
        "name": name,
        "policy": "nobody" if is_refused else "policy",
        "prompt_set": PROMPT_SET,
        "sampling": {"n": 2, "max_tokens": 32},
        "seed": op,
    }
    if not desk.tell(op, RUN, request("/v1/runs", run, f"run {op}"), desk.post).is_good:
        return
    body = ENDLESS if is_stopped else {"groups": 1, "budget": {"prompts": 4}}
    told = desk.tell(op, JOB, request(f"/v1/runs/{name}/rollouts", body, f"job {op}"), desk.post)
    if is_stopped and told.is_good:
        desk.tell(op, CANCEL, {"job": told.told["id"]}, lambda asked: desk.refinery.delete(f"/v1/jobs/{asked['job']}"))


def _see_jobs(desk: Desk, op: int) -> None:
    """Waits until not too many wait, and remembers how those ended that did."""
    while len(unseen := list(_unseen(desk))) and not desk.is_over:
        of, what, job_id = unseen[0]
        seconds = WAIT_SECONDS if len(unseen) > MOST_WAITING else 0
        job = desk.patiently(partial(desk.refinery.get, f"/v1/jobs/{job_id}", wait=seconds))
        if job["state"] in FINAL_STATES:
            desk.write(of, f"{what} {FINAL}", Event.NOTED, {name: job[name] for name in ("id", "state", "result")})
        elif len(unseen) <= MOST_WAITING:
            return


def _unseen(desk: Desk) -> Iterator[tuple[int, str, str]]:
    """Acknowledged jobs whose end was not seen yet, with their operations."""
    seen = {line.told["id"] for line in desk.journal.lines if line.event is Event.NOTED and "id" in line.told}
    for line in desk.journal.lines:
        if line.what in (JOB, PUBLISH) and line.event is Event.ACKNOWLEDGED and line.told["id"] not in seen:
            yield line.op, line.what, line.told["id"]
