"""What the service adds to an engine: rollouts/s scored and stored, against a bare client of the same server.

Both ask the same server for the same prompts with the same sampling, in turn, with as many requests in flight. The bare
client parses the answers and throws them away.
"""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.report import Figure, spread
from curation.keys import seed_for
from service.checkpoints import EMBEDDED, open_folder
from service.engines.addresses import Kind
from service.engines.dialects import DIALECTS, Ask
from service.engines.link import Link
from service.engines.process import EngineProcess, Launch
from service.engines.tokens import Tokens
from service.engines.worker import QUEUE_AHEAD
from service.run_config import Sampling
from trainers.client import Refinery
from trainers.launch import running_service
from trainers.tasks import LEVELS, distinct

GROUPS = 400
SAMPLING = Sampling(n=8, max_tokens=64)
REPEATS = 3
REQUEST_SECONDS = 600.0


def run(kinds: tuple[Kind, ...], python: Path | None) -> dict[str, Figure]:
    """`vllm_ratio`, `sglang_ratio`: service over bare client, per repeat. Also the rates themselves."""
    figures: dict[str, Figure] = {}
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            figures |= asyncio.run(_measure(kind, python, Path(folder)))
    return figures


async def _measure(kind: Kind, python: Path | None, folder: Path) -> dict[str, Figure]:
    built = Path(".engines") / kind / "bin" / "python"
    process = EngineProcess(Launch(kind, (python or built).absolute(), None, (), folder / f"{kind}.log"))
    try:
        await process.start(EMBEDDED)
        window = await _window(process, kind)
        bare, served = [], []
        with _service(process.url, folder) as refinery:
            prompts = _add_prompts(refinery)
            for repeat in range(REPEATS + 1):
                bare.append(await _bare(process.url, kind, list(prompts.values()), window, repeat))
                served.append(await asyncio.to_thread(_served, refinery, list(prompts), repeat))
    finally:
        await process.stop()
    ratios = [ours / theirs for ours, theirs in zip(served[1:], bare[1:], strict=True)]  # the first warms up
    return {
        f"{kind}_ratio": spread(ratios, "x"),
        f"{kind}_rollouts_per_second": spread(served[1:], "rollouts/s"),
        f"{kind}_bare_rollouts_per_second": spread(bare[1:], "rollouts/s"),
    }


async def _window(process: EngineProcess, kind: Kind) -> int:
    """Completions in flight, as many as the service would give the server; returns once the server answers."""
    async with aiohttp.ClientSession() as session:
        link = Link(session, process.url, None)
        while True:
            process.check()
            try:
                facts = await DIALECTS[kind].describe(link)
                return QUEUE_AHEAD * (facts.capacity or 1)
            except Exception:  # noqa: BLE001 - not up yet; `check` tells if it never will be
                await asyncio.sleep(0.5)


@contextmanager
def _service(url: str, folder: Path) -> Iterator[Refinery]:
    attach = ("--engine-url", url)
    with running_service(folder / "data", *attach, log=folder / "service.log") as service, Refinery(service) as client:
        yield client


def _add_prompts(refinery: Refinery) -> dict[str, str]:
    """Text by id."""
    each = -(-GROUPS // len(LEVELS))
    rows = [p.as_prompt() for level in LEVELS for p in distinct(level, each, seed=0, held_out=False)]
    refinery.add_prompts(rows[:GROUPS], "bench")
    return {prompt["id"]: prompt["prompt"] for prompt in refinery.prompts("bench")}


async def _bare(url: str, kind: Kind, texts: list[str], window: int, repeat: int) -> float:
    """Rollouts/s of a client that keeps the window full and drops what it gets."""
    tokens = Tokens(open_folder(EMBEDDED).folder)
    room = asyncio.Semaphore(window // SAMPLING.n)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        link = Link(session, url, None)

        async def one(number: int, text: str) -> int:
            seeds = [seed_for(repeat, "bench", number, slot) for slot in range(SAMPLING.n)]
            async with room:
                ask = Ask("policy", tokens.prompt_ids(text, SAMPLING), SAMPLING, seeds)
                return len(await DIALECTS[kind].sample(link, ask, seconds=REQUEST_SECONDS))

        started = time.perf_counter()
        sampled = await asyncio.gather(*(one(i, text) for i, text in enumerate(texts)))
        return sum(sampled) / (time.perf_counter() - started)


def _served(refinery: Refinery, prompt_ids: list[str], repeat: int) -> float:
    """Rollouts/s of a job, from the request until everything is stored."""
    config: dict[str, Any] = {"name": f"bench-{repeat}", "policy": "policy", "prompt_set": "bench", "seed": repeat}
    refinery.post("/v1/runs", config | {"sampling": SAMPLING.model_dump(), "retain": "all"})
    started = time.perf_counter()
    job = refinery.post(f"/v1/runs/bench-{repeat}/rollouts", {"prompts": prompt_ids})
    while job["state"] in {"queued", "running"}:
        job = refinery.get(f"/v1/jobs/{job['id']}", wait=30)
    elapsed = time.perf_counter() - started
    rollouts = int(job["result"]["funnel"]["rollouts"])
    assert rollouts == len(prompt_ids) * SAMPLING.n, job["result"]
    return rollouts / elapsed
