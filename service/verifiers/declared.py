"""Verifiers that the operator declares: ``NAME=KIND:TARGET``.

Only the operator can: a target is code to import or an address to send completions to.
"""

import re
from collections.abc import Iterable
from enum import StrEnum, auto
from typing import Any, Self

from pydantic import Field, model_validator

from curation.choice import Choice, Metadata
from service.urls import refuse_metadata
from service.verifiers import names
from service.verifiers.base import Options
from service.verifiers.catalogue import Canary, Local, Remote, Verifier
from service.verifiers.function_rule import FunctionOptions
from service.verifiers.remote import SPEAKS
from service.verifiers.rewards import ChatRewardOptions, RangeOptions, RewardOptions


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
    VLLM_SCORE = auto()
    """A cross-encoder on a vLLM server, which reads prompt and completion as a pair; asked by ``/score``."""
    NEMO_GYM = auto()
    """A NeMo Gym resource server: its URL."""
    ENVIRONMENT = auto()
    """A single-turn environment of the `verifiers` library: its id. The package must be installed."""


class Declared(Choice):
    name: str = Field(pattern=f"^{names.NAME.pattern}$")
    kind: DeclaredKind
    target: str = Field(min_length=1)
    revision: int = Field(1, ge=1)
    """Raise it when the same target judges differently than before."""
    arguments: Metadata = Field(default_factory=dict)
    """What an environment is loaded with."""
    canary: Canary | None = None
    """Lets it be watched as the built-in verifiers are, and questions be tried when they are added."""

    @model_validator(mode="after")
    def _arguments_go_with_an_environment(self) -> Self:
        if self.arguments and self.kind is not DeclaredKind.ENVIRONMENT:
            raise ValueError(f"only an environment takes arguments, and {self.name} is a {self.kind}")
        return self

    @model_validator(mode="after")
    def _no_metadata(self) -> Self:
        if self.kind in SPEAKS:
            refuse_metadata(self.target)
        return self

    @property
    def verifier(self) -> Verifier:
        match self.kind:
            case DeclaredKind.FUNCTION:
                return self._local("function_rule", FunctionOptions, function=self.target)
            case DeclaredKind.ENVIRONMENT:
                return self._local("environment_rule", RangeOptions, environment=self.target, arguments=self.arguments)
            case DeclaredKind.CLASSIFIER:
                return self._local("classifier_rule", ChatRewardOptions, is_model=True, model=self.target)
            case DeclaredKind.VLLM_CLASSIFY | DeclaredKind.VLLM_POOLING:
                return self._remote(ChatRewardOptions)
            case DeclaredKind.VLLM_SCORE | DeclaredKind.SGLANG:
                return self._remote(RewardOptions)
            case DeclaredKind.NEMO_GYM:
                return self._remote(Options)

    def _local(self, rule: str, options: type[Options], *, is_model: bool = False, **operator: Any) -> Local:
        path = f"service.verifiers.{rule}:judging"
        return Local(path, self.revision, options, operator, is_model=is_model, canary=self.canary)

    def _remote(self, options: type[Options]) -> Remote:
        return Remote(self.target, SPEAKS[self.kind], self.revision, options, self.canary)


def parse_declared(text: str) -> Declared:
    """From ``NAME[@REVISION]=KIND:TARGET``. Raises ValueError."""
    found = re.fullmatch(r"([^=@]+)(?:@(\d+))?=([^:]+):(.+)", text)
    if found is None:
        raise ValueError(f"{text!r} is not of the form NAME[@REVISION]=KIND:TARGET")
    name, revision, kind, target = found.groups()
    return Declared.model_validate({"name": name, "kind": kind, "target": target, "revision": int(revision or 1)})


def declared_verifiers(declared: Iterable[Declared]) -> dict[str, Verifier]:
    return {one.name: one.verifier for one in declared}
