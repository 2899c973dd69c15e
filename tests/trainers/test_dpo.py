"""DPO on frozen pairs: plain TRL, and nothing cut in silence."""

import json
import shutil
from math import log
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainers.dpo import DpoRun, Unfit, train
from trainers.tasks import LEVELS, distinct, worked_sum

POLICY = Path(__file__).parents[2] / "service/embedded_policy"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """The worked solution against a wrong bare answer, with columns TRL has no use for."""
    problems = distinct(LEVELS[1], 32, seed=0, held_out=False)
    rows = [
        {
            "prompt": p.text,
            "chosen": f"{worked_sum(p)}<answer>{p.entry['answer']}</answer>",
            "rejected": "<answer>1</answer>",
            "margin": 1.0,
            "group_id": "g",
        }
        for p in problems
    ]
    path = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.filterwarnings("ignore")  # TRL and transformers warn about each other
def test_training_prefers_the_chosen_side_and_writes_a_loadable_checkpoint(pairs: Path, tmp_path: Path) -> None:
    run = DpoRun((str(pairs),), str(POLICY), tmp_path / "out", learning_rate=2e-4, batch=8, epochs=4, max_length=256)

    result = train(run)

    history = json.loads((run.out / "training.json").read_text())["log"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert result == {"pairs": 32, "steps": 16}
    assert losses[-1] < log(2) - 0.1  # what a policy that prefers neither side scores
    assert {p.name for p in run.out.iterdir()} >= {"config.json", "model.safetensors", "tokenizer_config.json"}


@pytest.mark.filterwarnings("ignore")
def test_pairs_longer_than_max_length_are_refused_with_the_numbers(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(Unfit, match=r"\d+ of 32 pairs are longer than max_length 20: median \d+, longest \d+"):
        train(DpoRun((str(pairs),), str(POLICY), tmp_path / "out", max_length=20))

    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore")
def test_pairs_of_chat_messages_need_a_chat_template_and_may_be_in_several_files(pairs: Path, tmp_path: Path) -> None:
    rows = pq.read_table(pairs).to_pylist()
    for row in rows:
        for column, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
            row[column] = [{"role": role, "content": row[column]}]
    files = tuple(str(tmp_path / f"train-0000{i}-of-00002.parquet") for i in range(2))
    for i, file in enumerate(files):
        pq.write_table(pa.Table.from_pylist(rows[16 * i : 16 * (i + 1)]), file)
    chatty = tmp_path / "chatty"
    shutil.copytree(POLICY, chatty)
    (chatty / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")

    with pytest.raises(Unfit, match="has no chat template"):
        train(DpoRun(files, str(POLICY), tmp_path / "out"))
    with pytest.raises(Unfit, match="of 32 pairs are longer"):
        train(DpoRun(files, str(chatty), tmp_path / "out", max_length=20))
    result = train(DpoRun(files, str(chatty), tmp_path / "out", batch=16, max_length=256))

    assert result == {"pairs": 32, "steps": 2}
