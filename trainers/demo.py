"""The whole loop on one laptop: prompts, GRESO, rollouts, verdicts, PODS, pairs, DPO, a better policy.

The service and the DPO trainer run as processes of their own, and everything goes through the REST API: what happens
here, a user can do by hand.
"""

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from trainers.charts import draw_charts
from trainers.client import DEFAULT_SERVICE, Json, Refinery
from trainers.launch import running_service
from trainers.provenance import commit, machine
from trainers.tasks import LEVELS, distinct

PROMPTS_PER_LEVEL = 36
HELD_OUT_PER_LEVEL = 70
PASSES = 3
SAMPLING = {"n": 8, "temperature": 1.0, "max_tokens": 96}
GREEDY = SAMPLING | {"n": 1, "temperature": 0.0}
RECIPE = {
    "down_sampling": {"kind": "max_variance", "keep": 4},
    "pairs": {"kind": "one_random_pair"},
}
HELD_OUT_RUNS = ("held-out-before", "held-out-after")
HELD_OUT_EVERY = 10
"""Every so manieth greedy answer is compared with transformers."""
TRAINING = ("--learning-rate", "3e-4", "--batch", "32")
"""One pair per group and one epoch: four pairs per group took twice the time and forgot the easy problems."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of right greedy answers on held-out problems."""

    by_level: dict[str, float]
    overall: float
    problems: int

    @property
    def standard_error(self) -> float:
        """Binomial."""
        return sqrt(self.overall * (1 - self.overall) / self.problems)


def run_demo(out: Path | None, *, seed: int, engine: Sequence[str] = (), keep_serving: bool, as_json: bool) -> None:
    """`engine` is what ``refinery serve`` is told about it; without anything the embedded one samples."""
    console = Console(quiet=as_json)
    folder = out or _free_folder(Path("refinery-demo"))
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    if engine:
        console.print("starting the engine; that takes a minute")
    with running_service(folder / "data", *engine, log=folder / "service.log") as url, Refinery(url) as refinery:
        console.print(f"service {url}, data and report in {folder}")
        report = _improve(refinery, folder, seed, console)
        report["workers"] = refinery.get("/v1/workers")
        if engine:
            report["reload"] = _check_reload(refinery, console)
        report["seconds"] = round(time.monotonic() - began, 1)
        (folder / "report.json").write_text(json.dumps(report, indent=1))
        draw_charts(report, folder)
        _print_summary(report, folder, url if keep_serving else DEFAULT_SERVICE, console)
        if as_json:
            print(json.dumps(_bench_line(report)))
        if keep_serving:
            console.print("the service keeps running: Ctrl-C ends it")
            _sleep_until_interrupted()


def _improve(refinery: Refinery, folder: Path, seed: int, console: Console) -> dict[str, Any]:
    levels = _add_prompts(refinery, seed)
    with _bars(console) as bars:
        harvested = _sample(refinery, "demo", "demo", SAMPLING, bars, seed, passes=PASSES)
        before = _evaluate(refinery, HELD_OUT_RUNS[0], levels, bars, seed)

    recipe = RECIPE | {"runs": ["demo"], "seed": seed}
    dataset = refinery.post("/v1/datasets", {"name": "demo", "recipe": recipe})
    train_url = refinery.url + dataset["urls"]["train.parquet"]
    console.print(f"froze demo@{dataset['version']}: {dataset['manifest']['rows']} pairs")
    policy = refinery.get("/v1/policies/policy")
    checkpoint = policy["versions"][-1]["checkpoint"]
    with console.status("training DPO in a process of its own"):
        _train(train_url, checkpoint, folder, refinery.url, seed)

    with _bars(console) as bars:
        after = _evaluate(refinery, HELD_OUT_RUNS[1], levels, bars, seed)
        _sample(refinery, "demo-after", "demo", SAMPLING, bars, seed, passes=1)
    run = refinery.get("/v1/runs/demo")
    return {
        "seed": seed,
        "commit": commit(),
        "machine": machine(),
        "funnel": harvested["funnel"],
        "informativeness": run["informativeness"],
        "epochs": run["epochs"],
        "pass_rates_before": _first_pass_rates(refinery, "demo"),
        "pass_rates_after": _first_pass_rates(refinery, "demo-after"),
        "pairs": dataset["manifest"]["rows"],
        "dataset_sha256": dataset["manifest"]["files"]["train.parquet"]["sha256"],
        "dataset_url": train_url,
        "accuracy_before": _accuracy_json(before),
        "accuracy_after": _accuracy_json(after),
    }


