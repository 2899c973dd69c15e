"""DPO on frozen pairs: plain TRL, nothing cut in silence, and nothing lost when it is killed."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.conftest import POLICY, learning
from trainers.dpo import CachedReferenceDPOTrainer, DpoRun, train
from trainers.learning import Lora, Unfit
from trainers.pairs import Source

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL and transformers warn about each other
NOWHERE = "http://127.0.0.1:9"


def a_run(*files: Path | str, out: Path, **told: Any) -> DpoRun:
    sources = tuple(Source(str(file)) for file in files)
    return DpoRun(sources, learning(out), NOWHERE, **({"batch": 8, "max_length": 256} | told))


def manifest(out: Path) -> Any:
    return json.loads((out / "training.json").read_text())


def weights(out: Path) -> str:
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def test_training_prefers_the_chosen_side_and_writes_a_loadable_checkpoint(pairs: Path, tmp_path: Path) -> None:
    result = train(a_run(pairs, out=tmp_path / "out", epochs=4))

    losses = [entry["loss"] for entry in manifest(tmp_path / "out")["log"] if "loss" in entry]
    assert result == {"pairs": 32, "steps": 16}
    assert losses[-1] < log(2) - 0.1  # what a policy that prefers neither side scores
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
    }


def test_the_manifest_names_the_data_by_its_sha256_and_everything_the_run_was_told(pairs: Path, tmp_path: Path) -> None:
    train(a_run(pairs, out=tmp_path / "out"))

    told = manifest(tmp_path / "out")
    assert [file["sha256"] for file in told["data"]] == [hashlib.sha256(pairs.read_bytes()).hexdigest()]
    assert (told["run"]["learning.seed"], told["run"]["beta"]) == (0, 0.1)
    assert set(told["libraries"]) >= {"trl", "torch"}


def test_pairs_longer_than_max_length_are_refused_with_the_numbers(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(Unfit, match=r"\d+ of 32 pairs are longer than max_length 20: median \d+, longest \d+"):
        train(a_run(pairs, out=tmp_path / "out", max_length=20))

    longer = pq.read_table(pairs).to_pylist()
    longer[3]["chosen"] *= 20
    pq.write_table(pa.Table.from_pylist(longer), tmp_path / "longer.parquet")
    with pytest.raises(Unfit, match="1 of 32 pairs are longer than the policy's context of 256"):
        train(a_run(tmp_path / "longer.parquet", out=tmp_path / "out", max_length=None))
    assert train(a_run(pairs, out=tmp_path / "out", max_length=200)) == {"pairs": 32, "steps": 4}  # the folder is free


def test_pairs_of_chat_messages_need_a_chat_template_and_may_be_in_several_files(pairs: Path, tmp_path: Path) -> None:
    rows = pq.read_table(pairs).to_pylist()
    for row in rows:
        for column, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
            row[column] = [{"role": role, "content": row[column]}]
    files = [tmp_path / f"train-0000{i}-of-00002.parquet" for i in range(2)]
    for i, file in enumerate(files):
        pq.write_table(pa.Table.from_pylist(rows[16 * i : 16 * (i + 1)]), file)
    chatty = tmp_path / "chatty"
    shutil.copytree(POLICY, chatty)
    (chatty / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")

    def at(out: str, policy: Path, max_length: int) -> DpoRun:
        run = a_run(*files, out=tmp_path / out, max_length=max_length, batch=16)
        return replace(run, learning=replace(run.learning, policy=str(policy)))

    with pytest.raises(Unfit, match="has no chat template"):
        train(at("plain", POLICY, 256))
    with pytest.raises(Unfit, match="of 32 pairs are longer"):
        train(at("short", chatty, 20))
    assert train(at("fit", chatty, 256)) == {"pairs": 32, "steps": 2}


def test_a_mix_takes_from_its_datasets_by_weight_the_same_way_for_the_same_seed(pairs: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(pairs)] * 8), more)
    mix = (Source(str(pairs), 1.0), Source(str(more), 3.0))
    runs = [replace(a_run(out=tmp_path / name), datasets=mix) for name in ("a", "b")]

    first, second = (train(run) for run in runs)

    assert 96 <= first["pairs"] <= 160  # the smaller one gives its 32 as a quarter
    assert first == second
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    with pytest.raises(Unfit, match="every dataset a weight"):
        train(replace(a_run(out=tmp_path / "c"), datasets=(mix[0], Source(str(more)))))


def test_the_reference_is_asked_once_for_the_same_pairs(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    ask = CachedReferenceDPOTrainer.compute_ref_log_probs
    monkeypatch.setattr(CachedReferenceDPOTrainer, "compute_ref_log_probs", lambda *told: asked.append(1) or ask(*told))
    elsewhere = shutil.copy(pairs, tmp_path / "elsewhere.parquet")

    train(a_run(pairs, out=tmp_path / "first"))
    times = len(asked)
    train(a_run(elsewhere, out=tmp_path / "second"))

    assert times == len(asked) == 4
    assert weights(tmp_path / "first") == weights(tmp_path / "second")
    train(a_run(pairs, out=tmp_path / "third", precompute=False))
    assert weights(tmp_path / "first") == weights(tmp_path / "third")  # the same answers, whenever it is asked


@pytest.mark.parametrize("loss", ["ipo", "hinge"])
def test_other_losses_and_an_nll_term_are_trls_own(loss: str, pairs: Path, tmp_path: Path) -> None:
    train(a_run(pairs, out=tmp_path / "plain", losses=(loss,)))
    train(a_run(pairs, out=tmp_path / "with-nll", losses=(loss,), nll=1.0))

    assert weights(tmp_path / "plain") != weights(tmp_path / "with-nll")


def test_adapters_are_trained_instead_of_all_weights(pairs: Path, tmp_path: Path) -> None:
    run = a_run(pairs, out=tmp_path / "out")
    train(replace(run, learning=replace(run.learning, lora=Lora(8, 16), learning_rate=2e-3)))

    assert (tmp_path / "out/adapter_model.safetensors").exists()
    assert not (tmp_path / "out/model.safetensors").exists()


def test_any_option_of_trl_goes_through(pairs: Path, tmp_path: Path) -> None:
    run = a_run(pairs, out=tmp_path / "out")
    train(replace(run, learning=replace(run.learning, options={"max_steps": 2, "logging_steps": 1})))

    assert manifest(tmp_path / "out")["result"] == {"pairs": 32, "steps": 2}
    assert len([entry for entry in manifest(tmp_path / "out")["log"] if "loss" in entry]) == 2


def test_a_policy_is_loaded_as_it_is_told(pairs: Path, tmp_path: Path) -> None:
    run = a_run(pairs, out=tmp_path / "out")
    train(replace(run, learning=replace(run.learning, loading={"dtype": "bfloat16"})))

    assert {tensor.dtype for tensor in load_file(tmp_path / "out/model.safetensors").values()} == {torch.bfloat16}


def test_a_folder_belongs_to_one_run(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = train(a_run(pairs, out=out))
    before = weights(out)

    assert train(a_run(pairs, out=out)) == done  # and nothing is trained
    with pytest.raises(Unfit, match="another run, with another beta"):
        train(a_run(pairs, out=out, beta=0.5))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("dear")
    with pytest.raises(Unfit, match="is not empty"):
        train(a_run(pairs, out=tmp_path / "full"))
    assert weights(out) == before


def test_a_dataset_that_came_damaged_is_refused(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainers import pairs as room

    with pytest.raises(Unfit, match="came damaged"):
        room._fetched(pairs.as_uri(), "0" * 64)
    whole = room._fetched(pairs.as_uri())
    pairs.unlink()
    assert room._fetched(pairs.as_uri(), whole.sha256) == whole  # it is here already


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"datasets": (Source("/nowhere.parquet"),)}, "there is no file"),
        ({"datasets": (Source("http://127.0.0.1:9/pairs.parquet"),)}, "cannot be fetched"),
        ({"learning": {"policy": "/nowhere"}}, "is no policy that can be trained"),
        ({"learning": {"options": {"no_such_option": 1}}}, "DPOConfig: .*no_such_option"),
    ],
)
def test_what_cannot_be_trained_is_told_in_a_line_and_leaves_no_folder(
    wrong: dict[str, Any], told: str, pairs: Path, tmp_path: Path
) -> None:
    run = a_run(pairs, out=tmp_path / "out")
    changed = {name: replace(run.learning, **new) if name == "learning" else new for name, new in wrong.items()}

    with pytest.raises(Unfit, match=told):
        train(replace(run, **changed))

    assert not (tmp_path / "out/run.json").exists()


def test_a_file_without_pairs_is_told_by_what_it_lacks(pairs: Path, tmp_path: Path) -> None:
    pq.write_table(pq.read_table(pairs).drop_columns(["rejected"]), pairs)

    with pytest.raises(Unfit, match="has no column rejected"):
        train(a_run(pairs, out=tmp_path / "out"))


def test_what_changes_nothing_that_is_learned_may_be_told_otherwise(pairs: Path, tmp_path: Path) -> None:
    run = a_run(pairs, out=tmp_path / "out")
    done = train(run)

    elsewhere = replace(run.learning, save_every=7, report_to=("tensorboard",))
    assert train(replace(run, service="http://elsewhere:1", learning=elsewhere)) == done


def test_an_option_of_trl_that_the_run_sets_itself_is_refused(pairs: Path, tmp_path: Path) -> None:
    run = a_run(pairs, out=tmp_path / "out")

    with pytest.raises(Unfit, match="--trl beta, max_length: the run sets that itself"):
        train(replace(run, learning=replace(run.learning, options={"max_length": 4, "beta": 1})))


def test_a_run_that_had_made_its_last_step_makes_no_other(pairs: Path, tmp_path: Path) -> None:
    run = a_run(pairs, out=tmp_path / "out", epochs=1.5)
    done = train(run)
    before = weights(tmp_path / "out")
    (tmp_path / "out/training.json").unlink()  # as if it had been killed before it was written

    assert train(run) == done == {"pairs": 32, "steps": 6}
    assert weights(tmp_path / "out") == before


def test_a_checkpoint_that_was_torn_is_none(pairs: Path, tmp_path: Path) -> None:
    run = a_run(pairs, out=tmp_path / "out")
    run = replace(run, learning=replace(run.learning, save_every=2))
    train(run)
    before = weights(tmp_path / "out")
    (tmp_path / "out/training.json").unlink()
    (tmp_path / "out/checkpoint-4/trainer_state.json").write_text("")

    train(run)

    assert weights(tmp_path / "out") == before


def test_adapters_are_learned_anew_on_a_policy_that_has_some(pairs: Path, tmp_path: Path) -> None:
    first = a_run(pairs, out=tmp_path / "first")
    lora = replace(first.learning, lora=Lora(8, 16), learning_rate=2e-3)
    train(replace(first, learning=lora))

    second = replace(lora, policy=str(tmp_path / "first"), out=tmp_path / "second")
    train(replace(first, learning=second))

    old, new = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "second"))
    assert all((old[name] != new[name]).any() for name in old if "lora_B" in name)
    base = Path(json.loads((tmp_path / "second/adapter_config.json").read_text())["base_model_name_or_path"])
    assert (base / "model.safetensors").exists()


def test_the_reference_of_adapters_is_asked_once_whatever_they_begin_with(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    ask = CachedReferenceDPOTrainer.compute_ref_log_probs
    monkeypatch.setattr(CachedReferenceDPOTrainer, "compute_ref_log_probs", lambda *told: asked.append(1) or ask(*told))
    for seed, lora in ((0, None), (1, Lora(8, 16)), (2, Lora(4, 8))):
        run = a_run(pairs, out=tmp_path / f"seed-{seed}")
        train(replace(run, learning=replace(run.learning, seed=seed, lora=lora)))

    assert len(asked) == 4


def test_a_trainer_killed_three_times_ends_with_the_very_same_weights(pairs: Path, tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        told = [sys.executable, "-m", "refinery", "train", "dpo", "--dataset", str(pairs), "--policy", str(POLICY)]
        return [
            *told,
            "--out",
            str(out),
            "--learning-rate",
            "2e-4",
            "--batch",
            "2",
            "--epochs",
            "4",
            "--save-every",
            "5",
        ]

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "undisturbed"), check=True, env=environment, capture_output=True)

    disturbed = tmp_path / "disturbed"
    for step in (10, 25, 45):
        process = subprocess.Popen(
            command(disturbed), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not list(disturbed.glob(f"checkpoint-{step}*")):
            assert process.poll() is None
            time.sleep(0.005)  # also in the middle of writing one
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (disturbed / "training.json").exists()
    subprocess.run(command(disturbed), check=True, env=environment, capture_output=True)

    assert manifest(disturbed)["result"] == {"pairs": 32, "steps": 64}
    assert weights(disturbed) == weights(tmp_path / "undisturbed")
