"""What the trainers share: what a learner is told, how its policy is loaded, and how an interrupted run goes on.

- A folder belongs to one run. The same command again goes on from the newest whole checkpoint in it, and does nothing
  once the run is done; a different command is refused.
- What is not told here is TRL's own: any option of its configuration goes through as it is.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerState,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from curation.keys import digest
from trainers.cache import cache, unfinished, weights_of
from trainers.client import Json, Refinery, RefineryError
from trainers.provenance import commit, machine

T = TypeVar("T")
SMALL = 20_000_000
"""Parameters up to which one thread is fastest."""
BEGUN, DONE = "run.json", "training.json"
NOTHING: Mapping[str, Any] = {}
ADAPTERS = "adapter_config.json"
BESIDE = {"service", "out", "save_every", "report_to", "evaluation"}
"""Parts of the names of what a run may be told otherwise when it goes on."""
PATIENCE = 600.0
"""Seconds that a trainer waits for a service that does not answer, one that is started again say."""
TOGETHER = timedelta(days=1)
"""That processes wait for each other: one of them may be waiting for the service."""
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
    """More of TRL's own."""
    loading: Mapping[str, Any] = field(default_factory=dict)
    """Options of `from_pretrained`, the same way: `dtype`, `attn_implementation`."""

    def trl(self, usual: Mapping[str, Any] = NOTHING, **fixed: Any) -> Json:
        """For TRL's configuration: what is `usual` for a run, and what is `fixed`. Raises Unfit for an option that
        would change the latter."""
        on_gpu = torch.cuda.is_available()
        fixed |= {
            "output_dir": str(self.out),
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            "save_strategy": "steps",
            "save_steps": self.save_every,
        }
        if contradicted := sorted(fixed.keys() & self.options.keys()):
            raise Unfit(f"--trl {', '.join(contradicted)}: the run sets that itself; see the options of the command")
        told = {
            "data_seed": self.seed,
            "use_cpu": not torch.accelerator.is_available(),
            "bf16": on_gpu and torch.cuda.is_bf16_supported(),
            "gradient_checkpointing": on_gpu,  # on a CPU memory is not what is short
            "save_total_limit": 2,
            "report_to": list(self.report_to) or "none",
            "logging_steps": 10,
        }
        return told | dict(usual) | dict(self.options) | fixed

    @property
    def has_dropout(self) -> bool:
        return self.lora is not None and self.lora.dropout > 0


@dataclass(frozen=True, slots=True)
class Policy:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    adapters: LoraConfig | None

    @classmethod
    def load(cls, learning: Learning) -> "Policy":
        told = {"dtype": "float32", "use_safetensors": True} | dict(learning.loading)
        start, _, revision = (
            (learning.policy, "", "") if Path(learning.policy).exists() else learning.policy.partition("@")
        )
        pinned = {"revision": revision} if revision else {}
        try:
            if (Path(start) / ADAPTERS).exists():
                start = merged(Path(start), told)
            model = AutoModelForCausalLM.from_pretrained(start, **pinned, **told)
            tokenizer = AutoTokenizer.from_pretrained(start, **pinned)
        except (OSError, ValueError) as error:
            raise Unfit(f"{learning.policy} is no policy that can be trained: {error}") from None
        if model.num_parameters() <= SMALL:
            torch.set_num_threads(1)  # threads of so small a product only wait for each other
        return cls(model, tokenizer, learning.lora.config() if learning.lora else None)


def merged(folder: Path, told: Json) -> str:
    """A checkpoint with the adapters of this one in its weights: new adapters cannot stand on others."""
    known = cache("merged") / digest(*weights_of(folder), *sorted(told.items()))
    with team().main_process_first():
        if not known.exists():
            with unfinished(known.parent) as whole:
                whole.mkdir()
                model = AutoPeftModelForCausalLM.from_pretrained(folder, **told).merge_and_unload()
                model.save_pretrained(whole)
                AutoTokenizer.from_pretrained(folder).save_pretrained(whole)
                whole.rename(known)
    return str(known)


def configured(kind: type[T], **told: Any) -> T:
    """TRL's configuration of this kind. Raises Unfit for what it does not know or cannot do."""
    try:
        return kind(**told)
    except (TypeError, ValueError) as refusal:
        raise Unfit(f"{kind.__name__}: {refusal}") from None


