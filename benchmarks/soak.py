"""Whether a service stays what it is when it is left running: memory, open files and latencies under steady load.

For so many minutes a service samples, verifies, stores, leases, freezes, imports and answers SQL, each at its own pace,
while somebody reads a dataset at a kilobyte a second. Then 200 clients come at once, and two gigabytes are imported.
The service's memory is that of all its processes, as the kernel counts it (proportional set size).
"""

import gzip
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

from benchmarks.report import Figure
from curation.keys import rng_for
from trainers.client import Refinery, RefineryError
from trainers.launch import running_service
from trainers.tasks import LEVELS, distinct

SAMPLE_SECONDS = 5.0
EDGE_SHARE = 1 / 6
"""Of the time, at its beginning and at its end, that are compared: ten minutes of an hour."""
CROWD, CROWD_SECONDS = 200, 20.0
IMPORT_BYTES = 2 << 30
GROUP_TEXT = 32_000
"""Characters of a completion in the large import."""
RUN = {
    "name": "r",
    "policy": "policy",
    "prompt_set": "s",
    "selector": {"kind": "greso", "floor": 0.05},
    "sampling": {"n": 8, "max_tokens": 80},
    "batch": {"groups": 16, "prompts": 24},
}
ROW = {"prompt": "2 + 2 =", "reference": "4", "verifier": "numeric"}


@dataclass(slots=True)
class Seen:
    """By several threads at once: lists and counters are only added to."""

    began: float
    seconds: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """By what was asked: when, and how long it took."""
    failures: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[float, int]] = field(default_factory=list)
    files: list[tuple[float, int]] = field(default_factory=list)
    threads: list[tuple[float, int]] = field(default_factory=list)
    groups: list[tuple[float, int]] = field(default_factory=list)
    """That the run has: what reads all of it takes longer the more there are."""

    @property
    def now(self) -> float:
        return time.monotonic() - self.began

    def timed(self, what: str, ask: Callable[[], Any]) -> Any:
        began = self.now
        try:
            return ask()
        except RefineryError as error:
            self.failures[f"{what}: {error.code}"] += 1
            return None
        finally:
            self.seconds.setdefault(what, []).append((began, self.now - began))


def run(minutes: float) -> dict[str, Figure]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        with running_service(folder / "data", log=folder / "service.log") as url:
            _prepare(url)
            seen = Seen(time.monotonic())
            _load(url, seen, 60 * minutes)
            figures = _figures(seen, 60 * minutes)
            figures |= _crowd(url, seen)
            figures |= _large_import(url, folder)
    for failure, times in seen.failures.most_common():
        print(f"soak: {times} times {failure}", file=sys.stderr)
    return figures


def _prepare(url: str) -> None:
    with Refinery(url) as refinery:
        rows = [p.as_prompt() for level in LEVELS for p in distinct(level, 100, seed=1, held_out=False)]
        refinery.add_prompts(rows, "s")
        refinery.post("/v1/runs", RUN)
        refinery.wait(refinery.post("/v1/runs/r/rollouts", {"groups": 64}))
        refinery.post("/v1/datasets", {"name": "d", "recipe": {"runs": ["r"]}})


def _load(url: str, seen: Seen, seconds: float) -> None:
    over = threading.Event()
    paces: list[tuple[Callable[[Refinery, Seen, int], None], float]] = [
        (_sample, 0.0),
        (_train, 0.0),
        (_ask, 2.0),
        (_look, 0.5),
        (_freeze, 60.0),
        (_import, 5.0),
    ]
    with ExitStack() as closing:
        threads = [threading.Thread(target=_again, args=(url, seen, over, *pace)) for pace in paces]
        threads.append(threading.Thread(target=_read_slowly, args=(url, over)))
        threads.append(threading.Thread(target=_measure, args=(_service_of(url), seen, over)))
        for thread in threads:
            thread.start()
            closing.callback(thread.join)
        closing.callback(over.set)
        time.sleep(seconds)


