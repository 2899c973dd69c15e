"""Trainers that learn while the service samples for them: real service, real TRL, real kills."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.processes import Service, serving
from tests.trainers.conftest import POLICY, learning
from trainers import g2d, grpo, semi_online
from trainers.client import Refinery, RefineryError
from trainers.dpo import DpoRun
from trainers.evaluation import Evaluation
from trainers.g2d import G2dRun, Harvest, Start
from trainers.grpo import GrpoRun
from trainers.learning import Unfit
from trainers.publishing import publish_checkpoint
from trainers.semi_online import SemiOnlineRun, Task
from trainers.tasks import LEVELS, distinct

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL and transformers warn about each other
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
TRAINED = ("--policy", str(POLICY), "--learning-rate", "1e-4", "--save-every", "2")
GRPO = ("grpo", *TRAINED, "--groups", "4", "--keep", "4", "--micro-batch", "8", "--steps", "6", "--sync-every", "2")
SEMI_ONLINE = ("semi-online", *TRAINED, "--batch", "4", "--steps", "6", "--sync-every", "2")
SYNCED = ("--sync-reference-every", "3")
G2D = ("g2d", *TRAINED, "--groups", "4", "--keep", "4", "--micro-batch", "8", "--warm-up-rate", "1e-4")
HARVEST = ("--n", "4", "--max-tokens", "96", "--max-length", "256", "--batch", "8")
GRPO_STEP = ("--groups", "4", "--keep", "4", "--micro-batch", "4")
SEMI_ONLINE_STEP = ("--batch", "4", "--micro-batches", "2")
EXAMINED = ("--evaluate-on", "held-out", "--evaluate-every", "3", "--evaluate-tokens", "96")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service") / "data") as service, Refinery(service.url) as refinery:
        for name, held_out in (("sums", False), ("held-out", True)):
            problems = [p for level in LEVELS[1:4] for p in distinct(level, 10, seed=0, held_out=held_out)]
            refinery.add_prompts((p.as_prompt() for p in problems), name)
        yield service


def a_run(service: Service, name: str, **told: Any) -> str:
    """A run and a policy of its own of the same name, that starts as the embedded one."""
    with Refinery(service.url) as refinery:
        refinery.wait(refinery.post("/v1/policies", {"name": name, "checkpoint": str(POLICY)}))
        batch = {"groups": 4, "prompts": 8, "least": 4}
        config = {"name": name, "policy": name, "prompt_set": "sums", "sampling": {"n": 8, "max_tokens": 96}}
        refinery.post("/v1/runs", config | {"selector": {"kind": "greso"}, "batch": batch} | told)
    return name


def started(service: Service, out: Path, *told: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "refinery", "train", *told, "--out", str(out), "--service", service.url, "--json"]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen[str]) -> Any:
    """What the trainer printed."""
    printed, errors = process.communicate()
    assert printed, errors[-3000:]
    return json.loads(printed.splitlines()[-1])


def a_grpo(service: Service, out: Path, run: str, **told: Any) -> GrpoRun:
    """Few steps in this process."""
    few = {"steps": 3, "groups": 4, "keep": 4, "micro_batch": 8}
    return GrpoRun(learning(out), service.url, run, **(few | told))


def weights(out: Path) -> str:
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def leases(service: Service, run: str) -> list[Any]:
    with Refinery(service.url) as refinery:
        items: list[Any] = refinery.get(f"/v1/runs/{run}/leases")["items"]
    return items


def groups(service: Service, run: str) -> list[Any]:
    """What was sampled, whatever it was called."""
    with Refinery(service.url) as refinery:
        return sorted((g["prompt_id"], g["visit"], g["rewards"], g["tokens"]) for g in refinery.groups(run))


def killed_three_times(service: Service, run: str, out: Path, *told: str) -> None:
    """After the first, the third and the fifth lease of the run was given, each a little later in the step."""
    for place, least in enumerate((1, 3, 5)):
        process = started(service, out, *told)
        while len(leases(service, run)) < least:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        time.sleep(0.1 * place)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (out / "training.json").exists()


@pytest.mark.parametrize("verb", [GRPO, SEMI_ONLINE + SYNCED], ids=lambda verb: verb[0])
def test_a_trainer_killed_three_times_sees_the_same_groups_and_ends_with_the_same_weights(
    verb: tuple[str, ...], service: Service, tmp_path: Path
) -> None:
    runs = [a_run(service, f"{verb[0]}-{name}") for name in ("left-alone", "killed")]
    outs = [tmp_path / name for name in runs]

    left_alone = started(service, outs[0], *verb, "--run", runs[0])
    killed_three_times(service, runs[1], outs[1], *verb, "--run", runs[1])
    result = result_of(started(service, outs[1], *verb, "--run", runs[1]))
    result_of(left_alone)

    assert result["steps"] == 6
    assert groups(service, runs[0]) == groups(service, runs[1])
    assert [lease["state"] for lease in leases(service, runs[1])] == ["acknowledged"] * 6
    given = [group for lease in leases(service, runs[1]) for group in lease["group_ids"]]
    assert len(given) == len(set(given)) == 24
    assert weights(outs[0]) == weights(outs[1]) != weights(POLICY)


def test_every_group_is_as_fresh_as_it_should_be_and_evaluations_change_nothing(
    service: Service, tmp_path: Path
) -> None:
    run, out = a_run(service, "fresh"), tmp_path / "fresh"
    result = result_of(started(service, out, *GRPO, "--run", run, *EXAMINED))

    with Refinery(service.url) as refinery:
        versions = refinery.get(f"/v1/policies/{run}")["versions"]
        sampled = {g["id"]: g["policy_version"] for g in refinery.groups(run)}
    assert [version["step"] for version in versions] == [None, 2, 4, 6]
    assert weights(Path(versions[-1]["checkpoint"])) == weights(out)
    assert result["version"] == 4
    given = [[sampled[group] for group in lease["group_ids"]] for lease in leases(service, run)]
    assert given == [[version] * 4 for version in (1, 1, 2, 2, 3, 3)]
    found = [e for e in json.loads((out / "training.json").read_text())["log"] if "eval_accuracy" in e]
    assert [entry["step"] for entry in found] == [0, 3, 6]
    assert all(entry["eval_prompts"] == 30 and 0 < entry["eval_accuracy"] < 1 for entry in found)
    assert 0 == found[0]["spent_rollouts"] < found[1]["spent_rollouts"] < found[2]["spent_rollouts"]


@pytest.mark.parametrize("verb", ["grpo", "semi-online"])
def test_two_processes_make_the_step_that_one_makes(verb: str, service: Service, tmp_path: Path) -> None:
    """Each works on a part of the groups; plain gradient descent shows how large the step is."""
    runs = [a_run(service, f"{verb}-{name}") for name in ("alone", "together")]
    step = ("--policy", str(POLICY), "--learning-rate", "1e-2", "--steps", "1", "--trl", "optim=sgd")
    of_verb = {"grpo": GRPO_STEP, "semi-online": SEMI_ONLINE_STEP}[verb]
    together = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", "--module", "--", "refinery"]
    for run, start in zip(runs, ([sys.executable, "-m", "refinery"], together), strict=True):
        told = ["train", verb, *step, *of_verb, "--run", run, "--out", str(tmp_path / run), "--service", service.url]
        ended = subprocess.run([*start, *told], env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr[-3000:]

    alone, both, before = (
        load_file(folder / "model.safetensors") for folder in [*map(tmp_path.joinpath, runs), POLICY]
    )
    moved = max((alone[name] - before[name]).abs().max().item() for name in before)
    assert max((alone[name] - both[name]).abs().max().item() for name in before) < 1e-3 * moved


def test_g2d_goes_through_all_its_stages_in_two_processes(service: Service, tmp_path: Path) -> None:
    run, out = a_run(service, "g2d-together"), tmp_path / "out"
    told = [*G2D, *HARVEST, "--warm-up", "1", "--run", run, "--name", "g2d-together-harvest", "--out", str(out)]
    start = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", "--module", "--", "refinery"]

    ended = subprocess.run(
        [*start, "train", *told, "--service", service.url, "--json"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr[-3000:]
    assert json.loads(ended.stdout)["warm_up"] == 1  # told once


def test_a_run_begun_anew_in_its_folder_is_another_run(service: Service, tmp_path: Path) -> None:
    run = a_run(service, "anew")
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")  # the service resolves what it is told
    told = a_grpo(service, tmp_path / "link/out", run, steps=2)
    grpo.train(told)
    shutil.rmtree(told.learning.out)

    grpo.train(replace(told, learning=replace(told.learning, learning_rate=3e-4)))

    assert len({lease["consumer"] for lease in leases(service, run)}) == 2
    with Refinery(service.url) as refinery:
        versions = refinery.get(f"/v1/policies/{run}")["versions"]
        sampled = {g["id"]: g["policy_version"] for g in refinery.groups(run)}
    assert [version["step"] for version in versions] == [None, 1, 2, 0, 1, 2]
    assert [{sampled[group] for group in lease["group_ids"]} for lease in leases(service, run)] == [{1}, {2}, {4}, {5}]
    assert Path(versions[-1]["checkpoint"]).is_relative_to(tmp_path / "disk")
    assert weights(Path(versions[-1]["checkpoint"])) == weights(told.learning.out)


def test_what_failed_is_tried_again_and_what_is_done_is_not(service: Service, tmp_path: Path) -> None:
    run, folder = a_run(service, "mended"), tmp_path / "checkpoint"
    with Refinery(service.url) as refinery:
        with pytest.raises(RefineryError):
            publish_checkpoint(refinery, run, str(folder), 1, "the-key")
        shutil.copytree(POLICY, folder)

        published = [publish_checkpoint(refinery, run, str(folder), 1, "the-key") for _ in range(2)]

    assert [one["version"] for one in published] == [2, 2]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"keep": 9, "micro_batch": 12}, "samples 8 rollouts a group: 9 cannot be kept"),
        ({"ahead": 4}, "is stale as soon as weights are published"),
        ({"sync_every": 2, "evaluation": Evaluation("", "held-out", "contradicted", 3)}, "a multiple of it"),
    ],
)
def test_options_that_work_against_each_other_are_refused(
    wrong: dict[str, Any], told: str, service: Service, tmp_path: Path
) -> None:
    with Refinery(service.url) as refinery:
        if "contradicted" not in {policy["name"] for policy in refinery.get("/v1/policies")}:
            a_run(service, "contradicted")

    with pytest.raises(Unfit, match=told):
        grpo.train(a_grpo(service, tmp_path / "out", "contradicted", **wrong))


def test_plain_grpo_learns_from_whatever_was_sampled(service: Service, tmp_path: Path) -> None:
    batch = {"groups": 4, "prompts": 4, "least": 4}
    run = a_run(service, "plain", selector={"kind": "all"}, retain="all", batch=batch)

    grpo.train(a_grpo(service, tmp_path / "out", run, keep=8, zero_variance=True))

    with Refinery(service.url) as refinery:
        funnel = refinery.get(f"/v1/runs/{run}")["funnel"]
    assert funnel["sampled"] == 12 > funnel["informative"]


def test_a_run_that_keeps_no_texts_of_what_plain_grpo_learns_from_is_refused(service: Service, tmp_path: Path) -> None:
    with pytest.raises(RefineryError, match="retain = all"):
        grpo.train(a_grpo(service, tmp_path / "out", a_run(service, "textless"), zero_variance=True))


def test_numbers_that_do_not_divide_are_refused_before_anything_is_sampled(service: Service, tmp_path: Path) -> None:
    run = a_run(service, "uneven")

    with pytest.raises(Unfit, match="16 rollouts a step, which do not divide into micro-batches of 7"):
        grpo.train(a_grpo(service, tmp_path / "out", run, micro_batch=7))

    assert groups(service, run) == []


def test_tasks_are_never_mixed_within_a_micro_batch_and_come_by_weight(service: Service, tmp_path: Path) -> None:
    checked, other = a_run(service, "checked"), a_run(service, "of-another-policy")
    with Refinery(service.url) as refinery:
        refinery.post("/v1/runs", refinery.get("/v1/runs/checked")["config"] | {"name": "graded"})
    run = SemiOnlineRun(
        learning(tmp_path / "out"),
        service.url,
        (Task(checked), Task("graded", 2.0, "best_with_worst")),
        steps=6,
        batch=4,
        micro_batches=2,
        entropy=0.01,
        nll=0.1,
        sync_reference_every=3,
    )

    semi_online.train(run)

    given = {name: leases(service, name) for name in (checked, "graded")}
    assert sum(map(len, given.values())) == 12
    assert 0 < len(given[checked]) < len(given["graded"])
    with pytest.raises(Unfit, match="different policies"):
        semi_online.train(replace(run, tasks=(Task(checked), Task(other)), learning=learning(tmp_path / "no")))


def test_entropy_is_rewarded_by_its_weight(service: Service, tmp_path: Path) -> None:
    found = []
    for name, weight in (("without", 0.0), ("with", 3.0)):
        run = SemiOnlineRun(learning(tmp_path / name), service.url, (Task(a_run(service, name)),), 6, batch=4)
        semi_online.train(replace(run, entropy=weight))
        log = json.loads((tmp_path / name / "training.json").read_text())["log"]
        found.append(next(entry["entropy"] for entry in reversed(log) if "entropy" in entry))

    assert found[0] < found[1]


def test_g2d_killed_in_every_stage_ends_with_one_manifest_and_the_same_weights(
    service: Service, tmp_path: Path
) -> None:
    runs = [a_run(service, name) for name in ("g2d-left-alone", "g2d-killed")]
    outs = [tmp_path / name for name in runs]

    def told(run: str) -> tuple[str, ...]:
        return (*G2D, *HARVEST, "--warm-up", "4", "--run", run, "--name", f"{run}-harvest")

    left_alone = started(service, outs[0], *told(runs[0]))
    for reached in ("warm-up/checkpoint-2", "warm-up/training.json", "dpo/run.json"):
        process = started(service, outs[1], *told(runs[1]))
        while not (outs[1] / reached).exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    result = result_of(started(service, outs[1], *told(runs[1])))
    result_of(left_alone)

    manifest = json.loads((outs[1] / "training.json").read_text())
    assert result["warm_up"] == 4
    assert manifest["harvests"]["4"]["checkpoint"] == str(outs[1] / "warm-up/kept/step-000004")
    assert manifest["dpo"]["started_from"] == str(POLICY)
    with Refinery(service.url) as refinery:
        frozen = refinery.get(f"/v1/datasets/{result['dataset']}")["manifest"]
    assert manifest["dataset"]["sha256"]["train.parquet"] == frozen["files"]["train.parquet"]["sha256"]
    assert frozen["recipe"]["policy_versions"] == [manifest["harvests"]["4"]["version"]] * 2
    assert groups(service, f"{runs[0]}-harvest") == groups(service, f"{runs[1]}-harvest")
    assert weights(outs[0] / "warm-up") == weights(outs[1] / "warm-up")


def test_of_several_warm_ups_the_advisor_chooses(service: Service, tmp_path: Path) -> None:
    run, out = a_run(service, "advised"), tmp_path / "out"
    dpo = DpoRun((), learning(out / "dpo"), service.url, batch=8, max_length=256)
    warm_up = a_grpo(service, out / "warm-up", run)
    told = G2dRun(out, warm_up, (0, 2, 4), Harvest("advised-harvest", n=4, max_tokens=96), dpo, Start.WARM)

    result = g2d.train(told)

    manifest = json.loads((out / "training.json").read_text())
    assert set(manifest["harvests"]) == {"0", "2", "4"}
    compared = {one["version"] for one in manifest["advice"]["versions"]}
    assert compared == {one["version"] for one in manifest["harvests"].values()}
    assert result["warm_up"] in {0, 2, 4}
    assert g2d.train(told) == result  # it is done
    shutil.rmtree(out)
    assert g2d.train(told)["warm_up"] in {0, 2, 4}  # with the harvests of the former in the same run
