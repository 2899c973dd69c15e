"""What the service knows about inference: one narrow protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum, auto
from typing import NamedTuple, Protocol

from curation.records import Completion
from service.checkpoints import Checkpoint
from service.run_config import Sampling


class Sampled(NamedTuple):
    completions_G: list[Completion]
    policy_version: int
    """Live when sampling began."""


class WorkerState(StrEnum):
    """Whether a worker may be given work."""

    LIVE = auto()
    """Answers, and reports the version that the policy is at."""
    LOADING = auto()
    """Starting, or between two versions."""
    DRAINED = auto()
    """Answers, but not with the weights it should have: gets no work."""
    DOWN = auto()
    """Does not answer."""


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker as operators see it."""

    url: str
    admin_urls: tuple[str, ...]
    dialect: str
    server: str
    """Name and version of what answers there; empty until it answered."""
    state: WorkerState
    reason: str
    """Why it is in this state."""
    version: int | None
    """Version of the weights it was last seen with."""
    in_flight: int
    """Completions that it is working on."""
    window: int
    """Completions that it is given at once."""
    answered: int
    """Completions it has answered since the service started."""
    logprobs: str
    """Which distribution its logprobs are of."""
    pid: int | None = None
    """Of the process, if the service launched it."""


class Engine(Protocol):
    """One policy, ready to be sampled."""

    @property
    def policy_version(self) -> int:
        """Version of the weights that the next request will meet."""

    async def sample(self, prompt: str, sampling: Sampling, seeds: Sequence[int]) -> Sampled:
        """One completion per seed, of one policy version unless the engine says otherwise in their spans.

        How far a seed decides the completion is the engine's: entirely in the embedded one; up to the rounding of
        batched arithmetic in vLLM; in SGLang only in its deterministic mode.
        """

    async def load(self, checkpoint: Checkpoint, version: int) -> None:
        """Swaps the weights. On failure the old weights and version stay."""

    def workers(self) -> list[WorkerView]: ...

    async def close(self) -> None: ...