def _add_prompts(refinery: Refinery, seed: int) -> dict[str, str]:
    """Fills the prompt sets ``demo`` and ``held-out``; returns the level of each held-out prompt."""
    training = [p for level in LEVELS for p in distinct(level, PROMPTS_PER_LEVEL, seed=seed, held_out=False)]
    held_out = [p for level in LEVELS for p in distinct(level, HELD_OUT_PER_LEVEL, seed=seed, held_out=True)]
    refinery.add_prompts((p.as_prompt() for p in training), "demo")
    refinery.add_prompts((p.as_prompt() for p in held_out), "held-out")
    return {prompt["id"]: prompt["metadata"]["level"] for prompt in refinery.prompts("held-out")}


def _sample(
    refinery: Refinery, run: str, prompt_set: str, sampling: Json, bars: Progress, seed: int, *, passes: int
) -> Json:
    """Considers every prompt of the set `passes` times; GRESO chooses, except for greedy evaluation."""
    selector = {"kind": "all" if sampling["n"] == 1 else "greso"}
    config = {"name": run, "policy": "policy", "prompt_set": prompt_set, "selector": selector, "seed": seed}
    retain = "all" if sampling["n"] == 1 else "informative"
    batch = {"prompts": 192, "groups": 64}
    refinery.post("/v1/runs", config | {"sampling": sampling, "batch": batch, "retain": retain})
    job = refinery.post(f"/v1/runs/{run}/rollouts", {"passes": passes})
    bar = bars.add_task(run, total=None, note="")

    def show(job: Json) -> None:
        funnel = job["progress"].get("funnel")
        if funnel:
            skipped = funnel["skipped_easy"] + funnel["skipped_hard"]
            bars.update(
                bar,
                note=f"{funnel['considered']} considered, {skipped} skipped, {funnel['sampled']} sampled, "
                f"{funnel['informative']} informative",
            )

    done = refinery.wait(job, show)
    bars.update(bar, total=1, completed=1)
    result: Json = done["result"]
    return result


def _evaluate(refinery: Refinery, run: str, levels: dict[str, str], bars: Progress, seed: int) -> Accuracy:
    _sample(refinery, run, "held-out", GREEDY, bars, seed, passes=1)
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for group in refinery.groups(run):
        # An answer that could not be verified is no right one here, and shows up in the run's outcomes.
        right[levels[group["prompt_id"]]].append(group["rewards"] == [1.0])
    every = [answer for answers in right.values() for answer in answers]
    by_level = {level.name: fmean(right[level.name]) for level in LEVELS if right[level.name]}
    return Accuracy(by_level, fmean(every), len(every))


def _check_reload(refinery: Refinery, console: Console) -> Json:
    """Whether the engine's greedy answers are those of the version it had, before and after the publication."""
    from trainers.agreement import Greedy, agreement  # pulls in torch: only when there is something to compare

    texts = {prompt["id"]: prompt["prompt"] for prompt in refinery.prompts("held-out")}
    found: Json = {}
    answers: dict[str, dict[str, Greedy]] = {}
    for version, run in zip(refinery.get("/v1/policies/policy")["versions"], HELD_OUT_RUNS, strict=True):
        groups = sorted(refinery.groups(run), key=lambda group: str(group["prompt_id"]))[::HELD_OUT_EVERY]
        rollouts = {g["prompt_id"]: refinery.get(f"/v1/groups/{g['id']}")["members"][0] for g in groups}
        answers[run] = {i: Greedy(texts[i], r["token_ids"], r["logprobs"]) for i, r in rollouts.items()}
        found[run] = agreement(list(answers[run].values()), Path(version["checkpoint"]))._asdict()
        console.print(
            f"{run}: {found[run]['equal']} of {found[run]['compared']} greedy answers are those of transformers on "
            f"version {version['version']}; logprobs differ by at most {found[run]['worst_logprob']:.1e}"
        )
    before, after = (answers[run] for run in HELD_OUT_RUNS)
    found["changed"] = sum(before[i].token_ids_T != after[i].token_ids_T for i in before.keys() & after.keys())
    console.print(f"{found['changed']} of them changed with the reload")
    return found


