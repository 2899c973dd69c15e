"""SGLang's own routes."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from service.engines.addresses import Kind
from service.engines.dialects.base import LOAD_SECONDS, SEED_BITS, Ask, Facts, LogprobsOf, Said, Span, finish_reason_of
from service.engines.link import CONTROL_SECONDS, Fault, Link


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
                finish_reason_of(one.meta_info.finish_reason.type),
                one.text,
                one.meta_info.weight_versions,
            )
            for one in (answer if isinstance(answer, list) else [answer])
        ]

    async def label(self, admin: Link) -> str | None:
        return str((await admin.get("/model_info"))["weight_version"])

    async def check(self, admin: Link, *, seconds: float = CONTROL_SECONDS) -> None:
        await admin.ping("/health", seconds=seconds)

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
