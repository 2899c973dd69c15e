"""Somebody else's programs train from the service: no import of ours, no client library."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import serving
from tests.trainers.conftest import POLICY
from trainers.client import Refinery
from trainers.tasks import LEVELS, distinct

SCRIPT = """
    import sys
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    url, policy, out = sys.argv[1:]
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(policy, dtype="float32"),
        args=DPOConfig(
            output_dir=out,
            max_steps=4,
            learning_rate=2e-4,
            bf16=False,
            max_length=256,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=load_dataset("parquet", data_files=url, split="train"),
        processing_class=AutoTokenizer.from_pretrained(policy),
    )
    trainer.train()
    trainer.save_model(out)
"""
MIX = """
    datasets:
      - path: parquet
        data_files: {url}
    model_name_or_path: {policy}
    output_dir: {out}
    max_steps: 4
    bf16: false
    max_length: 256
    report_to: none
    save_strategy: "no"
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of frozen pairs, at a running service."""
    folder = tmp_path_factory.mktemp("service")
    with serving(folder / "data") as service, Refinery(service.url) as refinery:
        problems = distinct(LEVELS[2], 24, seed=0, held_out=False)
        refinery.add_prompts((p.as_prompt() for p in problems), "sums")
        sampling = {"n": 8, "max_tokens": 96}
        refinery.post("/v1/runs", {"name": "r", "policy": "policy", "prompt_set": "sums", "sampling": sampling})
        refinery.wait(refinery.post("/v1/runs/r/rollouts", {"passes": 1}))
        frozen = refinery.post("/v1/datasets", {"name": "pairs", "recipe": {"runs": ["r"]}})
        yield service.url + frozen["urls"]["train.parquet"]


def run(command: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]


def test_a_script_of_twenty_lines_trains_on_a_url(url: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))

    run([sys.executable, str(script), url, str(POLICY), str(tmp_path / "out")])

    assert (tmp_path / "out/model.safetensors").read_bytes() != (POLICY / "model.safetensors").read_bytes()


def test_trls_own_command_trains_on_a_url(url: str, tmp_path: Path) -> None:
    config = tmp_path / "dpo.yaml"
    config.write_text(textwrap.dedent(MIX).format(url=url, policy=POLICY, out=tmp_path / "out"))

    run([str(Path(sys.executable).with_name("trl")), "dpo", "--config", str(config)])

    assert (tmp_path / "out/model.safetensors").exists()
