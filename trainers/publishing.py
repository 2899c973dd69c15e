"""Giving the service what was learned so far, as the next version of a policy.

- The weights lie in a folder that both see; the service reads them from there until a newer version is live.
- Publishing the same weights of the same step again changes nothing, so a trainer that was killed may.
"""

import hashlib
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from curation.keys import digest
from trainers.client import Refinery

Json = dict[str, Any]


class Publisher:
    """Of one trainer to one policy, which it makes if there is none of that name."""

    def __init__(self, service: str, policy: str, out: Path) -> None:
        """`out` is the folder of the run that publishes."""
        self._service = service
        self._policy = policy
        self._folder = out.absolute() / policy

    def publish(self, trainer: Trainer) -> Json:
        """Returns once every worker of the service samples from these weights, or from those of a later step of this
        run, if it was that far before it was killed. Every process of the trainer calls it; one of them talks to the
        service, and only that one gets an answer."""
        step = trainer.state.global_step
        folder = self._folder / f"step-{step:06}"
        trainer.save_model(str(folder))
        published: Json = {}
        if trainer.is_world_process_zero():
            with Refinery(self._service) as refinery:
                published = self._bring(refinery, folder, step)
                live = Path(self._live(refinery)["checkpoint"])  # what the service loads when it is started again
            for old in set(self._folder.glob("step-*")) - {folder, live}:
                shutil.rmtree(old)
        trainer.accelerator.wait_for_everyone()
        return published

    def _bring(self, refinery: Refinery, folder: Path, step: int) -> Json:
        key = digest(folder, *weights_of(folder))
        published = publish_checkpoint(refinery, self._policy, str(folder), step, key)
        live = self._live(refinery)
        if live["version"] > published["version"] and not (self._is_ours(live) and (live["step"] or 0) >= step):
            key = digest(key, live["version"])  # somebody else's came after it
            published = publish_checkpoint(refinery, self._policy, str(folder), step, key)
        return published

    def begin(self, trainer: Trainer, start: str) -> None:
        """Publishes what training starts from, unless the service samples from that, or from what this run made of it
        before it was killed."""
        with Refinery(self._service) as refinery:
            live = self._live(refinery)
        if not self._is_ours(live) and live["checkpoint"] not in {start, str(Path(start).absolute())}:
            self.publish(trainer)

    def _live(self, refinery: Refinery) -> Json:
        version: Json = refinery.get(f"/v1/policies/{self._policy}")["versions"][-1]
        return version

    def _is_ours(self, version: Json) -> bool:
        return Path(version["checkpoint"]).parent == self._folder


def publish_checkpoint(refinery: Refinery, policy: str, checkpoint: str, step: int, key: str) -> Json:
    """Makes a checkpoint the next version of a policy, or the first of a new one; once for a key."""
    known = [policy["name"] for policy in refinery.get("/v1/policies")]
    if policy in known:
        job = refinery.post(f"/v1/policies/{policy}/versions", {"checkpoint": checkpoint, "step": step}, key=key)
    else:
        job = refinery.post("/v1/policies", {"name": policy, "checkpoint": checkpoint, "step": step}, key=key)
    published: Json = refinery.wait(job)["result"]
    return published


class Publishing(TrainerCallback):
    """Publishes before the first step, unless the service samples from where that starts, and after every so many
    steps; with 0 never again."""

    def __init__(self, publisher: Publisher, trainer: Trainer, *, every: int, start: str) -> None:
        self._publisher = publisher
        self._trainer = trainer
        self._every = every
        self._start = start

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            self._publisher.begin(self._trainer, self._start)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._every and state.global_step % self._every == 0:
            self._publisher.publish(self._trainer)


class Keeping(TrainerCallback):
    """Leaves the weights of some steps in the folder of the run, for whoever wants to go back to them."""

    def __init__(self, trainer: Trainer, steps: Collection[int]) -> None:
        self._trainer = trainer
        self._steps = steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step in self._steps:
            self._trainer.save_model(str(kept(Path(args.output_dir), state.global_step)))


def kept(out: Path, step: int) -> Path:
    """Where the weights of a step stay."""
    return out / "kept" / f"step-{step:06}"


def weights_of(folder: Path) -> list[str]:
    """Names what a checkpoint's weights are."""
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))]
