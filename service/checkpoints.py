"""Which folders count as a checkpoint."""

import os
from pathlib import Path

from service.stages import Invalid

EMBEDDED = Path(__file__).parent / "embedded_policy"
"""The checkpoint that comes with the product; ``refinery train sft`` made it."""


def checkpoint_folder(checkpoint: str) -> Path:
    """The folder, made absolute. Raises Invalid unless it holds a config, a tokenizer and safetensors weights."""
    folder = Path(checkpoint).expanduser()
    if not os.path.isdir(folder):  # unlike Path.is_dir, False for a NUL or an endless name too
        raise Invalid("checkpoint_not_found", f"there is no folder {checkpoint!r} on the service's machine")
    for pattern in ("config.json", "tokenizer_config.json", "*.safetensors"):
        if not any(folder.glob(pattern)):
            raise Invalid("checkpoint_incomplete", f"{folder} is no checkpoint: it has no {pattern}")
    return folder.resolve()
