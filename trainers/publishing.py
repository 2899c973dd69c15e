"""Giving the service what was learned so far, as the next version of a policy.

- The weights lie in a folder that both see; the service reads them from there until a newer version is live.
- Publishing the same weights of the same step again changes nothing, so a trainer that was killed may.
- A folder that was published is never written again: the version that names it means these weights.
"""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from curation.keys import digest
from trainers.cache import weights_of
from trainers.client import Json, Refinery, RefineryError
from trainers.learning import by_one, identity, reached


class Publisher:
    """Of one trainer to one policy, which it makes if there is none of that name."""

    def __init__(self, service: str, policy: str | None, out: Path) -> None:
        """`out` is the folder of the run that publishes; without a policy it is one of the run's own name."""
        self._service = service
        self._named = policy
        self._out = out.resolve()
        self._latest: tuple[int, Json] | None = None
        """Step, and what came of publishing it: the last one of a run is asked for again at its end."""

    @property
    def policy(self) -> str:
        return self._named or identity(self._out)

    @property
    def _folder(self) -> Path:
        """Of this run and policy only."""
        return self._out / "published" / identity(self._out) / self.policy

    def publish(self, trainer: Trainer) -> Json:
        """Returns once every worker of the service samples from these weights, or from those of a later step of this
        run, if it was that far before it was killed. Every process of the trainer calls it; one talks to the
        service."""
        step = trainer.state.global_step
        if self._latest is None or self._latest[0] != step:
            saved = self._folder / "unfinished"
            trainer.save_model(str(saved))
            self._latest = step, by_one(lambda: self._bring(saved, step))
        return self._latest[1]

    def _bring(self, saved: Path, step: int) -> Json:
        weights = digest(*weights_of(saved))
        folder = self._folder / f"step-{step:06}-{weights[:8]}"
        if folder.exists():
            shutil.rmtree(saved)
        else:
            saved.rename(folder)
        with reached(self._service) as refinery:
            published = self._publish(refinery, folder, step, digest(folder, weights))
            live = Path(self._live(refinery)["checkpoint"])  # what the service loads when it is started again
        for old in set(self._folder.glob("step-*")) - {folder, live}:
            shutil.rmtree(old)
        return published

    def _publish(self, refinery: Refinery, folder: Path, step: int, key: str) -> Json:
        published = publish_checkpoint(refinery, self.policy, str(folder), step, key)
        live = self._live(refinery)
        if live["version"] > published["version"] and not (self._is_ours(live) and (live["step"] or 0) >= step):
            key = digest(key, live["version"])  # somebody else's came after it
            published = publish_checkpoint(refinery, self.policy, str(folder), step, key)
        return published

    def begin(self, trainer: Trainer, start: str) -> None:
        """Publishes what training starts from, unless the service samples from that, or from what this run made of it
        before it was killed."""
        if not by_one(lambda: self._samples_from(start)):
            self.publish(trainer)

    def _samples_from(self, start: str) -> bool:
        with reached(self._service) as refinery:
            live = self._live(refinery)
        known = live["checkpoint"]
        return self._is_ours(live) or known in {start, str(Path(start).resolve())} or known.partition("@")[0] == start

    def _live(self, refinery: Refinery) -> Json:
        version: Json = refinery.get(f"/v1/policies/{self.policy}")["versions"][-1]
        return version

    def _is_ours(self, version: Json) -> bool:
        return Path(version["checkpoint"]).parent == self._folder


def publish_checkpoint(refinery: Refinery, policy: str, checkpoint: str, step: int, key: str) -> Json:
    """Makes a checkpoint the next version of a policy, or the first of a new one; once for a key."""
    body: Json = {"checkpoint": checkpoint, "step": step}
    try:
        return refinery.once(f"/v1/policies/{policy}/versions", body, key=key)
    except RefineryError as error:
        if error.code != "policy_not_found":
            raise
    return refinery.once("/v1/policies", body | {"name": policy}, key=key)


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
