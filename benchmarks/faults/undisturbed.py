"""A service that nobody disturbs, given the same requests in the same order: with the embedded engine it must have made
the same decisions, sampled the same texts and earned the same rewards."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults.audit import Asked, Broken, other
from benchmarks.faults.journal import Json
from benchmarks.faults.requester import GRESO
from benchmarks.faults.served import Served, until_ready
from trainers.client import Refinery

DECISIONS = f"""
select v.prompt_id, v.visit, v.epoch, v.step, v.round, v.action, v.keep_probability, v.reason, g.rewards, g.tokens
from visits v left join groups g using (run, prompt_id, visit) where v.run = '{GRESO}' order by v.seq"""
JOBS = f"select job from visits where run = '{GRESO}' group by 1 order by min(seq)"
TURNS = f"""
select count(*) as turns from (
    select job, lag(job) over (order by seq) as before from visits where run = '{GRESO}'
) where job is distinct from before"""
"""How often another job begins where one ends: as many as there are jobs, if each has its turn."""
RECIPE = {"runs": [GRESO], "pairs": {"kind": "all_right_with_wrong"}, "truncated": True}


def differences(asked: Asked, folder: Path, prompts: list[Json], run: Json) -> Iterator[Broken]:
    jobs = [asked.refinery.get(f"/v1/jobs/{row['job']}") for row in asked.rows(JOBS)]
    if (turns := asked.rows(TURNS)[0]["turns"]) != len(jobs):
        yield other(f"{len(jobs)} jobs of run {GRESO} had {turns} turns: one was interrupted by another")
    served = Served(folder, name="undisturbed")
    try:
        until_ready(served)
        with Refinery(served.url) as refinery:
            refinery.add_prompts(prompts, run["prompt_set"])
            refinery.post("/v1/runs", run)
            for job in jobs:
                refinery.wait(refinery.post(f"/v1/runs/{GRESO}/rollouts", job["request"]))
            yield from _compared(asked, Asked(refinery, {}))
    finally:
        served.close()


def _compared(asked: Asked, undisturbed: Asked) -> Iterator[Broken]:
    ours, theirs = asked.rows(DECISIONS), undisturbed.rows(DECISIONS)
    different = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b]
    if different or len(ours) != len(theirs):
        first = min(different, default=min(len(ours), len(theirs)))
        yield other(
            f"run {GRESO} went another way than an undisturbed one: {len(ours)} visits and {len(theirs)}, of which "
            f"{len(different)} differ; first {ours[first : first + 1]} instead of {theirs[first : first + 1]}"
        )
        return
    files = [one.refinery.post("/v1/datasets", {"name": "all-pairs", "recipe": RECIPE}) for one in (asked, undisturbed)]
    if files[0]["manifest"]["files"] != files[1]["manifest"]["files"]:
        yield other(f"a dataset of run {GRESO} has other bytes than that of an undisturbed one")
