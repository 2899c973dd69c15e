"""Which checkpoints can be loaded: checked here, before any engine sees them.

- A checkpoint is a folder on this machine or a Hugging Face Hub id, pinned to a commit; weights are safetensors only.
- Whoever has a key may name folders within certain roots only, and learns nothing of others, not even by an adapter's
  base.
- What no engine survives is refused here: a truncated file ends a vLLM and an SGLang server, missing tensors
  leave the old or random ones in place, without a word.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from service.stages import Invalid, NotFound

EMBEDDED = Path(__file__).parent / "embedded_policy"
"""The checkpoint that comes with the product; ``refinery train sft`` made it."""

HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>(?!.*\.\.)[\w][\w./-]*))?", re.ASCII)
FULL = ("config.json", "tokenizer_config.json", "*.safetensors")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
TIED_HEAD = "lm_head.weight"
"""Saved or not when input and output embeddings are one tensor."""

Shapes = dict[str, tuple[int, ...]]
Roots = Sequence[Path] | None
"""Folders that checkpoints must lie in, or be; None where they may lie anywhere."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder that was checked."""

    source: str
    """What names it for ever: the absolute folder, or ``owner/name@commit``."""
    folder: Path
    base: "Checkpoint | None" = None
    """The full checkpoint that a LoRA adapter was trained on."""

    @property
    def full(self) -> "Checkpoint":
        """The checkpoint with all the weights, the tokenizer and the model's configuration."""
        return self.base or self

    @cached_property
    def shapes(self) -> Shapes:
        """Shape of every tensor, from the files' headers. Raises Invalid for a damaged or incomplete file."""
        return _shapes(self.folder)

    def checked(self) -> "Checkpoint":
        """Itself. Raises what `shapes` does."""
        _ = self.shapes
        return self

    @cached_property
    def config(self) -> dict[str, Any]:
        return _json(self.full.folder / "config.json")


def named(checkpoint: str, roots: Roots = None) -> str:
    """The name under which a job fetches the checkpoint later. Asks no other machine. Blocks. Raises Invalid for what
    can be seen to be none."""
    folder = _folder(checkpoint, roots)
    if folder is None:
        return _hub_id(checkpoint).string
    base = _base_of(folder)
    if base is not None and _folder(base, roots) is None:
        _hub_id(base)
        return Checkpoint(str(folder), folder).checked().source
    return _checked(folder, str(folder), roots).source


def fetch(checkpoint: str, roots: Roots = None) -> Checkpoint:
    """The checkpoint, downloaded first if it is on the Hub. Blocks. Raises Invalid, or NotFound from the Hub."""
    return _checked(*_found(checkpoint, roots), roots)


def open_folder(folder: str | Path, roots: Roots = None) -> Checkpoint:
    """Raises Invalid unless the folder holds all of a checkpoint, or of an adapter whose base can be fetched."""
    path = Path(_at_home(folder)).resolve()
    return _checked(path, str(path), roots)


def same_architecture(new: Checkpoint, old: Checkpoint) -> None:
    """Raises Invalid unless `new` can take the place of `old` in a running engine."""
    ours, theirs = dict(new.full.shapes), dict(old.full.shapes)
    if new.config.get("tie_word_embeddings"):
        ours.pop(TIED_HEAD, None)
        theirs.pop(TIED_HEAD, None)
    if ours == theirs:
        return
    different = sorted(ours.items() ^ theirs.items())[0][0]
    raise Invalid(
        "checkpoint_differs",
        f"{new.full.source} has tensor {different!r} as {_said(ours, different)}, {old.full.source} as "
        f"{_said(theirs, different)}: the versions of a policy have one architecture; POST /v1/policies makes another",
    )


