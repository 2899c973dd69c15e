"""What is sent, what comes back, how weights are changed: what every dialect answers for.

A dialect holds no state. Every field of the sampling is sent, because servers fill in missing ones from the
checkpoint's ``generation_config.json``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum, auto
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

from curation.records import FinishReason
from service.engines.addresses import Kind
from service.engines.link import CONTROL_SECONDS, Fault, Link
from service.run_config import Sampling

LOAD_SECONDS = 1800.0
"""Reading the weights of a large model from a slow disk."""
SEED_BITS = 63
"""Engines keep seeds in a signed 64-bit integer."""


class LogprobsOf(StrEnum):
    """Which distribution a server's logprobs are of."""

    TEMPERED = auto()
    """Full softmax at the sampling temperature, whatever top-p and top-k leave of it."""
    PROCESSED = auto()
    """At the sampling temperature, renormalised over what top-p and top-k leave."""
    RAW = auto()
    """Full softmax at temperature 1."""
    UNKNOWN = auto()
    """One of the above."""

    def is_exact(self, sampling: Sampling) -> bool:
        """Whether they are what a trainer needs: full softmax at the sampling temperature (1 for greedy)."""
        whole = sampling.temperature == 0 or (sampling.top_p == 1.0 and sampling.top_k == 0)
        match self:
            case LogprobsOf.TEMPERED:
                return True
            case LogprobsOf.PROCESSED:
                return whole
            case LogprobsOf.RAW:
                return sampling.temperature in (0, 1)
            case LogprobsOf.UNKNOWN:
                return whole and sampling.temperature in (0, 1)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says of itself."""

    server: str
    model: str
    """The name it serves the policy under."""
    capacity: int | None
    """Completions that it decodes at once."""
    context: int | None
    logprobs: LogprobsOf
    reloads_tied_head: bool = True
    takes_adapters: bool = False
    takes_seeds: bool = True


@dataclass(frozen=True, slots=True)
class Ask:
    """One group, as token ids."""

    model: str
    prompt_ids: list[int]
    sampling: Sampling
    seeds: Sequence[int]
    """One per completion."""
    seeded: bool = True
    """Whether the server is told them."""


class Span(BaseModel):
    """Tokens `start` up to `end` were sampled from the weights with this label."""

    version: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Said:
    """One completion as the server gave it."""

    token_ids_T: list[int] | None
    """None where the server does not tell."""
    logprobs_T: list[float]
    finish_reason: FinishReason
    text: str
    spans: list[Span] | None


class Dialect(Protocol):
    kind: Kind

    async def describe(self, admin: Link) -> Facts: ...

    async def sample(self, link: Link, ask: Ask, *, seconds: float) -> list[Said]:
        """One completion per seed, in their order."""

    async def label(self, admin: Link) -> str | None:
        """The label of the weights that are loaded; None where the server knows no labels."""

    async def check(self, admin: Link, *, seconds: float = CONTROL_SECONDS) -> None:
        """Raises unless the engine behind the HTTP server is alive."""

    async def swap(self, admin: Link, weights: Path, label: str) -> None:
        """Replaces all weights; other people's requests finish or go on, and the prefix cache is dropped."""

    async def set_label(self, admin: Link, label: str) -> None: ...

    async def add_adapter(self, admin: Link, folder: Path, label: str) -> None:
        """Serves the adapter as a model of this name, beside its base."""

    async def drop_adapter(self, admin: Link, label: str) -> None: ...


def finish_reason_of(said: str | None) -> FinishReason:
    """Raises Fault for a completion that was cut short by somebody."""
    match said:
        case "stop":
            return FinishReason.STOP
        case "length":
            return FinishReason.LENGTH
        case _:
            raise Fault(f"a completion ended with {said!r}: it was cut short")
