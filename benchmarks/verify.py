"""What killable workers cost: verifications/s against math-verify in bare processes, clean and under attack; and how
often our verdicts agree with labels that others recorded."""

import asyncio
import multiprocessing
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.labelled import SETS
from benchmarks.report import Figure, spread
from curation.records import Outcome, Prompt, Verdict
from service.verifiers.catalogue import Catalogue
from service.verifiers.panel import Panel
from service.verifiers.pool import VerifierPool
from service.verifiers.worker import Limits

WORKERS = multiprocessing.cpu_count()
ITEMS = 10_000
GROUP = 8
HOSTILE_SHARE = 0.01
REPEATS = 3
TICK_SECONDS = 0.01
LIMITS = Limits(wall_seconds=30.0, cpu_seconds=1.0, memory_bytes=2 << 30)
HOSTILE = (
    r"9^{9^{9^{9}}}",
    r"10^{10^{10}}",
    r"100000000!",
    r"\binom{10^9}{5\cdot10^8}",
    r"\sum_{k=1}^{10^7} k!",
    r"7^{7^{7^7}} \mod 1000",
    r"5^{5^{5^{5^5}}}",
    r"\prod_{k=1}^{10^6} k^k",
)


@dataclass(frozen=True, slots=True)
class Item:
    gold: str
    text: str
    right: bool | None
    """None for a hostile one: it must get no reward."""


def run(data: Path | None) -> dict[str, Figure]:
    """`throughput_ratio`: clean items, ours over bare math-verify. `hostile_ideal_ratio`: the ideal wall time, (clean
    CPU + hostile items x their limit) / workers, over ours. `lost`: items with another verdict than the right one.
    `loop_lag_ms`: under attack, the longest that the event loop kept somebody else waiting.
    With `data`, a folder of recorded rollouts: `agreement_*`."""
    clean = list(_items(random.Random(0), ITEMS, 0.0))
    attacked = list(_items(random.Random(1), ITEMS, HOSTILE_SHARE))
    ratios, cpu, lost = [], [], 0
    for _ in range(REPEATS):
        bare_seconds, bare_cpu = _bare(clean)
        ours = _ours(clean)
        ratios.append(bare_seconds / ours.seconds)
        cpu.append(bare_cpu)
        lost += ours.lost
    under_attack = [_ours(attacked) for _ in range(REPEATS)]
    hostile = sum(item.right is None for item in attacked)
    clean_cpu = min(cpu) * (ITEMS - hostile) / ITEMS
    ideal = (clean_cpu + hostile * LIMITS.cpu_seconds) / WORKERS
    return {
        "throughput_ratio": spread(ratios, "x"),
        "hostile_ideal_ratio": spread([ideal / one.seconds for one in under_attack], "x"),
        "hostile_seconds": spread([one.seconds for one in under_attack], "s"),
        "lost": spread([lost + sum(one.lost for one in under_attack)], "items"),
        "loop_lag_ms": spread([one.lag_ms for one in under_attack], "ms"),
        "peak_worker_mib": spread([max(one.peak_mib for one in under_attack)], "MiB"),
        **(_agreement(data) if data else {}),
    }


