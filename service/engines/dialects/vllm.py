"""vLLM: ``/v1/completions``, and control routes beside it."""

from pathlib import Path
from typing import Any

from service.engines.addresses import Kind
from service.engines.dialects.base import LOAD_SECONDS, Facts, LogprobsOf
from service.engines.dialects.openai import OpenAI, served_model
from service.engines.link import CONTROL_SECONDS, Fault, Link
from service.run_config import Sampling


class Vllm(OpenAI):
    """vLLM with ``VLLM_SERVER_DEV_MODE=1``, which opens the control routes.

    Sources: ``vllm/entrypoints/serve/dev/rlhf/api_router.py`` and ``v1/worker/gpu_model_runner.py`` of 0.31.0.
    """

    kind = Kind.VLLM
    EXTENSION = "refinery_vllm.ReloadExtension"

    async def describe(self, admin: Link) -> Facts:
        model = await served_model(admin)
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

    async def check(self, admin: Link, *, seconds: float = CONTROL_SECONDS) -> None:
        await admin.ping("/health", seconds=seconds)

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
