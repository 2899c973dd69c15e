"""A checkpoint is refused before any engine sees it, with what is wrong with it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from service.checkpoints import EMBEDDED, fetch, named, open_folder, same_architecture
from service.stages import Invalid, NotFound

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded policy."""
    copy = tmp_path / "policy"
    copy.mkdir()
    for file in EMBEDDED.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def refusal(checkpoint: Path | str) -> str:
    with pytest.raises(Invalid) as refused:
        fetch(str(checkpoint))
    return f"{refused.value.code}: {refused.value}"


def test_a_whole_checkpoint_has_its_shapes(folder: Path) -> None:
    checkpoint = fetch(str(folder))

    assert checkpoint.source == str(folder)
    assert checkpoint.shapes["model.embed_tokens.weight"] == (260, 128)
    assert checkpoint.shapes == open_folder(EMBEDDED).shapes


def test_a_truncated_file_is_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])

    assert refusal(folder).startswith(f"checkpoint_damaged: {weights} cannot be read as safetensors")


@pytest.mark.parametrize("missing", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()

    assert refusal(folder).startswith("checkpoint_incomplete")


def test_a_missing_shard_is_refused(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    assert "model-00002-of-00002.safetensors cannot be read" in refusal(folder)


def test_nothing_outside_the_folder_is_a_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    assert "../elsewhere.safetensors is no file of the checkpoint" in refusal(folder)


def test_missing_tensors_are_another_architecture(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors")

    with pytest.raises(Invalid, match=r"layers\.1\.mlp\.up_proj\.weight' as absent.*as \[320, 128\]"):
        same_architecture(fetch(str(folder)), open_folder(EMBEDDED))


def test_a_tied_head_may_be_saved_or_not(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = np.copy(weights["model.embed_tokens.weight"])
    save_file(weights, folder / "model.safetensors")

    same_architecture(fetch(str(folder)), open_folder(EMBEDDED))
    same_architecture(open_folder(EMBEDDED), fetch(str(folder)))


def test_an_adapter_needs_its_base(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    save_file({"a": np.zeros(1)}, adapter / "adapter_model.safetensors")
    assert "does not name its base_model_name_or_path" in refusal(adapter)

    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(EMBEDDED)}))

    assert fetch(str(adapter)).full.folder == EMBEDDED


def test_an_adapter_on_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    save_file({"a": np.zeros(1)}, tmp_path / "adapter_model.safetensors")

    assert "is itself an adapter" in refusal(tmp_path)


def adapter_on(base: Path | str, folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    save_file({"a": np.zeros(1)}, folder / "adapter_model.safetensors")
    return folder


def test_adapters_on_each_other_are_refused(tmp_path: Path) -> None:
    one = adapter_on(tmp_path / "other", tmp_path / "one")
    adapter_on(one, tmp_path / "other")

    assert "is itself an adapter" in refusal(one)


def test_the_base_of_an_adapter_is_looked_for_on_the_hub_when_it_is_fetched_and_not_before(tmp_path: Path) -> None:
    adapter = adapter_on("team/nothing", tmp_path / "adapter")

    assert named(str(adapter)) == str(adapter)
    assert "the Hub gives no team/nothing" in fetch_offline(str(adapter), tmp_path).stderr
    with pytest.raises(Invalid, match="no folder"):
        named(str(adapter_on("no name", tmp_path / "other")))


def test_who_else_has_a_home_on_this_machine_is_not_told(tmp_path: Path) -> None:
    def told(checkpoint: str) -> str:
        with pytest.raises(Invalid) as refused:
            named(checkpoint, [tmp_path])
        return refused.value.code

    assert told("~root/x") == told("~nobody-of-that-name/x") == "checkpoint_not_found"
    assert told("~/x") == "checkpoint_outside"


@pytest.mark.parametrize(
    "name", ["nowhere", "../policy", "a/b/c", "a/b@../c", "a/b@c/../d", "/nowhere", "a\0b", "x" * 9000]
)
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(name: str) -> None:
    with pytest.raises(Invalid, match="there is no folder"):
        named(name)


def fetch_offline(checkpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, because the Hub's library reads its settings when it is imported."""
    program = f"from service.checkpoints import fetch; c = fetch({checkpoint!r}); print(c.source); print(c.folder)"
    variables = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, env=variables, check=False)


def test_a_hub_id_is_pinned_to_its_commit(tmp_path: Path) -> None:
    """From a cache as the Hub's own library leaves it; nothing is fetched here."""
    cached = tmp_path / "hub/models--team--policy"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text(COMMIT)
    snapshot = cached / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in EMBEDDED.iterdir():
        (snapshot / file.name).symlink_to(file)

    ended = fetch_offline("team/policy", tmp_path)

    assert ended.stdout.split() == [f"team/policy@{COMMIT}", str(snapshot)], ended.stderr


def test_an_id_that_the_hub_does_not_give_is_not_found(tmp_path: Path) -> None:
    ended = fetch_offline("team/nothing", tmp_path)

    assert ended.stderr.splitlines()[-1].startswith(f"{NotFound.__module__}.{NotFound.__name__}: the Hub gives no")