def team() -> PartialState:
    """This process among those of the trainer. Those on CPUs find each other only if they are told that they are, and
    all wait while one of them talks to the service."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=TOGETHER)


def reached(service: str) -> Refinery:
    """The service, which is waited for where what is asked of it can be asked again."""
    return Refinery(service, patience=PATIENCE)


def by_one(ask: Callable[[], T]) -> T:
    """What the first process found out, for all of them; what it was refused, too."""
    outcome: list[Any] = [None, None]
    if team().is_main_process:
        try:
            outcome[0] = ask()
        except (Unfit, RefineryError) as error:
            outcome[1] = error
    found, refusal = broadcast_object_list(outcome)
    if refusal is not None:
        raise refusal
    answer: T = found
    return answer


def finished(out: Path, run: Any) -> Json | None:
    """What came of this run if it is done. Raises Unfit where the folder is another run's."""
    if (out / BEGUN).exists():
        known, told = _decisive(json.loads((out / BEGUN).read_text())["run"]), _decisive(_told(run))
        if differing := sorted(name for name in known.keys() | told.keys() if known.get(name) != told.get(name)):
            raise Unfit(
                f"{out} holds another run, with another {', '.join(differing)}: give the same options to go on with "
                "it, or another --out"
            )
    elif out.exists() and any(not path.name.endswith(".part") for path in out.iterdir()):
        raise Unfit(f"{out} is not empty and holds no run to go on with: choose another --out")
    done = out / DONE
    return json.loads(done.read_text())["result"] if done.exists() else None


def claim(out: Path, run: Any) -> None:
    """From now on the folder is this run's, which has a name that no other run ever had."""
    if team().is_main_process and not (out / BEGUN).exists():
        out.mkdir(parents=True, exist_ok=True)
        _write(out / BEGUN, {"id": uuid4().hex[:8], "run": _told(run)})
    team().wait_for_everyone()


def identity(out: Path) -> str:
    """What the run of a folder is called in the service: whatever it asks for by a key belongs to this run alone."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", out.name)[:80].strip("._-") or "trainer"
    return f"{readable}-{json.loads((out / BEGUN).read_text())['id']}"


def learn(trainer: Trainer, out: Path, run: Any) -> None:
    """Trains, from the newest whole checkpoint if there is one, and saves policy and tokenizer to the folder."""
    claim(out, run)
    newest = by_one(lambda: newest_checkpoint(out))
    reached = TrainerState.load_from_json(f"{newest}/{TRAINER_STATE_NAME}") if newest else None
    if reached and reached.global_step >= reached.max_steps:
        trainer._load_from_checkpoint(newest)  # TRL would make a step more
        trainer.state = reached
    else:
        trainer.train(resume_from_checkpoint=newest)
    if trainer.state.global_step < trainer.args.max_steps:
        raise RuntimeError(f"TRL stopped at step {trainer.state.global_step} of {trainer.args.max_steps}")
    trainer.save_model(str(out))


def newest_checkpoint(out: Path) -> str | None:
    """The newest checkpoint that was written whole; what a killed trainer left half written is removed."""
    whole = {}
    for step, folder in checkpoints(out).items():
        try:
            json.loads((folder / TRAINER_STATE_NAME).read_text())  # written last
            whole[step] = folder
        except (OSError, ValueError):
            shutil.rmtree(folder, ignore_errors=True)
    return str(whole[max(whole)]) if whole else None


def checkpoints(out: Path) -> dict[int, Path]:
    """Those of TRL by step, also half written ones."""
    return {int(folder.name.rpartition("-")[2]): folder for folder in out.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}


def finish(out: Path, run: Any, result: Json, trainer: Trainer | None = None, **facts: Any) -> Json:
    """Writes down what came of a run, and of what; returns the result."""
    if trainer is not None:
        facts |= {"log": trainer.state.log_history}
    if team().is_main_process:
        versions = {name: version(name) for name in LIBRARIES}
        provenance = {"commit": commit(), "machine": machine(), "libraries": versions}
        _write(out / DONE, {"result": result, "run": _told(run)} | facts | provenance)
    return result


def _decisive(told: Json) -> Json:
    """Without what changes nothing that is learned."""
    return {name: value for name, value in told.items() if not BESIDE & set(name.split("."))}


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
