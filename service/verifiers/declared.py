"""Verifiers that the operator declares: ``NAME=KIND:TARGET``.

Only the operator can: a target is code to import or an address to send completions to.
"""

import re
from collections.abc import Iterable
from enum import StrEnum, auto

from pydantic import Field

from curation.choice import Choice
from service.verifiers import names
from service.verifiers.catalogue import Local, Remote, Verifier
from service.verifiers.function_rule import FunctionOptions
from service.verifiers.remote import SPEAKS
from service.verifiers.rewards import RewardOptions


class DeclaredKind(StrEnum):
    FUNCTION = auto()
    """``package.module:function``, as TRL's reward functions are."""
    CLASSIFIER = auto()
    """A reward model in a process of ours: checkpoint folder or Hub id."""
    VLLM_CLASSIFY = auto()
    """A reward model on a vLLM server: its URL; asked by ``/classify``."""
    VLLM_POOLING = auto()
    SGLANG = auto()
    """A reward model on an SGLang server: its URL."""
    NEMO_GYM = auto()
    """A NeMo Gym resource server: its URL."""


class Declared(Choice):
    name: str = Field(pattern=f"^{names.NAME.pattern}$")
    kind: DeclaredKind
    target: str = Field(min_length=1)
    revision: int = Field(1, ge=1)
    """Raise it when the same target judges differently than before."""

    @property
    def verifier(self) -> Verifier:
        match self.kind:
            case DeclaredKind.FUNCTION:
                return Local(
                    "service.verifiers.function_rule:judge",
                    self.revision,
                    FunctionOptions,
                    {"function": self.target},
                )
            case DeclaredKind.CLASSIFIER:
                return Local(
                    "service.verifiers.classifier_rule:judge",
                    self.revision,
                    RewardOptions,
                    {"model": self.target},
                    is_model=True,
                )
            case DeclaredKind.NEMO_GYM:
                return Remote(self.target, SPEAKS[self.kind], self.revision)
            case _:
                return Remote(self.target, SPEAKS[self.kind], self.revision, RewardOptions)


def parse_declared(text: str) -> Declared:
    """From ``NAME[@REVISION]=KIND:TARGET``. Raises ValueError."""
    found = re.fullmatch(r"([^=@]+)(?:@(\d+))?=([^:]+):(.+)", text)
    if found is None:
        raise ValueError(f"{text!r} is not of the form NAME[@REVISION]=KIND:TARGET")
    name, revision, kind, target = found.groups()
    return Declared.model_validate({"name": name, "kind": kind, "target": target, "revision": int(revision or 1)})


def declared_verifiers(declared: Iterable[Declared]) -> dict[str, Verifier]:
    return {one.name: one.verifier for one in declared}