def _again(
    url: str, seen: Seen, over: threading.Event, act: Callable[[Refinery, Seen, int], None], pause: float
) -> None:
    with Refinery(url) as refinery:
        for number in count():
            act(refinery, seen, number)
            if over.wait(pause):
                return


def _sample(refinery: Refinery, seen: Seen, number: int) -> None:
    job = seen.timed("request", lambda: refinery.post("/v1/runs/r/rollouts", {"groups": 16}))
    if job:
        refinery.wait(job)


def _train(refinery: Refinery, seen: Seen, number: int) -> None:
    try:
        lease = refinery.lease("r", 8, key=f"step-{number}", sample=True)
    except RefineryError as error:
        seen.failures[f"lease: {error.code}"] += 1
        return
    seen.timed("ack", lambda: refinery.acknowledge(lease))


def _ask(refinery: Refinery, seen: Seen, number: int) -> None:
    sql = "select kind, count(*) from groups where run = 'r' group by 1"
    seen.timed("sql", lambda: refinery.post("/v1/sql", {"sql": sql}))


def _look(refinery: Refinery, seen: Seen, number: int) -> None:
    if told := seen.timed("run", lambda: refinery.get("/v1/runs/r")):
        seen.groups.append((seen.now, told["funnel"]["sampled"]))
    seen.timed("groups", lambda: refinery.get("/v1/groups", run="r", limit=100))


def _freeze(refinery: Refinery, seen: Seen, number: int) -> None:
    recipe = {"runs": ["r"], "max_pairs": 5000}
    seen.timed("freeze", lambda: refinery.post("/v1/datasets", {"name": "d", "recipe": recipe}))


def _import(refinery: Refinery, seen: Seen, number: int) -> None:
    rows = [ROW | {"rollouts": [{"text": f"<answer>{4 + n % 2}</answer> {number}"} for n in range(8)]}]
    seen.timed("import", lambda: refinery.import_groups(rows, "imported"))


def _read_slowly(url: str, over: threading.Event) -> None:
    """A kilobyte a second of a frozen file, from the beginning whenever it has ended."""
    address = urlsplit(url)
    while not over.is_set():
        with socket.create_connection((str(address.hostname), address.port or 80), timeout=60) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            ask = f"GET /v1/datasets/d@1/train.jsonl HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n"
            connection.sendall(ask.encode())
            while connection.recv(1024) and not over.wait(1.0):
                pass


# ---- what is measured


def _service_of(url: str) -> int:
    """The process that listens there."""
    port = f"{urlsplit(url).port:04X}"
    sockets = {
        fields[9]
        for fields in (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        if fields[1].endswith(f":{port}") and fields[3] == "0A"
    }
    for process in _processes():
        try:
            links = {os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir()}
        except OSError:
            continue
        if links & {f"socket:[{inode}]" for inode in sockets}:
            return process
    raise RuntimeError(f"nobody listens at {url}")


def _processes() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]


def family(process: int) -> Iterator[int]:
    """It and all that it started, as far as they are there."""
    yield process
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return
    for child in children:
        yield from family(child)


