"""Whether a service would work here: each thing that it needs is tried, and what is wrong comes with what to do.

Nothing that is stored is changed, and no other machine is asked but the engines that the settings name.
"""

import asyncio
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum, auto
from importlib.metadata import version
from pathlib import Path

import httpx2

from service.access import Keyring, refuse_open_door
from service.checkpoints import named
from service.engines.addresses import Kind
from service.engines.process import built_python
from service.settings import EngineChoice, Settings
from service.stages import Refused, StageError
from service.store.duck import Duck
from service.store.keeping import DATABASE, damages
from service.verifiers.code.sandbox import NoSandbox, find

LITTLE_BYTES, ENOUGH_BYTES = 1 << 30, 10 << 30
"""Free on the disk: with less than the one the store may stop soon."""
SHARED = {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "lustre", "beegfs"}
"""Kinds of file systems that several machines have, where a lock may be one of this machine only."""
ENGINE_SECONDS, PYTHON_SECONDS = 10.0, 120.0
CLOCK_SLACK = 5.0


class Finding(StrEnum):
    OK = auto()
    WARNING = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class Found:
    what: str
    finding: Finding
    told: str
    remedy: str = ""
    """What to do; empty where nothing need be done."""


Check = Callable[[Settings], Iterator[Found]]


def examine(settings: Settings, *, thoroughly: bool = False) -> Iterator[Found]:
    """Everything, in an order in which the first thing that is wrong explains those after it. `thoroughly` also reads
    the whole store."""
    for check in (_software, _folder, _keys, _sandbox, _policy, _engines):
        yield from check(settings)
    yield from _store(settings, thoroughly)


def _software(settings: Settings) -> Iterator[Found]:
    names = ("duckdb", "torch", "transformers", "fastapi", "pyarrow")
    yield Found("software", Finding.OK, f"Python {sys.version.split()[0]}, " + ", ".join(_versioned(n) for n in names))
    if not version("duckdb").startswith("1.5."):
        yield Found(
            "duckdb", Finding.FAILED, f"{version('duckdb')} writes files that 1.5 cannot read", "install duckdb 1.5.5"
        )
    for name in ("gmpy2", "flint"):
        if importlib.util.find_spec(name):
            told = f"{name} is installed: sympy takes it, and hostile answers then cost a killed worker each"
            yield Found(name, Finding.WARNING, told, f"uninstall {name} where the service runs")


def _versioned(name: str) -> str:
    return f"{name} {version(name)}"


