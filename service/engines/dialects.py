"""How each kind of server is spoken to: what is sent, what comes back, how its weights are changed.

A dialect holds no state. Every field of the sampling is sent, because servers fill in missing ones from the
checkpoint's ``generation_config.json``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum, auto
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, Field, TypeAdapter

from curation.records import FinishReason
from service.engines.addresses import Kind
from service.engines.link import Fault, Link, Refusal
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

    async def check(self, admin: Link) -> None:
        """Raises unless the engine behind the HTTP server is alive."""

    async def swap(self, admin: Link, weights: Path, label: str) -> None:
        """Replaces all weights; other people's requests finish or go on, and the prefix cache is dropped."""

    async def set_label(self, admin: Link, label: str) -> None: ...

    async def add_adapter(self, admin: Link, folder: Path, label: str) -> None:
        """Serves the adapter as a model of this name, beside its base."""

    async def drop_adapter(self, admin: Link, label: str) -> None: ...


async def recognise(admin: Link) -> Kind:
    """The dialect of a server that answers. Raises Unreachable."""
    for kind, path in ((Kind.SGLANG, "/model_info"), (Kind.VLLM, "/version")):
        try:
            if isinstance(await admin.get(path), dict):
                return kind
        except (Refusal, Fault) as failure:
            if not _is_missing(failure):
                raise
    return Kind.OPENAI


def _is_missing(failure: Exception) -> bool:
    return ": 404 " in str(failure) or ": 405 " in str(failure) or "no JSON" in str(failure)


# ---- vLLM and everything that speaks /v1/completions


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
        model = await _served_model(admin)
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
        await _served_model(admin)
        return None

    async def check(self, admin: Link) -> None:
        await _served_model(admin)

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
        finish = _finish_reason(choice.finish_reason)
        return Said(choice.token_ids, logprobs_T, finish, choice.text, choice.weight_versions)


class Vllm(OpenAI):
    """vLLM with ``VLLM_SERVER_DEV_MODE=1``, which opens the control routes.

    Sources: ``vllm/entrypoints/serve/dev/rlhf/api_router.py`` and ``v1/worker/gpu_model_runner.py`` of 0.31.0.
    """

    kind = Kind.VLLM
    EXTENSION = "refinery_vllm.ReloadExtension"

    async def describe(self, admin: Link) -> Facts:
        model = await _served_model(admin)
        version = (await admin.get("/version"))["version"]
        try:
            config = (await admin.get("/server_info?config_format=json"))["vllm_config"]
        except Fault as failure:
            raise Fault(
                f"{admin.url} is a vLLM without control routes: start it with VLLM_SERVER_DEV_MODE=1, "
                "or attach it with dialect=openai and the version of its weights"
            ) from failure
        mode = config["model_config"]["logprobs_mode"]
        on_cpu = config["device_config"]["device"] == "cpu"
        replicas = config["parallel_config"]["data_parallel_size"]
        return Facts(
            server=f"vLLM {version}",
            model=model["id"],
            capacity=config["scheduler_config"]["max_num_seqs"] * replicas,
            context=model.get("max_model_len"),
            logprobs=LogprobsOf.PROCESSED if mode == "processed_logprobs" else LogprobsOf.RAW,
            reloads_tied_head=not on_cpu or self._is_extended(config),
            # With chunked prefill on a CPU a seed ends the server (0.31.0: "CPU Generator does not use offset").
            takes_seeds=not (on_cpu and config["scheduler_config"]["enable_chunked_prefill"]),
            takes_adapters=bool(config.get("lora_config")),
        )

    async def label(self, admin: Link) -> str | None:
        return str((await admin.get("/weight_info"))["weight_version"])

    async def check(self, admin: Link) -> None:
        await admin.ping("/health")

    async def swap(self, admin: Link, weights: Path, label: str) -> None:
        # A failure on the way leaves the server paused: after a failed reload its next request would end it.
        await admin.post("/pause?mode=wait", seconds=LOAD_SECONDS)
        config = (await admin.get("/server_info?config_format=json"))["vllm_config"]
        if self._is_extended(config):
            reload: dict[str, Any] = {"method": "load_checkpoint", "args": [str(weights)]}
        else:
            reload = {"method": "reload_weights", "kwargs": {"weights_path": str(weights)}}
        await admin.post("/collective_rpc", reload, seconds=LOAD_SECONDS)
        await self.set_label(admin, label)
        await admin.post("/reset_prefix_cache")
        await admin.post("/resume")

    async def set_label(self, admin: Link, label: str) -> None:
        await admin.post("/update_weight_version", {"new_version": label})

    async def add_adapter(self, admin: Link, folder: Path, label: str) -> None:
        await admin.post("/v1/load_lora_adapter", {"lora_name": label, "lora_path": str(folder)}, seconds=LOAD_SECONDS)
        await self.set_label(admin, label)

    async def drop_adapter(self, admin: Link, label: str) -> None:
        await admin.post("/v1/unload_lora_adapter", {"lora_name": label})

    def _is_extended(self, config: dict[str, Any]) -> bool:
        return bool(config["parallel_config"].get("worker_extension_cls") == self.EXTENSION)

    def _extras(self, sampling: Sampling) -> dict[str, Any]:
        return {
            "top_k": sampling.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "return_token_ids": True,
            "return_weight_versions": True,  # from 0.33 on; older ones ignore it
        }


