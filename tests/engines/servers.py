"""Real vLLM and SGLang servers as processes of their own, and a lossy line in front of one."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

import pytest

from service.checkpoints import EMBEDDED
from service.engines.addresses import Kind
from service.engines.process import CPU_NICE, LEASH, Launch, built_python, command, environment, free_port

ROOT = Path(__file__).parents[2]
START_SECONDS = 300


def python_of(kind: Kind) -> Path:
    """The engine's own Python; skips the test where there is none."""
    python = ROOT / built_python(kind)
    if not python.exists():
        pytest.skip(f"there is no {python}: `make engines` builds it")
    return python


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Returns once something answers there."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"{url} did not start: {log.read_text()[-2000:]}")


@dataclass
class Server:
    """An engine server that nobody but the test watches."""

    kind: Kind
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(
        cls, kind: Kind, log: Path, *arguments: str, folder: Path = EMBEDDED, controlled: bool = True
    ) -> "Server":
        launch = Launch(kind, python_of(kind), None, arguments, log)
        port = free_port()
        variables = environment(launch, os.environ, gpu=False)
        if not controlled:
            variables.pop("VLLM_SERVER_DEV_MODE")
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, str(LEASH), CPU_NICE, *command(launch, folder, port, gpu=False)],
                stdout=out,
                stderr=out,
                env=variables,
                start_new_session=True,
            )
        return cls(kind, f"http://127.0.0.1:{port}", process, log)

    def wait(self) -> "Server":
        """Returns once it answers."""
        wait_for(self.url + "/health", self.process, self.log)
        return self

    def answered(self) -> int:
        """Requests for completions in its log."""
        return self.log.read_text().count("POST /generate")

    def kill(self) -> None:
        """kill -9, children and all."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


def start_router(servers: list[str], log: Path) -> tuple[str, subprocess.Popen[bytes]]:
    """sglang-router, round robin."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [str(python_of(Kind.SGLANG)), "-m", "sglang_router.launch_router", "--worker-urls", *servers]
    command += ["--policy", "round_robin", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--prometheus-port", str(free_port())]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    wait_for(url + "/readiness", process, log)
    return url, process


class Trouble(Enum):
    """What the line does to a request for completions."""

    NONE = auto()
    CUT = auto()
    """Closes the connection in the middle of the answer."""
    ERROR = auto()
    """Answers 500 itself."""
    BUSY = auto()
    """Answers 503 itself."""
    SILENCE = auto()
    """Never answers."""
    GARBLED = auto()
    """Answers 200 with half of the JSON."""


@dataclass
class Line:
    """An HTTP line to a server that goes wrong as often as it is told to, for generation only."""

    url: str
    troubles: list[Trouble] = field(default_factory=list)
    """One for each request for completions, first to last; afterwards all is well."""
    asked: int = 0


@asynccontextmanager
async def line_to(server: str) -> AsyncIterator[Line]:
    from aiohttp import ClientSession, web

    troubled = {"/v1/completions", "/generate"}

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        trouble = Trouble.NONE
        if request.path in troubled:
            line.asked += 1
            trouble = line.troubles.pop(0) if line.troubles else Trouble.NONE
        match trouble:
            case Trouble.ERROR:
                return web.json_response({"error": {"message": "out of luck"}}, status=500)
            case Trouble.BUSY:
                return web.json_response({"error": "busy"}, status=503)
            case Trouble.SILENCE:
                await asyncio.sleep(3600)
        headers = {k: v for k, v in request.headers.items() if k.lower() in ("content-type", "authorization")}
        async with session.request(request.method, server + request.path_qs, data=body, headers=headers) as answer:
            content = await answer.read()
        if trouble is Trouble.GARBLED:
            content = content[: len(content) // 2]
        response = web.StreamResponse(status=answer.status, headers={"content-type": answer.content_type})
        response.content_length = len(content)
        await response.prepare(request)
        if trouble is Trouble.CUT:
            await response.write(content[: len(content) // 2])
            assert request.transport is not None
            request.transport.abort()
            return response
        await response.write(content)
        return response

    app = web.Application(client_max_size=1 << 28)
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    async with ClientSession() as session:
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        line = Line(f"http://127.0.0.1:{port}")
        try:
            yield line
        finally:
            await runner.cleanup()