def _train(dataset: str, checkpoint: str, folder: Path, service: str, seed: int) -> None:
    command = [sys.executable, "-m", "refinery", "train", "dpo", "--dataset", dataset, "--policy", checkpoint]
    command += ["--out", str(folder / "policy-2"), "--seed", str(seed), "--publish", "--service", service, *TRAINING]
    with (folder / "dpo.log").open("w") as log:
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode:
            tail = "\n".join((folder / "dpo.log").read_text().splitlines()[-5:])
            sys.exit(f"refinery demo: the DPO trainer failed; the end of {folder / 'dpo.log'}:\n{tail}")


def _first_pass_rates(refinery: Refinery, run: str) -> list[float]:
    """Mean reward of each prompt's first group."""
    return [fmean(g["rewards"]) for g in refinery.groups(run) if g["visit"] == 0 and g["rewards"]]


def _accuracy_json(accuracy: Accuracy) -> Json:
    return {
        "overall": accuracy.overall,
        "standard_error": accuracy.standard_error,
        "problems": accuracy.problems,
        "by_level": accuracy.by_level,
    }


def _print_summary(report: dict[str, Any], folder: Path, url: str, console: Console) -> None:
    before, after = report["accuracy_before"], report["accuracy_after"]
    table = Table("held-out problems, greedy", "before", "after", title=f"policy 1 and 2, in {report['seconds']} s")
    for level, rate in before["by_level"].items():
        table.add_row(level, f"{rate:.3f}", f"{after['by_level'][level]:.3f}")
    table.add_section()
    error = f"± {before['standard_error']:.3f}"
    table.add_row(f"all {before['problems']}", f"{before['overall']:.3f} {error}", f"{after['overall']:.3f}")
    console.print(table)
    parquet = f"{url}/v1/datasets/demo@1/train.parquet"
    console.print(f"report and charts: {folder}\n")
    console.print(f"Look further, with `refinery serve --data {folder / 'data'}` running:", markup=False)
    for line in (
        f"curl -s {url}/v1/runs/demo",
        f"curl -s '{url}/v1/groups?run=demo&informative=true&limit=3'",
        f"curl -s -H 'Range: bytes=0-3' {parquet}",
        f"""python -c "from datasets import load_dataset; print(load_dataset('parquet', data_files='{parquet}'))" """,
        f"""python -c "import duckdb; print(duckdb.sql(\\"select verifier, count(*), avg(margin) """
        f"""from '{folder}/data/datasets/*/train.parquet' group by all\\"))" """,
    ):
        console.print(f"  {line.strip()}", markup=False, highlight=False, soft_wrap=True)


def _bench_line(report: dict[str, Any]) -> Json:
    def figure(value: float, unit: str, error: float = 0.0) -> Json:
        return {"value": value, "unit": unit, "low": value - error, "high": value + error}

    before, after = report["accuracy_before"], report["accuracy_after"]
    return {
        "bench": "demo",
        "commit": report["commit"],
        "machine": report["machine"],
        "figures": {
            "seconds": figure(report["seconds"], "s"),
            "informative_groups": figure(report["funnel"]["informative"], "groups"),
            "pairs": figure(report["pairs"], "pairs"),
            "accuracy_before": figure(before["overall"], "share", before["standard_error"]),
            "accuracy_after": figure(after["overall"], "share", after["standard_error"]),
            "dataset_sha256": {"value": report["dataset_sha256"], "unit": "sha256", "low": None, "high": None},
        },
    }


def _bars(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
    return Progress(*columns, console=console)


def _free_folder(root: Path) -> Path:
    return next(folder for n in count(1) if not (folder := root / str(n)).exists())


def _sleep_until_interrupted(sleep: Callable[[float], None] = time.sleep) -> None:
    try:
        while True:
            sleep(3600)
    except KeyboardInterrupt:
        pass