async def _served_model(admin: Link) -> dict[str, Any]:
    """The model itself, not an adapter beside it."""
    answer = await admin.get("/v1/models")
    try:
        return next(model for model in answer["data"] if not model.get("parent"))
    except (TypeError, KeyError, StopIteration) as error:
        raise Fault(f"{admin.url}/v1/models names no model") from error


# ---- SGLang


class _FinishReason(BaseModel):
    type: str


class _Meta(BaseModel):
    finish_reason: _FinishReason
    output_token_logprobs: list[tuple[float, int, str | None]]
    weight_versions: list[Span] | None = None


class _Generated(BaseModel):
    text: str
    output_ids: list[int]
    meta_info: _Meta


_GENERATED: TypeAdapter[_Generated | list[_Generated]] = TypeAdapter(_Generated | list[_Generated])


class Sglang:
    """SGLang's native ``POST /generate``. Sources: the HTTP server and sampler of 0.5.23.

    Seeds count only in its deterministic mode, where ``n`` completions of one request would all get the same one, and
    so be the same: there the group goes as a batch of n equal prompts. Routers do not pass such a batch on.
    """

    kind = Kind.SGLANG

    async def describe(self, admin: Link) -> Facts:
        server = await admin.get("/server_info")
        running = [state.get("effective_max_running_requests_per_dp") for state in server.get("internal_states", ())]
        return Facts(
            server=f"SGLang {server.get('version', '')}".strip(),
            model="",  # it serves one, under whatever name, and renames it with every reload
            capacity=sum(running) if running and all(running) else None,
            context=server.get("context_length"),
            logprobs=LogprobsOf.TEMPERED,
            takes_seeds=bool(server.get("enable_deterministic_inference")),
        )

    async def sample(self, link: Link, ask: Ask, *, seconds: float) -> list[Said]:
        sampling = ask.sampling
        parameters = {
            "max_new_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
        body: dict[str, Any] = {"return_logprob": True}
        if ask.seeded:
            body["input_ids"] = [ask.prompt_ids] * len(ask.seeds)
            body["sampling_params"] = [parameters | {"sampling_seed": seed % 2**SEED_BITS} for seed in ask.seeds]
        else:
            body["input_ids"] = ask.prompt_ids
            body["sampling_params"] = parameters | {"n": len(ask.seeds)}
        answer = await link.ask("/generate", body, _GENERATED, seconds=seconds)
        return [
            Said(
                one.output_ids,
                [logprob for logprob, _, _ in one.meta_info.output_token_logprobs],
                _finish_reason(one.meta_info.finish_reason.type),
                one.text,
                one.meta_info.weight_versions,
            )
            for one in (answer if isinstance(answer, list) else [answer])
        ]

    async def label(self, admin: Link) -> str | None:
        return str((await admin.get("/model_info"))["weight_version"])

    async def check(self, admin: Link) -> None:
        await admin.ping("/health")

    async def swap(self, admin: Link, weights: Path, label: str) -> None:
        # Retracted requests go on afterwards with a fresh cache, and their spans say where the weights changed.
        await admin.post("/pause_generation", {"mode": "retract"}, seconds=LOAD_SECONDS)
        try:
            body = {"model_path": str(weights), "weight_version": label, "flush_cache": True}
            await admin.post("/update_weights_from_disk", body, seconds=LOAD_SECONDS)
        finally:
            await admin.post("/continue_generation", {})

    async def set_label(self, admin: Link, label: str) -> None:
        await admin.post("/update_weight_version", {"new_version": label})

    async def add_adapter(self, admin: Link, folder: Path, label: str) -> None:
        raise Fault("adapters are merged into their base for SGLang")

    async def drop_adapter(self, admin: Link, label: str) -> None:
        raise Fault("adapters are merged into their base for SGLang")


DIALECTS: dict[Kind, Dialect] = {Kind.VLLM: Vllm(), Kind.SGLANG: Sglang(), Kind.OPENAI: OpenAI()}


def _finish_reason(said: str | None) -> FinishReason:
    """Raises Fault for a completion that was cut short by somebody."""
    match said:
        case "stop":
            return FinishReason.STOP
        case "length":
            return FinishReason.LENGTH
        case _:
            raise Fault(f"a completion ended with {said!r}: it was cut short")
