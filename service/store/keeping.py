"""Keeping a store: is it whole, a copy of it while it serves, and what can be had back of a damaged one.

- A backup is a tar of the segments of one manifest and of every frozen dataset: a moment of the store, whatever is
  written meanwhile.
- Nothing damaged is ever deleted: it is put aside, and said where.
"""

import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import duckdb

from service.stages import Conflict, Invalid, StoreFailed
from service.store.answers import BEGUN
from service.store.duck import Duck
from service.store.durable import sha256_of
from service.store.layout import NewerSchema
from service.store.opening import Locked, take_lock
from service.store.sealing import Sealer
from service.store.segments import Segments

DATABASE = "store.duckdb"
CHUNK = 2**20

CHECKS = {
    "groups that are stored twice": "select group_id from groups group by 1 having count(*) > 1",
    "groups that share a number": "select seq from groups group by 1 having count(*) > 1",
    "groups without all of their rollouts": """
        select g.group_id from groups g left join (
            select seq, count(*) as n, count(distinct idx) as different, max(idx) as last from rollouts group by 1
        ) r using (seq) where coalesce(r.n, 0) != g.rollouts or r.different != r.n or r.last != r.n - 1""",
    "rollouts without a group": "select distinct group_id from rollouts anti join groups using (seq)",
    "groups without their prompt": "select group_id from groups anti join prompts using (prompt_id)",
    "groups without their visit": "select group_id from groups anti join visits using (run, prompt_id, visit)",
    "visits that were planned twice": "select prompt_id from visits group by run, prompt_id, visit having count(*) > 1",
    "visits that ended twice": """
        select prompt_id from (
            select run, prompt_id, visit from groups union all select run, prompt_id, visit from failures
        ) group by run, prompt_id, visit having count(*) > 1""",
    "visits that never ended, of jobs that did": """
        select v.prompt_id from visits v
        anti join groups using (run, prompt_id, visit) anti join failures using (run, prompt_id, visit)
        semi join (select job from job_events where state in ('done', 'cancelled')) using (job)
        where v.action = 'sampled'""",
    "jobs that ended twice": """
        select job from job_events where state in ('done', 'failed', 'cancelled') group by 1 having count(*) > 1""",
    "jobs of which two events have one number": "select job from job_events group by job, seq having count(*) > 1",
    "prompts that are stored twice": "select prompt_id from prompts group by 1 having count(*) > 1",
    "versions of datasets that are stored twice": """
        select name || '@' || version from dataset_versions group by name, version having count(*) > 1""",
    "answers to one key that are stored twice": f"""
        select answer from answers where status != {BEGUN} group by 1 having count(*) > 1""",
    "leased groups that are not there": """
        select distinct group_id from (select unnest(group_ids) as group_id from leases)
        anti join groups using (group_id)""",
    "groups that one consumer was given twice": """
        select group_id from (
            select run, consumer, unnest(group_ids) as group_id from current_leases
            where state in ('open', 'acknowledged')
        ) group by run, consumer, group_id having count(*) > 1""",
    "rescores without a group": "select distinct group_id from rescores anti join groups using (group_id)",
}
"""What must not be there, and how to find it."""


def damages(duck: Duck, dataset_root: Path) -> Iterator[str]:
    """Everything that is wrong with the store, in words: files that changed, rows that contradict each other, datasets
    that are not there."""
    with duck.pinned() as layout:
        yield from duck.segments.damages(layout.manifest)
    for what, sql in CHECKS.items():
        try:
            found = [str(value) for batch in duck.scan(sql) for value in batch[0].to_pylist()]
        except StoreFailed as error:
            yield f"it could not be seen whether there are {what}: {error}"
            continue
        if found:
            yield f"{len(found)} {what}: {', '.join(found[:3])}"
    for batch in duck.scan("select distinct dataset_id, manifest from dataset_versions where deleted_at is null"):
        for dataset_id, manifest in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            for name, file in json.loads(manifest)["files"].items():
                path = dataset_root / dataset_id / name
                if not path.is_file():
                    yield f"{path} is missing"
                elif sha256_of(path) != file["sha256"]:
                    yield f"{path} is not what was frozen: its sha256 differs"


