"""A running service for tests: the real store, verifier workers and HTTP stack; only the engine is scripted."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.app import create_app
from service.checkpoints import EMBEDDED
from service.engines.scripted import Script, ScriptedEngine
from service.parts import open_parts, utc_now
from service.settings import Settings
from service.store.duck import Duck

PASS_RATES = {"easy": 1.0, "hard": 0.0, "mixed": 0.5}


def by_first_word(prompt: str, seed: int, version: int) -> str:
    """Answers 4 as often as the first word of the prompt says."""
    right = random.Random(seed).random() < PASS_RATES[prompt.split()[0]]
    return "<answer>4</answer>" if right else "<answer>5</answer>"


OpenService = Callable[..., AbstractContextManager[TestClient]]


def link_checkpoint(folder: Path) -> Path:
    """A checkpoint; the scripted engine does not read it."""
    folder.mkdir()
    for file in EMBEDDED.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def scripted_app(
    data: Path,
    checkpoint: Path,
    script: Script = by_first_word,
    *,
    engine: Callable[[Script], ScriptedEngine] = ScriptedEngine,
    now: Callable[[], datetime] = utc_now,
    clock: Callable[[], float] = time.monotonic,
    **settings: object,
) -> FastAPI:
    chosen = Settings.model_validate({"data": data, "policy": str(checkpoint), "verifier_workers": 1} | settings)
    return create_app(partial(open_parts, chosen, make_engine=lambda *_: engine(script), now=now, clock=clock))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return link_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def open_service(tmp_path: Path, checkpoint: Path) -> OpenService:
    """Opens a service on the test's data folder; opening it again is a restart."""

    @contextmanager
    def opener(script: Script = by_first_word, *, data: str = "data", **options: Any) -> Iterator[TestClient]:
        app = scripted_app(tmp_path / data, checkpoint, script, **options)
        with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
            yield client

    return opener


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a store."""
    return tmp_path / "store.duckdb"


@pytest.fixture
def duck(path: Path) -> Iterator[Duck]:
    duck = Duck(path)
    yield duck
    duck.close()


@pytest.fixture
def client(open_service: OpenService) -> Iterator[TestClient]:
    with open_service() as client:
        yield client