def _folder(settings: Settings) -> Iterator[Found]:
    data = settings.data.absolute()
    place = next(folder for folder in (data, *data.parents) if folder.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        yield Found("data folder", Finding.FAILED, f"{place} cannot be written", "choose another --data, or its owner")
        return
    kind = _file_system(place)
    if kind in SHARED:
        told = f"{data} is on {kind}: two machines may both think that they have the lock"
        yield Found("data folder", Finding.WARNING, told, "put it on a disk of this machine")
    else:
        yield Found("data folder", Finding.OK, f"{data} on {kind}" + ("" if data.exists() else ", to be made"))
    free = shutil.disk_usage(place).free
    finding = Finding.FAILED if free < LITTLE_BYTES else Finding.WARNING if free < ENOUGH_BYTES else Finding.OK
    remedy = "" if finding is Finding.OK else "make room, or choose another --data; a full disk stops every write"
    yield Found("disk", finding, f"{free / 2**30:.1f} GiB free", remedy)


def _file_system(place: Path) -> str:
    """As the kernel calls it; of the longest mount point that the place is in."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "an unknown file system"
    within = [(point, kind) for point, kind in mounts if place.is_relative_to(point)]
    return max(within, key=lambda mount: len(mount[0]))[1] if within else "an unknown file system"


def _keys(settings: Settings) -> Iterator[Found]:
    keyring = Keyring(settings.data)
    try:
        refuse_open_door(keyring, settings.host, unsafe=settings.unsafe_no_keys)
        keys = keyring.keys
    except (Refused, StageError) as failure:
        yield Found("keys", Finding.FAILED, str(failure), "`refinery keys` makes and lists them")
        return
    if keys is None and settings.unsafe_no_keys:
        told = f"whoever reaches {settings.host} may do everything: --unsafe-no-keys"
        yield Found("keys", Finding.WARNING, told, "make one with `refinery keys add`")
    elif keys is None:
        yield Found("keys", Finding.OK, f"none, and only this machine reaches {settings.host}")
    else:
        expired = [key.name for key in keys if key.expires_at and key.expires_at <= datetime.now(UTC)]
        told = f"{len(keys)}" + (f", of which no longer valid: {', '.join(expired)}" if expired else "")
        yield Found("keys", Finding.OK, told)


def _sandbox(settings: Settings) -> Iterator[Found]:
    try:
        find(settings.code_python, unsafe=settings.unsafe_local_code)
    except NoSandbox as failure:
        told, _, remedy = str(failure).partition("; ")
        yield Found("sandbox", Finding.FAILED, f"no SQL and no verifier of code: {told}", remedy)
        return
    if settings.unsafe_local_code:
        yield Found("sandbox", Finding.WARNING, "code of completions runs unconfined: --unsafe-local-code")
    else:
        yield Found("sandbox", Finding.OK, "bubblewrap works")


def _policy(settings: Settings) -> Iterator[Found]:
    try:
        yield Found("policy", Finding.OK, named(settings.first_checkpoint))
    except Refused as failure:
        yield Found("policy", Finding.FAILED, str(failure), "name another --policy")


def _engines(settings: Settings) -> Iterator[Found]:
    if not settings.has_fleet:
        yield Found("engine", Finding.OK, "embedded: transformers in the service's own process")
    if settings.engine is not EngineChoice.TRANSFORMERS and settings.engine_image is None:
        yield _launched(Kind(settings.engine), settings.engine_python)
    for spec in settings.engine_url:
        yield _attached(spec.url)


def _launched(kind: Kind, given: Path | None) -> Found:
    python = given or built_python(kind)
    if not python.exists():
        return Found("engine", Finding.FAILED, f"there is no {python}", "`make engines`, or name --engine-python")
    asked = f"from importlib.metadata import version; print(version({str(kind)!r}))"
    try:
        told = subprocess.run(
            [python, "-c", asked], capture_output=True, text=True, check=False, timeout=PYTHON_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as failure:
        return Found("engine", Finding.FAILED, f"{python} does not run: {failure}", "name another --engine-python")
    if told.returncode:
        return Found("engine", Finding.FAILED, f"{python} has no {kind}", f"install {kind} there")
    return Found("engine", Finding.OK, f"{kind} {told.stdout.strip()} in {python}")


def _attached(url: str) -> Found:
    try:
        answer = httpx2.get(f"{url}/health", timeout=ENGINE_SECONDS)
    except httpx2.HTTPError as failure:
        return Found("engine", Finding.FAILED, f"{url} does not answer: {failure}", "start it, or correct --engine-url")
    if answer.status_code >= 500:
        return Found("engine", Finding.FAILED, f"{url} says {answer.status_code} to /health", "see its own log")
    return Found("engine", Finding.OK, f"{url} answers")


def _store(settings: Settings, thoroughly: bool) -> Iterator[Found]:
    path = settings.data / DATABASE
    if not path.exists():
        yield Found("store", Finding.OK, "none yet")
        return
    try:
        is_taken = _is_taken(path.with_suffix(".lock"))
    except OSError as failure:
        yield Found("store", Finding.FAILED, f"its lock cannot be read: {failure}", "run as the owner of the folder")
        return
    if is_taken:
        told = f"a service has {settings.data} open: ask it with `refinery store check`"
        yield Found("store", Finding.OK, told)
        return
    try:
        with closing(Duck(path, settings.store_memory_mib)) as duck:
            if thoroughly:
                yield _whole(duck, settings)
            counts = duck.counts()
            told = f"{counts['groups']:,} groups, {counts['rollouts']:,} rollouts, {counts['jobs']:,} jobs"
            yield Found("store", Finding.OK, told)
            yield _clock(duck)
    except StageError as failure:
        yield Found("store", Finding.FAILED, str(failure), f"`refinery store restore --data {settings.data}`")


def _whole(duck: Duck, settings: Settings) -> Found:
    found = list(damages(duck, settings.dataset_root))
    if not found:
        return Found("every file and row", Finding.OK, "as they should be")
    remedy = "`refinery store restore` saves what is whole; a backup has the rest"
    return Found("every file and row", Finding.FAILED, "; ".join(found[:5]), remedy)


def _clock(duck: Duck) -> Found:
    """Times are for reading only, but a clock that stands wrong makes them lie."""
    [row] = asyncio.run(duck.read("select epoch(max(told_at)) as newest from job_events"))
    ahead = (row["newest"] or 0.0) - time.time()
    if ahead > CLOCK_SLACK:
        return Found("clock", Finding.WARNING, f"{ahead:.0f} s behind what is stored", "set it, by NTP say")
    return Found("clock", Finding.OK, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")


def _is_taken(lock: Path) -> bool:
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