def backup(duck: Duck, sealer: Sealer, dataset_root: Path) -> Iterator[bytes]:
    """The store as it is now, as a tar, bit by bit. Writers go on meanwhile."""
    sealer.seal()
    with duck.pinned() as layout:
        files = [
            (f"segments/{path.parent.name}/{path.name}", path)
            for segment in layout.manifest.segments
            for path in (duck.segments.path(segment, table) for table in segment.files)
        ]
        known = {str(row[0].as_py()) for batch in duck.scan(LIVE_DATASETS) for row in zip(*batch.columns, strict=True)}
        for folder in sorted(dataset_root / dataset_id for dataset_id in known if (dataset_root / dataset_id).is_dir()):
            files += [(f"datasets/{folder.name}/{path.name}", path) for path in sorted(folder.iterdir())]
        manifest = duck.segments.manifest_path(layout.manifest.number)
        for name, path in [*files, (f"segments/{manifest.name}", manifest)]:
            yield from _member(name, path)
    yield bytes(2 * tarfile.BLOCKSIZE)


LIVE_DATASETS = "select distinct dataset_id from dataset_versions where deleted_at is null"


def _member(name: str, path: Path) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.size = path.stat().st_size
    yield info.tobuf()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
    yield bytes(-info.size % tarfile.BLOCKSIZE)


def restore(data: Path, tar: BinaryIO) -> Duck:
    """Makes a new data folder out of a backup; returns its store, open. Raises Conflict for a folder that is in use,
    Invalid for a file that is no whole backup."""
    if data.exists() and any(data.iterdir()):
        raise Conflict("folder_not_empty", f"{data} is not empty: a backup is restored into a new folder")
    unfinished = data.with_name(f"{data.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with tarfile.open(fileobj=tar, mode="r|") as archive:
            archive.extractall(unfinished, filter="data")
        segments = Segments(unfinished / "segments")
        broken = list(segments.damages(segments.newest()))
    except (tarfile.TarError, EOFError, StoreFailed) as error:
        raise Invalid("bad_backup", f"this is not a whole backup: {error}") from error
    if broken or not segments.newest().number:
        raise Invalid("bad_backup", f"this is not a whole backup: {'; '.join(broken[:3]) or 'it has no manifest'}")
    if data.exists():
        data.rmdir()
    unfinished.rename(data)
    return Duck(data / DATABASE)


def rescue(data: Path, now: datetime) -> tuple[Duck, list[str]]:
    """Opens a store that the service refuses to open, without what is damaged; tells what it did, in words. The damaged
    files are kept aside as they were. Raises Locked for one that is in use, StoreFailed if nothing helps."""
    path = data / DATABASE
    log = path.with_name(f"{path.name}.wal")
    try:
        return Duck(path), ["the store is not damaged"]
    except (Locked, NewerSchema):
        raise
    except StoreFailed as error:
        failure = str(error)
    with take_lock(path):
        aside = data / f"damaged-{now:%Y%m%dT%H%M%S}"
        aside.mkdir()
        for file in (path, log):
            if file.exists():
                shutil.copy2(file, aside)
        _link_all(data / "segments", aside / "segments")
    told = [failure, f"the files as they were are in {aside}"]
    told += Segments(data / "segments").damages(Segments(data / "segments").newest())
    if (at := _torn_at(path)) is not None:
        size = log.stat().st_size
        os.truncate(log, at)
        told.append(f"the log is whole up to byte {at} of {size}: what was committed after that is lost")
    elif log.exists() and "WAL" in failure:
        log.unlink()
        told.append("the log cannot be read at all: what was not in the database file yet is lost")
    newest = Segments(data / "segments").newest().number
    try:
        duck = Duck(path)
    except StoreFailed as error:
        told.append(f"the database itself cannot be read: {error}")
    else:
        if duck.layout.manifest.number < newest:
            told.append(f"segments that were sealed after the damage are not in it; they are in {aside}")
        return duck, told
    for file in (path, log):
        file.unlink(missing_ok=True)
    told.append("it was made anew from its segments: what was not sealed yet is lost")
    return Duck(path), told


def _link_all(folder: Path, target: Path) -> None:
    """The same files under other names: what is removed from the one place stays in the other."""
    shutil.copytree(folder, target, copy_function=os.link)


def _torn_at(path: Path) -> int | None:
    """Where the first damaged entry of the log begins."""
    try:
        duckdb.connect(str(path)).close()
    except duckdb.Error as error:
        found = re.search(r"Corrupt WAL file: entry at byte position (\d+)", str(error))
        return int(found[1]) if found else None
    return None