def _folder(checkpoint: str, roots: Roots) -> Path | None:
    """The folder that is meant, or None. Raises Invalid for one outside the roots, whether it is there or not."""
    path = Path(_at_home(checkpoint))
    is_there = os.path.isdir(path)  # unlike Path.is_dir, False for a NUL or an endless name too
    if not is_there and not (path.is_absolute() and roots is not None):
        return None
    try:
        folder = path.resolve()
    except (OSError, ValueError):
        return None
    if roots is None or any(folder.is_relative_to(root.resolve()) for root in roots):
        return folder if is_there else None
    if not path.is_absolute():
        return None  # a Hub id, for all that this client may know
    allowed = ", ".join(map(str, roots))
    raise Invalid(
        "checkpoint_outside",
        f"checkpoints lie in {allowed}: start the service with another --checkpoint-root for others",
    )


def _at_home(folder: str | Path) -> str:
    """With our own home for ``~``. Where others have theirs, and whether they do, is told nobody."""
    text = str(folder)
    return os.path.expanduser(text) if text == "~" or text.startswith("~/") else text


def _hub_id(checkpoint: str) -> re.Match[str]:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    match = HUB_ID.fullmatch(checkpoint)
    if match is None:
        raise Invalid("checkpoint_not_found", f"there is no folder {checkpoint!r} on the service's machine")
    try:
        validate_repo_id(match["repo"])
    except HFValidationError as error:
        raise Invalid(
            "checkpoint_not_found", f"{checkpoint!r} is no folder here and no name on the Hub: {error}"
        ) from None
    return match


def _said(shapes: Shapes, name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "absent"


def _found(checkpoint: str, roots: Roots) -> tuple[Path, str]:
    """The folder, downloaded first if it is on the Hub, and what names it for ever."""
    if folder := _folder(checkpoint, roots):
        return folder, str(folder)
    hub_id = _hub_id(checkpoint)
    return _downloaded(hub_id["repo"], hub_id["revision"])


def _checked(path: Path, source: str, roots: Roots) -> Checkpoint:
    full = None
    if base := _base_of(path):
        place, name = _found(base, roots)
        if _base_of(place) is not None:
            raise Invalid("checkpoint_incomplete", f"the base {base} of adapter {path} is itself an adapter")
        full = Checkpoint(name, place).checked()
    return Checkpoint(source, path, full).checked()


def _base_of(path: Path) -> str | None:
    """What an adapter was trained on; None of a full checkpoint. Raises Invalid for a folder that is neither."""
    if not (path / ADAPTER[0]).exists():
        _require(path, FULL)
        return None
    _require(path, ADAPTER)
    base = _json(path / ADAPTER[0]).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise Invalid("checkpoint_incomplete", f"{path / ADAPTER[0]} does not name its base_model_name_or_path")
    return base


def _require(path: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        if not any(path.glob(pattern)):
            raise Invalid("checkpoint_incomplete", f"{path} is no checkpoint: it has no {pattern}")


def _shapes(folder: Path) -> Shapes:
    index = folder / "model.safetensors.index.json"
    shards = set(_json(index).get("weight_map", {}).values()) if index.exists() else ()
    for shard in shards:
        if Path(shard).name != shard:
            raise Invalid("checkpoint_damaged", f"{index} names {shard}: {shard} is no file of the checkpoint")
    shapes: Shapes = {}
    for file in [folder / name for name in sorted(shards)] or sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="np") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise Invalid("checkpoint_damaged", f"{file} cannot be read as safetensors: {error}") from error
    if not shapes:
        raise Invalid("checkpoint_damaged", f"{folder} holds no tensors")
    return shapes


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise Invalid("checkpoint_damaged", f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise Invalid("checkpoint_damaged", f"{file} is no JSON object")
    return content


def _downloaded(repo: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=list(HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        said = str(error).splitlines()[0]
        raise NotFound("checkpoint_not_found", f"the Hub gives no {repo}@{revision or 'main'}: {said}") from error
    path = Path(folder)  # .../snapshots/<commit>
    return path, f"{repo}@{path.name}"
