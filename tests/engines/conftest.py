"""Engines for tests. The servers are real, and started once for all tests that need them."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from service.checkpoints import EMBEDDED, open_folder
from service.engines.addresses import Kind, WorkerSpec
from service.engines.base import Engine
from service.engines.fleet import Fleet, FleetConfig
from service.engines.merging import merged_folder
from service.engines.transformers_engine import TransformersEngine
from tests.engines.servers import Server, start_router

T = TypeVar("T")


def write_checkpoint(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """The embedded policy with changed weights."""
    folder.mkdir()
    for file in EMBEDDED.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    weights = {name: change(name, weight) for name, weight in load_file(EMBEDDED / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the same policy, trained on noise."""
    noise = torch.Generator().manual_seed(0)

    def shaken(_: str, weight: torch.Tensor) -> torch.Tensor:
        return weight + 0.1 * weight.std() * torch.randn(weight.shape, generator=noise) if weight.dim() > 1 else weight

    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "other", shaken)


class Servers:
    """Starts what is asked for, and only that."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, Server] = {}
        self._routers: list[subprocess.Popen[bytes]] = []

    def start(self, *names: str) -> list[Server]:
        """Servers by name: ``vllm``, ``vllm-2``, ``vllm-plain`` (no control routes), ``sglang``..."""
        for name in names:
            kind = Kind(name.partition("-")[0])
            if name not in self._running or self._running[name].process.poll() is not None:
                self._running[name] = Server.start(
                    kind, self._logs / f"{name}.log", *ARGUMENTS[kind], controlled=not name.endswith("plain")
                )
        return [self._running[name].wait() for name in names]

    def router(self, *servers: Server) -> str:
        """URL of sglang-router in front of these."""
        url, process = start_router([server.url for server in servers], self._logs / "router.log")
        self._routers.append(process)
        return url

    def stop(self) -> None:
        for router in self._routers:
            router.terminate()
            router.wait()
        for server in self._running.values():
            server.stop()


ARGUMENTS = {Kind.VLLM: ("--enable-lora", "--max-lora-rank", "8"), Kind.SGLANG: ()}


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("engine-logs"))
    yield servers
    servers.stop()


def fleet_of(*specs: WorkerSpec, scratch: Path, **config: object) -> Fleet:
    fields = {
        "policy": "policy",
        "attached": specs,
        "launched": None,
        "api_key": None,
        "scratch": scratch,
        "request_seconds": 60.0,
        "patience_seconds": 30.0,
        "in_flight_reload": False,
    }
    return Fleet(FleetConfig(**(fields | config)))  # type: ignore[arg-type]


def with_engine(name: str, servers: Servers, scratch: Path, use: Callable[[Engine], Awaitable[T]]) -> T:
    """Runs `use` on an engine that holds version 1, the embedded policy."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Engine]:
        if name == "transformers":
            engine: Engine = TransformersEngine(max_rows=64)
        elif name == "openai":
            [server] = servers.start("vllm-plain")
            engine = fleet_of(WorkerSpec(url=server.url, dialect=Kind.OPENAI, version=1), scratch=scratch)
        else:
            [server] = servers.start(name)
            engine = fleet_of(WorkerSpec(url=server.url), scratch=scratch)
        try:
            await engine.load(open_folder(EMBEDDED), 1)
            yield engine
        finally:
            await engine.close()

    async def run() -> T:
        async with opened() as engine:
            return await use(engine)

    return asyncio.run(run())


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of the embedded policy that changes what it says."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=8, lora_alpha=16, target_modules=layers, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(EMBEDDED), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter_merged(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a full checkpoint, for the reference."""
    return merged_folder(open_folder(adapter), tmp_path_factory.mktemp("merged"))
