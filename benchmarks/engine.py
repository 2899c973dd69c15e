"""What the service adds to an engine: rollouts/s scored and stored, against a bare client of the same server.

Both ask the same server for the same prompts with the same sampling, in turn, with as many requests in flight. The bare
client parses the answers and throws them away.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import aiohttp

from benchmarks.report import Figure, spread
from curation.keys import seed_for
from service.checkpoints import EMBEDDED
from service.engines.addresses import Kind
from service.engines.dialects.base import Ask
from service.engines.dialects.known import DIALECTS
from service.engines.link import Link
from service.engines.process import EngineProcess, Launch, built_python
from service.engines.tokens import Tokens
from service.engines.worker import QUEUE_AHEAD, UNKNOWN_CAPACITY
from service.run_config import Sampling
from trainers.client import Refinery
from trainers.launch import running_service
from trainers.tasks import LEVELS, distinct

SAMPLING = Sampling(n=8, max_tokens=64)
REPEATS = 3
GROUPS = 100
EMBEDDED_GROUPS = 400
REQUEST_SECONDS = 600.0


def run(kinds: tuple[Kind, ...], python: Path | None) -> dict[str, Figure]:
    """`vllm_ratio`, `sglang_ratio`: service over bare client, per repeat, with a policy that gives the engine
    some work. `vllm_embedded_ratio`...: with the embedded policy, a token of which costs an engine next to nothing, so
    that on a machine without a GPU the ratio is mostly about who gets the cores."""
    figures: dict[str, Figure] = {}
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            random_policy(Path(folder) / "policy")
            figures |= asyncio.run(_measure(kind, f"{kind}", python, Path(folder), Path(folder) / "policy", GROUPS))
        with tempfile.TemporaryDirectory() as folder:
            name = f"{kind}_embedded"
            figures |= asyncio.run(_measure(kind, name, python, Path(folder), EMBEDDED, EMBEDDED_GROUPS))
    return figures


def random_policy(folder: Path) -> None:
    """An untrained Qwen2 of 11 million parameters that reads bytes: its answers are noise, and as long as allowed."""
    import torch

    from trainers.policy import byte_tokenizer, fresh_policy

    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    fresh_policy(tokenizer, hidden=384, intermediate=1024, layers=6, heads=6).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


async def _measure(
    kind: Kind, name: str, python: Path | None, folder: Path, policy: Path, groups: int
) -> dict[str, Figure]:
    python = (python or built_python(kind)).absolute()
    process = EngineProcess(Launch(kind, python, None, (), folder / f"{kind}.log"))
    try:
        await process.start(policy)
        window = await _window(process, kind)
        tokens = Tokens(policy)
        with _service(process.url, policy, folder) as refinery:
            prompts = _add_prompts(refinery, groups)
            bare, served = await _in_turn(
                lambda seed: _bare(process.url, kind, tokens, list(prompts.values()), window, seed),
                lambda seed: asyncio.to_thread(_served, refinery, list(prompts), seed),
            )
    finally:
        await process.stop()
    ratios = [ours / theirs for ours, theirs in zip(served, bare, strict=True)]
    return {
        f"{name}_ratio": spread(ratios, "x"),
        f"{name}_rollouts_per_second": spread(served, "rollouts/s"),
        f"{name}_bare_rollouts_per_second": spread(bare, "rollouts/s"),
    }


async def _in_turn(
    bare: Callable[[int], Awaitable[float]], served: Callable[[int], Awaitable[float]]
) -> tuple[list[float], list[float]]:
    """Rates of both per repeat; each goes there and back, so that a machine that slows down slows both."""
    await bare(0), await served(0)  # warms up
    rates: tuple[list[float], list[float]] = ([], [])
    for seed in range(1, 2 * REPEATS, 2):
        first, there = await bare(seed), await served(seed)
        back, last = await served(seed + 1), await bare(seed + 1)
        rates[0].append(harmonic_mean((first, last)))
        rates[1].append(harmonic_mean((there, back)))
    return rates


async def _window(process: EngineProcess, kind: Kind) -> int:
    """Completions in flight, as many as the service would give the server."""
    async with aiohttp.ClientSession() as session:
        link = Link(session, process.url, None)
        await process.ready(link)
        return QUEUE_AHEAD * ((await DIALECTS[kind].describe(link)).capacity or UNKNOWN_CAPACITY)


@contextmanager
def _service(url: str, policy: Path, folder: Path) -> Iterator[Refinery]:
    attach = ("--engine-url", url, "--policy", str(policy))
    with running_service(folder / "data", *attach, log=folder / "service.log") as service, Refinery(service) as client:
        yield client


def _add_prompts(refinery: Refinery, groups: int) -> dict[str, str]:
    """Text by id."""
    each = -(-groups // len(LEVELS))
    rows = [p.as_prompt() for level in LEVELS for p in distinct(level, each, seed=0, held_out=False)]
    refinery.add_prompts(rows[:groups], "bench")
    return {prompt["id"]: prompt["prompt"] for prompt in refinery.prompts("bench")}


async def _bare(url: str, kind: Kind, tokens: Tokens, texts: list[str], window: int, seed: int) -> float:
    """Rollouts/s of a client that keeps the window full and drops what it gets."""
    room = asyncio.Semaphore(window // SAMPLING.n)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        link = Link(session, url, None)

        async def one(number: int, text: str) -> int:
            seeds = [seed_for(seed, "bench", number, slot) for slot in range(SAMPLING.n)]
            async with room:
                ask = Ask("policy", tokens.prompt_ids(text, SAMPLING), SAMPLING, seeds)
                return len(await DIALECTS[kind].sample(link, ask, seconds=REQUEST_SECONDS))

        started = time.perf_counter()
        sampled = await asyncio.gather(*(one(i, text) for i, text in enumerate(texts)))
        return sum(sampled) / (time.perf_counter() - started)


def _served(refinery: Refinery, prompt_ids: list[str], seed: int) -> float:
    """Rollouts/s of a job, from the request until everything is stored."""
    config: dict[str, Any] = {"name": f"bench-{seed}", "policy": "policy", "prompt_set": "bench", "seed": seed}
    refinery.post("/v1/runs", config | {"sampling": SAMPLING.model_dump(), "retain": "all"})
    started = time.perf_counter()
    job = refinery.post(f"/v1/runs/bench-{seed}/rollouts", {"prompts": prompt_ids})
    while job["state"] in {"queued", "running"}:
        job = refinery.get(f"/v1/jobs/{job['id']}", wait=30)
    elapsed = time.perf_counter() - started
    rollouts = int(job["result"]["funnel"]["rollouts"])
    assert rollouts == len(prompt_ids) * SAMPLING.n, job["result"]
    return rollouts / elapsed
