"""What the service knows about inference: one narrow protocol."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from curation.records import Completion
from service.run_config import Sampling


class Sampled(NamedTuple):
    completions_G: list[Completion]
    policy_version: int
    """Live when sampling began."""


class Engine(Protocol):
    """One policy, ready to be sampled."""

    @property
    def policy_version(self) -> int:
        """Version of the weights that the next request will meet."""

    async def sample(self, prompt: str, sampling: Sampling, seeds: Sequence[int]) -> Sampled:
        """One completion per seed. Same weights, prompt, sampling and seed: same completion, whatever else is in
        flight."""

    async def load(self, checkpoint: Path, version: int) -> None:
        """Swaps the weights between requests. On failure the old weights and version stay."""

    async def close(self) -> None: ...
