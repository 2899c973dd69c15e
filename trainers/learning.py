"""What the trainers share: what a learner is told, how its policy is loaded, and how an interrupted run goes on.

- A folder belongs to one run. The same command again goes on from the newest whole checkpoint in it, and does nothing
  once the run is done; a different command is refused.
- What is not told here is TRL's own: any option of its configuration goes through as it is.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from trainers.provenance import commit, machine

Json = dict[str, Any]
T = TypeVar("T")
SMALL = 20_000_000
"""Parameters up to which one thread is fastest."""
BEGUN, DONE = "run.json", "training.json"
LIBRARIES = ("trl", "transformers", "torch", "accelerate", "peft", "datasets")


class Unfit(Exception):
    """Data, a folder or an option that this run cannot work with; nothing was trained."""


@dataclass(frozen=True, slots=True)
class Lora:
    """Adapters instead of all weights."""

    rank: int
    alpha: float
    dropout: float = 0.0

    def config(self) -> LoraConfig:
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )


@dataclass(frozen=True, slots=True)
class Learning:
    """What a learner is told, whatever it learns from."""

    policy: str
    """Checkpoint folder, or a Hub id, to start from; also the reference model."""
    out: Path
    learning_rate: float = 1e-6
    seed: int = 0
    lora: Lora | None = None
    save_every: int = 100
    """Steps between checkpoints."""
    report_to: tuple[str, ...] = ()
    """Where TRL reports to: trackio, wandb, tensorboard."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """More of TRL's own; these win over ours."""
    loading: Mapping[str, Any] = field(default_factory=dict)
    """Options of `from_pretrained`, the same way: `dtype`, `attn_implementation`."""

    def trl(self, **own: Any) -> Json:
        """For TRL's configuration."""
        on_gpu = torch.cuda.is_available()
        told = {
            "output_dir": str(self.out),
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            "data_seed": self.seed,
            "use_cpu": not torch.accelerator.is_available(),
            "bf16": on_gpu and torch.cuda.is_bf16_supported(),
            "gradient_checkpointing": on_gpu,  # on a CPU memory is not what is short
            "save_strategy": "steps",
            "save_steps": self.save_every,
            "save_total_limit": 2,
            "report_to": list(self.report_to) or "none",
            "logging_steps": 10,
        }
        return told | own | dict(self.options)


@dataclass(frozen=True, slots=True)
class Policy:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    adapters: LoraConfig | None

    @classmethod
    def load(cls, learning: Learning) -> "Policy":
        try:
            told = {"dtype": "float32", "use_safetensors": True} | dict(learning.loading)
            model = AutoModelForCausalLM.from_pretrained(learning.policy, **told)
            tokenizer = AutoTokenizer.from_pretrained(learning.policy)
        except (OSError, ValueError) as error:
            raise Unfit(f"{learning.policy} is no policy that can be trained: {error}") from None
        if model.num_parameters() <= SMALL:
            torch.set_num_threads(1)  # threads of so small a product only wait for each other
        return cls(model, tokenizer, learning.lora.config() if learning.lora else None)


def configured(kind: type[T], **told: Any) -> T:
    """TRL's configuration of this kind. Raises Unfit for what it does not know or cannot do."""
    try:
        return kind(**told)
    except (TypeError, ValueError) as refusal:
        raise Unfit(f"{kind.__name__}: {refusal}") from None


def team() -> PartialState:
    """This process among those of the trainer. Those on CPUs find each other only if they are told that they are."""
    return PartialState(cpu=not torch.accelerator.is_available())


def finished(out: Path, run: Any) -> Json | None:
    """What came of this run if it is done. Raises Unfit where the folder is another run's."""
    told = _told(run)
    if (out / BEGUN).exists():
        known = json.loads((out / BEGUN).read_text())
        if differing := sorted(name for name in known.keys() | told.keys() if known.get(name) != told.get(name)):
            raise Unfit(
                f"{out} holds another run, with another {', '.join(differing)}: give the same options to go on with "
                "it, or another --out"
            )
    elif out.exists() and any(out.iterdir()):
        raise Unfit(f"{out} is not empty and holds no run to go on with: choose another --out")
    done = out / DONE
    return json.loads(done.read_text())["result"] if done.exists() else None


def claim(out: Path, run: Any) -> None:
    """From now on the folder is this run's."""
    if team().is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        _write(out / BEGUN, _told(run))


def learn(trainer: Trainer, out: Path, run: Any) -> None:
    """Trains, from the newest whole checkpoint if there is one, and saves policy and tokenizer to the folder."""
    claim(out, run)
    trainer.train(resume_from_checkpoint=newest_checkpoint(out))
    if trainer.state.global_step < trainer.args.max_steps:
        raise RuntimeError(f"TRL stopped at step {trainer.state.global_step} of {trainer.args.max_steps}")
    trainer.save_model(str(out))


def newest_checkpoint(out: Path) -> str | None:
    """The newest checkpoint that was written whole; what a killed trainer left half written is removed."""
    whole = []
    for folder in out.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if (folder / TRAINER_STATE_NAME).exists():  # written last
            whole.append(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    newest = max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
    return str(newest) if newest else None


def finish(out: Path, run: Any, result: Json, trainer: Trainer | None = None, **facts: Any) -> Json:
    """Writes down what came of a run, and of what; returns the result."""
    if trainer is not None:
        facts |= {"log": trainer.state.log_history}
        trainer.end()
    if team().is_main_process:
        versions = {name: version(name) for name in LIBRARIES}
        provenance = {"commit": commit(), "machine": machine(), "libraries": versions}
        _write(out / DONE, {"result": result, "run": _told(run)} | facts | provenance)
    return result


def _told(run: Any) -> Json:
    """What a run was told, name by name."""
    told = json.loads(json.dumps(dataclasses.asdict(run), default=str))
    return dict(_flat(told))


def _flat(told: Json, within: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in told.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", value


def _write(path: Path, value: Any) -> None:
    """Whole or not at all."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(value, indent=1))
    unfinished.rename(path)
