"""Verbs of the service: ``refinery serve`` and ``refinery store``."""

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from service import key_verbs, logs, store_verbs
from service.access import Keyring, refuse_open_door
from service.doctor_verb import doctor
from service.engines.addresses import parse_worker
from service.logs import LogFormat
from service.sending import SendingFiles
from service.settings import EngineChoice, ReloadMode, Settings
from service.verifiers.declared import parse_declared


def register(app: typer.Typer) -> None:
    app.command()(serve)
    app.command()(doctor)
    app.add_typer(store_verbs.app, name="store")
    app.add_typer(key_verbs.app, name="keys")


def serve(
    data: Annotated[Path | None, typer.Option(help="Folder of the store and the datasets.")] = None,
    policy: Annotated[str | None, typer.Option(help="Checkpoint folder to start a new data folder with.")] = None,
    policy_name: Annotated[str | None, typer.Option(help="Name of that policy.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 picks a free one.")] = None,
    engine: Annotated[EngineChoice | None, typer.Option(help="What samples; vllm and sglang are started.")] = None,
    engine_python: Annotated[Path | None, typer.Option(help="Python of the engine's own environment.")] = None,
    engine_image: Annotated[str | None, typer.Option(help="Docker image of the engine, instead.")] = None,
    engine_url: Annotated[
        list[str] | None,
        typer.Option(help="Attach to a server: URL[,admin=URL]...[,dialect=vllm|sglang|openai][,version=N]."),
    ] = None,
    engine_reload: Annotated[ReloadMode | None, typer.Option(help="What a publication does to requests.")] = None,
    verifier: Annotated[
        list[str] | None, typer.Option(help="Declare a verifier: NAME[@REVISION]=KIND:TARGET; see docs/verifiers.md.")
    ] = None,
    code_python: Annotated[Path | None, typer.Option(help="Python for programs under test.")] = None,
    unsafe_local_code: Annotated[
        bool | None, typer.Option("--unsafe-local-code", help="Run programs under test without a sandbox.")
    ] = None,
    checkpoint_root: Annotated[
        list[Path] | None, typer.Option(help="Folder in which who has a key may name checkpoints; repeatable.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Name of this machine that clients without keys may call it by.")
    ] = None,
    unsafe_no_keys: Annotated[
        bool | None, typer.Option("--unsafe-no-keys", help="Serve on any address without asking for keys.")
    ] = None,
    log_format: Annotated[LogFormat | None, typer.Option(help="Of the lines on stderr.")] = None,
    engine_args: Annotated[list[str] | None, typer.Argument(help="After --: arguments for the engine.")] = None,
) -> None:
    """Runs the service until it is interrupted.

    Every setting also comes from REFINERY_* variables and from refinery.toml; flags win.
    """
    try:
        given: dict[str, Any] = {
            "data": data,
            "policy": policy,
            "policy_name": policy_name,
            "host": host,
            "port": port,
            "engine": engine,
            "engine_python": engine_python,
            "engine_image": engine_image,
            "engine_url": tuple(map(parse_worker, engine_url)) if engine_url else None,
            "engine_reload": engine_reload,
            "verifier": tuple(map(parse_declared, verifier)) if verifier else None,
            "code_python": code_python,
            "unsafe_local_code": unsafe_local_code,
            "checkpoint_root": tuple(checkpoint_root) if checkpoint_root else None,
            "allow_host": tuple(allow_host) if allow_host else None,
            "unsafe_no_keys": unsafe_no_keys,
            "log_format": log_format,
            "engine_args": tuple(engine_args) if engine_args else None,
        }
        settings = Settings(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        sys.exit("\n".join(f"refinery serve: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()))
    except ValueError as error:
        sys.exit(f"refinery serve: {error}")
    logs.configure(settings.log_format, settings.log_level)
    _run(settings)


def _run(settings: Settings) -> None:
    from service.app import create_app  # pulls in torch and DuckDB: only when serving
    from service.parts import open_parts
    from service.stages import Refused, StageError

    async def run() -> None:
        refuse_open_door(Keyring(settings.data), settings.host, unsafe=settings.unsafe_no_keys)
        # Opened before the server starts, so that what is wrong with data or policy is one line and no traceback.
        async with open_parts(settings) as parts:
            await _server(create_app(lambda: nullcontext(parts)), settings)

    relax_collector()
    try:
        asyncio.run(run())
    except (Refused, StageError) as error:
        sys.exit(f"refinery serve: {error}")


def relax_collector() -> None:
    """Rows by the million live long and hold no cycles: by default Python would look for some in all of them, often."""
    gc.set_threshold(50_000, 20, 100)


async def _server(app: FastAPI, settings: Settings) -> None:
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=SendingFiles,
        log_config=None,
        access_log=False,  # its lines have what was asked; ours do not
        workers=1,  # one writer process
        timeout_graceful_shutdown=10,
    )
    listening = config.bind_socket()
    # asyncio forgets it for sockets made like this one: an answer in two writes then waits 40 ms for the client's ACK.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    await _Announcing(config).serve(sockets=[listening])


class _Announcing(uvicorn.Server):
    """Says where it listens once requests are really answered, and ends on a signal without passing it on."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn raises the signal again once it has stopped serving; that would cut short the closing of the store.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets=sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            print(f"listening on http://{host}:{port}", flush=True)
