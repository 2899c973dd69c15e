"""A stand-in for an SGLang server: as much of its HTTP API as the service needs, and whatever can go wrong with one.

- What a completion says is a function of its seed, so a group that is sampled elsewhere is the same group.
- Every token has minus the version of its weights for a logprob: what is stored tells where it came from, whatever its
  label says.
- ``POST /trouble`` tells what goes wrong with each request from now on.
"""

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from enum import StrEnum, auto
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from service.engines.process import free_port

ROOT = Path(__file__).parents[2]
VOCABULARY = json.loads((ROOT / "service/embedded_policy/tokenizer.json").read_text())["model"]["vocab"]
ANSWER, END_OF_ANSWER, END = 258, 259, 1
"""Tokens of the embedded policy."""


class Trouble(StrEnum):
    NONE = auto()
    SILENCE = auto()
    """Takes the request and never answers."""
    DRIP = auto()
    """Answers a byte a second."""
    CUT = auto()
    """Closes the connection in the middle of the answer."""
    HALF = auto()
    """Answers half of the JSON as if it were all."""
    FEWER = auto()
    """Answers one completion less than it was asked for."""
    FOREIGN_TOKENS = auto()
    """Those of another model."""
    FOREIGN_WEIGHTS = auto()
    """It says that they are some that nobody gave it."""
    NAN = auto()
    """Logprobs that are no numbers."""
    SHORT = auto()
    """Fewer logprobs than tokens."""
    ERROR = auto()
    BUSY = auto()
    UNAVAILABLE = auto()
    HEADLESS = auto()
    """The engine behind the HTTP server has ended: every group fails, and /health says so."""


STATUS = {Trouble.ERROR: 500, Trouble.HEADLESS: 500, Trouble.BUSY: 429, Trouble.UNAVAILABLE: 503}


# ---- the program