def _items(rng: random.Random, count: int, hostile: float) -> Iterator[Item]:
    """Groups that share a gold: 60 % integers, 25 % fractions, 15 % symbolic; a third of the answers is wrong."""
    for _ in range(count // GROUP):
        a, b, kind = rng.randint(2, 99), rng.randint(2, 99), rng.random()
        for number in range(GROUP):
            wrong = rng.random() < 1 / 3
            if kind < 0.6:
                gold, said = str(a * b), str(a * b + wrong)
            elif kind < 0.85:
                gold, said = rf"\frac{{{a}}}{{{b}}}", rf"\frac{{{3 * a + wrong}}}{{{3 * b}}}"
            else:
                gold, said = rf"{a}\sqrt{{{b}}}+x^2", rf"x^2 + {a + wrong}\sqrt{{{b}}}"
            if rng.random() < hostile:
                yield Item(gold, rf"Attempt {number}: it is \boxed{{{rng.choice(HOSTILE)}}}", None)
            else:
                yield Item(gold, rf"Attempt {number}: multiply and simplify; it is \boxed{{{said}}}.", not wrong)


# ---- bare


def _bare(items: list[Item]) -> tuple[float, float]:
    """(wall seconds, CPU seconds) of plain processes that share the items; warmed up."""
    context = multiprocessing.get_context("spawn")
    shares = [[(item.gold, item.text) for item in items[i::WORKERS]] for i in range(WORKERS)]
    with context.Pool(WORKERS) as pool:
        pool.map(_bare_share, [share[:50] for share in shares], chunksize=1)
        started = time.perf_counter()
        cpu = pool.map(_bare_share, shares, chunksize=1)
        return time.perf_counter() - started, sum(cpu)


def _bare_share(share: list[tuple[str, str]]) -> float:
    from math_verify import parse, verify

    began = time.process_time()
    for gold, text in share:
        verify(parse(rf"\boxed{{{gold}}}"), parse(text))
    return time.process_time() - began


# ---- ours


@dataclass(frozen=True, slots=True)
class Run:
    seconds: float
    lost: int
    peak_mib: float
    lag_ms: float


def _ours(items: list[Item]) -> Run:
    groups = [items[i : i + GROUP] for i in range(0, len(items), GROUP)]

    async def work() -> Run:
        pool = VerifierPool(workers=WORKERS, limits=LIMITS)
        panel = Panel(Catalogue(), pool)
        try:
            await asyncio.gather(*(_verify(panel, group) for group in groups[: 8 * WORKERS]))
            sizes: list[float] = []
            late: list[float] = []
            watching = [asyncio.create_task(_watch_memory(pool, sizes)), asyncio.create_task(_watch_loop(late))]
            started = time.perf_counter()
            verdicts = await asyncio.gather(*(_verify(panel, group) for group in groups))
            seconds = time.perf_counter() - started
            for watch in watching:
                watch.cancel()
            flat = [verdict for group in verdicts for verdict in group]
            lost = sum(not _is_right(item, verdict) for item, verdict in zip(items, flat, strict=True))
            return Run(seconds, lost, max(sizes, default=0.0), 1000 * max(late, default=0.0))
        finally:
            pool.close()

    return asyncio.run(work())


async def _verify(panel: Panel, group: list[Item]) -> list[Verdict]:
    return await panel.verify(Prompt("p", "?", group[0].gold, "math"), [item.text for item in group])


async def _watch_memory(pool: VerifierPool, sizes: list[float]) -> None:
    while True:
        sizes += map(_resident_mib, pool.pids)
        await asyncio.sleep(0.25)


async def _watch_loop(late: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(TICK_SECONDS)
        late.append(time.perf_counter() - began - TICK_SECONDS)


def _is_right(item: Item, verdict: Verdict) -> bool:
    if item.right is None:
        return verdict.outcome in {Outcome.TIMEOUT, Outcome.ERROR}
    return verdict.reward == float(item.right)


def _resident_mib(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0.0)


# ---- agreement


def _agreement(data: Path) -> dict[str, Figure]:
    """Share of verdicts on the same side of one half as the label, of every set that is there."""
    figures = {}
    for name, read in SETS.items():
        if labelled := list(read(data)):
            verdicts = asyncio.run(judge_all([(one.prompt, [one.text]) for one in labelled], LIMITS))
            same = [
                verdict.reward is not None and (verdict.reward > 0.5) == (one.label > 0.5)
                for one, [verdict] in zip(labelled, verdicts, strict=True)
            ]
            figures[f"agreement_{name}"] = spread([sum(same) / len(same)], f"of {len(same)}")
    return figures


async def judge_all(groups: list[tuple[Prompt, list[str]]], limits: Limits) -> list[list[Verdict]]:
    panel = Panel(Catalogue(), VerifierPool(workers=WORKERS, limits=limits))
    try:
        return await asyncio.gather(*(panel.verify(prompt, texts) for prompt, texts in groups))
    finally:
        await panel.close()