def memory_of(process: int) -> int:
    """Bytes of it and all that it started; what they share counts once."""
    total = 0
    for one in family(process):
        try:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next((int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return total


def _measure(process: int, seen: Seen, over: threading.Event) -> None:
    while not over.wait(SAMPLE_SECONDS):
        seen.memory.append((seen.now, memory_of(process)))
        seen.files.append((seen.now, len(os.listdir(f"/proc/{process}/fd"))))
        seen.threads.append((seen.now, len(os.listdir(f"/proc/{process}/task"))))


def _figures(seen: Seen, seconds: float) -> dict[str, Figure]:
    """Of the first minutes (low) and of the last (high); a ratio above 1 is worse at the end."""
    edge = EDGE_SHARE * seconds
    figures: dict[str, Figure] = {}
    for what, samples in sorted(seen.seconds.items()):
        first, last = _edges(samples, edge, seconds)
        if min(len(first), len(last)) < 5:
            continue
        for share in (50, 95):
            before, after = _percentile(first, share), _percentile(last, share)
            figures[f"{what}_p{share}_ratio"] = {"value": after / before, "unit": "x", "low": before, "high": after}
    for name, counted, unit, scale in (
        ("memory", seen.memory, "MiB", 2**20),
        ("files", seen.files, "files", 1),
        ("threads", seen.threads, "threads", 1),
        ("groups", seen.groups, "groups", 1),
    ):
        first, last = _edges(counted, edge, seconds)
        before, after = (_percentile(side, 50) / scale for side in (first, last))
        figures[f"{name}_growth"] = {"value": after - before, "unit": unit, "low": before, "high": after}
    requests = sum(map(len, seen.seconds.values()))
    figures["requests"] = {"value": requests, "unit": "requests", "low": requests, "high": requests}
    failures = seen.failures.total()
    figures["failures"] = {"value": failures, "unit": "requests", "low": failures, "high": failures}
    return figures


def _edges(samples: Sequence[tuple[float, float]], edge: float, end: float) -> tuple[list[float], list[float]]:
    return [value for at, value in samples if at < edge], [value for at, value in samples if at > end - edge]


def _percentile(values: Sequence[float], share: int) -> float:
    return quantiles(values, n=100, method="inclusive")[share - 1] if len(values) > 1 else values[0]


def _crowd(url: str, seen: Seen) -> dict[str, Figure]:
    """200 clients, each of which asks again as soon as it is answered."""
    give_up = time.monotonic() + CROWD_SECONDS
    times: list[float] = []
    refused: Counter[str] = Counter()

    def one(number: int) -> None:
        with Refinery(url) as refinery:
            while time.monotonic() < give_up:
                began = time.monotonic()
                try:
                    refinery.get("/v1/groups", run="r", limit=10)
                except RefineryError as error:
                    refused[error.code] += 1
                times.append(time.monotonic() - began)

    with ThreadPoolExecutor(CROWD) as crowd:
        list(crowd.map(one, range(CROWD)))
    seen.failures.update({f"crowd: {code}": times for code, times in refused.items()})
    answered = len(times) / CROWD_SECONDS
    return {
        "crowd_seconds": {"value": _percentile(times, 50), "unit": "s", "low": min(times), "high": max(times)},
        "crowd_per_second": {"value": answered, "unit": "/s", "low": answered, "high": answered},
        "crowd_refused": {"value": refused.total(), "unit": "requests", "low": 0, "high": len(times)},
    }


def _large_import(url: str, folder: Path) -> dict[str, Figure]:
    """Two gigabytes of text in one packed file, by the command."""
    file = folder / "large.jsonl.gz"
    written = _write_large(file)
    process = _service_of(url)
    before, most = memory_of(process), 0
    over = threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.5):
            most = max(most, memory_of(process))

    watching = threading.Thread(target=watch)
    watching.start()
    began = time.monotonic()
    try:
        command = [sys.executable, "-m", "refinery", "import", str(file), "--run", "large", "--service", url, "--json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    finally:
        over.set()
        watching.join()
    seconds = time.monotonic() - began
    speed = written / 2**20 / seconds
    return {
        "import_mib_per_second": {"value": speed, "unit": "MiB/s", "low": speed, "high": speed},
        "import_memory": {"value": (most - before) / 2**20, "unit": "MiB", "low": before / 2**20, "high": most / 2**20},
    }


def _write_large(file: Path) -> int:
    rng = rng_for("soak")
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(20_000)]
    written = 0
    with gzip.open(file, "wt", compresslevel=1) as lines:
        for number in count():
            if written >= IMPORT_BYTES:
                return written
            texts = [" ".join(rng.choices(words, k=GROUP_TEXT // 8)) + f" <answer>{n % 2}</answer>" for n in range(8)]
            row = {"prompt": f"{number} - {number} =", "reference": "0", "verifier": "numeric"}
            line = json.dumps(row | {"rollouts": [{"text": text} for text in texts]}) + "\n"
            lines.write(line)
            written += len(line)
    return written