class Program:
    def __init__(self) -> None:
        self.label = "default"
        self.generate = Trouble.NONE
        self.update = Trouble.NONE
        self.seconds = 0.0
        """That it takes for a group."""
        self.asked = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/trouble", self._trouble)
        for path in ("/health", "/v1/models", "/server_info", "/model_info"):
            app.router.add_get(path, self._tell)
        for path in ("/pause_generation", "/continue_generation"):
            app.router.add_post(path, self._tell)
        app.router.add_post("/update_weights_from_disk", self._update)
        app.router.add_post("/generate", self._generate)
        return app

    async def _tell(self, request: web.Request) -> web.StreamResponse:
        if self.generate is Trouble.HEADLESS and request.path == "/health":
            return web.json_response({}, status=503)
        return web.json_response(FACTS | {"weight_version": self.label, "asked": self.asked})

    async def _trouble(self, request: web.Request) -> web.StreamResponse:
        told = await request.json()
        self.generate = Trouble(told.get("generate", self.generate))
        self.update = Trouble(told.get("update", self.update))
        self.seconds = told.get("seconds", self.seconds)
        return web.json_response({})

    async def _update(self, request: web.Request) -> web.StreamResponse:
        told = await request.json()
        if self.update is Trouble.SILENCE:
            await asyncio.sleep(3600)
        if status := STATUS.get(self.update):
            return web.json_response({"error": "out of memory"}, status=status)
        self.label = told["weight_version"]
        return web.json_response({})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        seeds = [parameters["sampling_seed"] for parameters in (await request.json())["sampling_params"]]
        label, trouble = self.label, self.generate
        await asyncio.sleep(self.seconds)
        if trouble is Trouble.SILENCE:
            await asyncio.sleep(3600)
        if status := STATUS.get(trouble):
            return web.json_response({"error": "out of luck"}, status=status)
        if trouble is Trouble.FEWER:
            seeds = seeds[1:]
        content = json.dumps([_completion(seed, label, trouble) for seed in seeds]).encode()
        if trouble is Trouble.HALF:
            content = content[: len(content) // 2]
        response = web.StreamResponse(headers={"content-type": "application/json"})
        response.content_length = len(content)
        await response.prepare(request)
        if trouble is Trouble.CUT:
            await response.write(content[: len(content) // 2])
            assert request.transport is not None
            request.transport.abort()
            return response
        while trouble is Trouble.DRIP and content:
            await response.write(content[:1])
            content = content[1:]
            await asyncio.sleep(1.0)
        await response.write(content)
        return response


FACTS: dict[str, Any] = {
    "version": "stand-in",
    "internal_states": [{"effective_max_running_requests_per_dp": 16}],
    "context_length": 256,
    "enable_deterministic_inference": True,
}


def said(seed: int) -> str:
    """Right for every other one, where 4 is."""
    return str(4 + seed % 2)


def _completion(seed: int, label: str, trouble: Trouble) -> dict[str, Any]:
    tokens = [ANSWER, VOCABULARY[said(seed)], END_OF_ANSWER, END]
    if trouble is Trouble.FOREIGN_TOKENS:
        tokens[1] = 50_000
    logprob = float("nan") if trouble is Trouble.NAN else -float(_version(label))
    logprobs = [(logprob, token, None) for token in tokens]
    if trouble is Trouble.SHORT:
        del logprobs[0]
    weights = "nobody's" if trouble is Trouble.FOREIGN_WEIGHTS else label
    return {
        "text": f"<answer>{said(seed)}</answer>",
        "output_ids": tokens,
        "meta_info": {
            "finish_reason": {"type": "stop"},
            "output_token_logprobs": logprobs,
            "weight_versions": [{"version": weights, "start": 0, "end": len(tokens)}],
        },
    }


def _version(label: str) -> int:
    """As `service.engines.worker.Target.label` has it."""
    return int(label.partition("@")[2].partition("-")[0] or 0)


# ---- its process


class EngineServer:
    """The program as a process of its own, at the same address whenever it is started."""

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        command = [sys.executable, "-m", "tests.service.engine_server", str(self.port)]
        self._process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        while True:
            assert self._process.poll() is None
            try:
                self._ask("GET", "/health")
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
            else:
                return self

    def told(self, **trouble: object) -> None:
        """`generate` and `update` are what goes wrong; `seconds` is how long a group takes."""
        self._ask("POST", "/trouble", trouble)

    @property
    def asked(self) -> int:
        """Groups."""
        return int(self._ask("GET", "/model_info")["asked"])

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)
        if number is signal.SIGKILL:
            self._process.wait()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.send(signal.SIGKILL)

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, content, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())


@contextmanager
def running_engines(count: int) -> Iterator[list[EngineServer]]:
    engines = [EngineServer() for _ in range(count)]
    try:
        yield [engine.start() for engine in engines]
    finally:
        for engine in engines:
            engine.close()


# ---- a line to it


class Way(StrEnum):
    OPEN = auto()
    REFUSED = auto()
    """Nobody listens."""
    RESET = auto()
    """Whoever connects is thrown out at once."""


class Line:
    """A way to a server that can be changed at any moment; connections that are there are torn then."""

    def __init__(self, to: int) -> None:
        self.port = free_port()
        self._to = to
        self._way = Way.REFUSED
        self._listening: socket.socket | None = None
        self._ends: set[socket.socket] = set()
        self._changing = threading.Lock()

    def become(self, way: Way) -> None:
        with self._changing:
            self._way = way
            if way is Way.REFUSED and self._listening:
                self._listening.shutdown(socket.SHUT_RDWR)
                self._listening.close()
                self._listening = None
            if way is not Way.REFUSED and not self._listening:
                self._listening = socket.create_server(("127.0.0.1", self.port), reuse_port=True)
                threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()
            ends, self._ends = self._ends, set()
        for end in ends:
            _tear(end)

    def close(self) -> None:
        self.become(Way.REFUSED)

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                near, _ = listening.accept()
            except OSError:
                return
            with self._changing:
                far = socket.create_connection(("127.0.0.1", self._to)) if self._way is Way.OPEN else None
                if far:
                    self._ends |= {near, far}
            if far is None:
                _tear(near)
                continue
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=_carry, args=(one, other), daemon=True).start()


def _carry(one: socket.socket, other: socket.socket) -> None:
    try:
        while part := one.recv(1 << 16):
            other.sendall(part)
        other.shutdown(socket.SHUT_WR)
    except OSError:  # torn
        pass


def _tear(end: socket.socket) -> None:
    """With a reset."""
    with closing(end):
        try:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.shutdown(socket.SHUT_RD)
        except OSError:  # it is gone
            pass


if __name__ == "__main__":
    web.run_app(Program().app(), host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
