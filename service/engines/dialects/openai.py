"""Everything that speaks ``/v1/completions``."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter

from service.engines.addresses import Kind
from service.engines.dialects.base import SEED_BITS, Ask, Facts, LogprobsOf, Said, Span, finish_reason_of
from service.engines.link import CONTROL_SECONDS, Fault, Link
from service.run_config import Sampling


class _Logprobs(BaseModel):
    token_logprobs: list[float] = Field(default_factory=list)


class _Choice(BaseModel):
    index: int = 0
    text: str
    finish_reason: str | None
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    weight_versions: list[Span] | None = None


class _Completions(BaseModel):
    choices: list[_Choice]


_COMPLETIONS = TypeAdapter(_Completions)


class OpenAI:
    """``POST /v1/completions`` with token ids in; whether ids come out depends on the server (vLLM and SGLang do).

    Which logprobs come back is not standardised, so they are used only where every server means the same by them.
    """

    kind = Kind.OPENAI

    async def describe(self, admin: Link) -> Facts:
        model = await served_model(admin)
        return Facts("OpenAI-compatible", model["id"], None, model.get("max_model_len"), LogprobsOf.UNKNOWN)

    async def sample(self, link: Link, ask: Ask, *, seconds: float) -> list[Said]:
        sampling, n = ask.sampling, len(ask.seeds)
        body = {
            "model": ask.model,
            "prompt": ask.prompt_ids,
            "n": n,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "logprobs": 0,
        }
        if ask.seeded:  # the server seeds completion i with seed + i
            body["seed"] = ask.seeds[0] % (2**SEED_BITS - n)
        answer = await link.ask("/v1/completions", body | self._extras(sampling), _COMPLETIONS, seconds=seconds)
        choices = sorted(answer.choices, key=lambda choice: choice.index)
        return [self._said(choice) for choice in choices]

    async def label(self, admin: Link) -> str | None:
        await served_model(admin)
        return None

    async def check(self, admin: Link, *, seconds: float = CONTROL_SECONDS) -> None:
        await admin.ping("/v1/models", seconds=seconds)

    async def swap(self, admin: Link, weights: Path, label: str) -> None:
        raise Fault(f"{admin.url} has no control routes: its weights are the operator's")

    async def set_label(self, admin: Link, label: str) -> None:
        await self.swap(admin, Path(), label)

    async def add_adapter(self, admin: Link, folder: Path, label: str) -> None:
        await self.swap(admin, folder, label)

    async def drop_adapter(self, admin: Link, label: str) -> None:
        await self.swap(admin, Path(), label)

    def _extras(self, sampling: Sampling) -> dict[str, Any]:
        """Fields beyond OpenAI's own; a strict server refuses the unknown ones, so only what was asked for."""
        return {"return_token_ids": True} | ({"top_k": sampling.top_k} if sampling.top_k else {})

    def _said(self, choice: _Choice) -> Said:
        logprobs_T = choice.logprobs.token_logprobs if choice.logprobs else []
        finish = finish_reason_of(choice.finish_reason)
        return Said(choice.token_ids, logprobs_T, finish, choice.text, choice.weight_versions)


async def served_model(admin: Link) -> dict[str, Any]:
    """The model itself, not an adapter beside it."""
    answer = await admin.get("/v1/models")
    try:
        return next(model for model in answer["data"] if not model.get("parent"))
    except (TypeError, KeyError, StopIteration) as error:
        raise Fault(f"{admin.url}/v1/models names no model") from error
