"""A LoRA adapter folded into its base: what every engine can load, whether or not it knows adapters."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from curation.keys import digest
from service.checkpoints import Checkpoint


def merged(checkpoint: Checkpoint) -> Any:
    """The model with the adapter's weights added to its base's, in the base's precision."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(checkpoint.full.folder, use_safetensors=True)
    return PeftModel.from_pretrained(base, checkpoint.folder).merge_and_unload()


def merged_folder(checkpoint: Checkpoint, scratch: Path) -> Path:
    """A full checkpoint under `scratch`, made once per adapter."""
    folder = scratch / digest(checkpoint.source, checkpoint.full.source)
    if folder.exists():
        return folder
    scratch.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(dir=scratch))
    merged(checkpoint).save_pretrained(making)
    for file in checkpoint.full.folder.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and not (making / file.name).exists():
            shutil.copyfile(file, making / file.name)
    making.rename(folder)
    return folder
