"""An engine that answers from a script: for tests, and for trying the service without a model."""

from collections.abc import Callable, Sequence

from curation.records import Completion, FinishReason, WeightSpan
from service.checkpoints import Checkpoint
from service.engines.base import Sampled, WorkerState, WorkerView
from service.run_config import Sampling

Script = Callable[[str, int, int], str]
"""(prompt, seed, policy version) -> completion. May raise, as an engine may."""


class ScriptedEngine:
    """See `service.engines.base.Engine`. One token per character, each with logprob 0."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._version = 0
        self.asked: list[str] = []

    @property
    def policy_version(self) -> int:
        return self._version

    async def sample(self, prompt: str, sampling: Sampling, seeds: Sequence[int]) -> Sampled:
        self.asked.append(prompt)
        version = self._version
        texts = [self._script(prompt, seed, version) for seed in seeds]
        return Sampled([self._completion(text, sampling, version) for text in texts], version)

    async def load(self, checkpoint: Checkpoint, version: int) -> None:
        self._version = version

    def workers(self) -> list[WorkerView]:
        return [WorkerView("script:", (), "script", "", WorkerState.LIVE, "", self._version, 0, 1, len(self.asked), "")]

    async def close(self) -> None:
        pass

    def _completion(self, text: str, sampling: Sampling, version: int) -> Completion:
        said = text[: sampling.max_tokens]
        return Completion(
            text=said,
            token_ids_T=tuple(map(ord, said)),
            logprobs_T=(0.0,) * len(said),
            finish_reason=FinishReason.STOP if said == text else FinishReason.LENGTH,
            weight_versions=(WeightSpan(version, 0, len(said)),),
        )
