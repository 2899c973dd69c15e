"""Keeping a store: checked, backed up while it serves, restored, and saved from a full disk and a damaged log."""

import asyncio
import io
import itertools
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import httpx2
import pytest

from service.stages import Conflict, Invalid, StoreFailed
from service.store.duck import Duck
from service.store.keeping import damages, rescue, restore
from service.store.sealing import Sealer
from tests.processes import serving
from tests.service.conftest import OpenService
from tests.service.hub_server import TOKEN, running_hub
from tests.service.steps import freeze, prepare, sample
from tests.test_command import RECORDED
from trainers.client import Refinery

NOW = datetime.fromisoformat("2026-01-01")


def put(duck: Duck, name: str, rows: int = 20) -> None:
    members = [{"prompt_set": name, "prompt_id": f"{i} {'x' * 200}"} for i in range(rows)]
    duck.write_now(lambda tx: tx.insert("prompt_sets", members))


def sets(duck: Duck, of: int = 20) -> list[int]:
    rows = asyncio.run(duck.read("select prompt_set, count(*) as n from prompt_sets group by 1"))
    assert {row["n"] for row in rows} <= {of}
    return sorted(int(row["prompt_set"]) for row in rows)


def flip(file: Path, rng: random.Random, start: int = 0) -> None:
    """One bit."""
    at = rng.randrange(start, file.stat().st_size)
    with file.open("r+b") as changed:
        changed.seek(at)
        byte = changed.read(1)[0]
        changed.seek(at)
        changed.write(bytes([byte ^ 1 << rng.randrange(8)]))


def files_of(data: Path) -> dict[str, bytes]:
    """What is stored there."""
    return {str(path): path.read_bytes() for path in data.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_a_backup_of_a_busy_service_restores_to_a_whole_store(open_service: OpenService, tmp_path: Path) -> None:
    with open_service() as client:
        prepare(client)
        sample(client, groups=20)
        frozen = freeze(client)
        acknowledged = {group["id"] for group in client.get("/v1/groups?limit=1000").json()["items"]}
        busy = threading.Thread(target=lambda: sample(client, groups=20))
        busy.start()
        tar = client.get("/v1/store/backup").content
        busy.join()
        later = {group["id"] for group in client.get("/v1/groups?limit=1000").json()["items"]}
        assert client.get("/v1/store/check").json() == {"damages": []}

    duck = restore(tmp_path / "restored", io.BytesIO(tar))
    assert list(damages(duck, tmp_path / "restored" / "datasets")) == []
    duck.close()
    with open_service(data="restored") as client:
        restored = {group["id"] for group in client.get("/v1/groups?limit=1000").json()["items"]}
        assert acknowledged <= restored <= later
        again = client.get(frozen["urls"]["train.parquet"])
        assert again.headers["etag"].strip('"') in str(frozen["manifest"])
        sample(client, groups=5)


OPENS = ("strace", "-D", "-f", "-qq", "--seccomp-bpf", "-e", "trace=open,openat,openat2,creat,link,linkat", "-o")


def test_copies_made_while_rollouts_come_in_are_whole_and_nobody_opens_the_database_for_them(tmp_path: Path) -> None:
    """A backup, a push to the Hub and downloads at once; strace sees every file that the service's processes open."""
    calls = tmp_path / "calls"
    tried = (
        subprocess.run([*OPENS, str(calls), "true"], capture_output=True, check=False)
        if shutil.which("strace")
        else None
    )
    if tried is None or tried.returncode:
        pytest.skip("strace may not trace here")
    rows = [RECORDED | {"prompt": f"{n} + 1 ="} for n in range(100_000)]
    stop = threading.Event()

    def come_in(url: str) -> None:
        with Refinery(url) as client:
            for start in itertools.count(100, 10):
                client.import_groups(rows[start : start + 10], "r")
                if stop.is_set():
                    return

    def opened() -> list[str]:
        return [line for line in calls.read_text().splitlines() if 'store.duckdb"' in line]

    with running_hub() as hub, ThreadPoolExecutor(4) as at_once:
        told = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
        with (
            serving(tmp_path / "data", under=(*OPENS, str(calls)), environment=told) as service,
            Refinery(service.url) as client,
        ):
            before = len(opened())
            client.import_groups(rows[:100], "r")
            frozen = client.post("/v1/datasets", {"name": "d", "recipe": {"runs": ["r"]}})
            acknowledged = {group["id"] for group in client.groups("r")}
            coming = at_once.submit(come_in, service.url)
            backup = at_once.submit(httpx2.get, f"{service.url}/v1/store/backup", timeout=60)
            pushed = at_once.submit(lambda: client.wait(client.post("/v1/datasets/d@1/push", {"repo_id": "a/b"})))
            files = {name: httpx2.get(service.url + url).content for name, url in frozen["urls"].items()}
            tar = backup.result().raise_for_status().content
            commit = pushed.result()["result"]["commit"]
            stop.set()
            coming.result()
            groups = {group["id"] for group in client.groups("r")}
            assert client.get("/v1/store/check") == {"damages": []}
            assert 0 < before == len(opened())

    sums = {name: file["sha256"] for name, file in frozen["manifest"]["files"].items()}
    there = hub.repositories["a/b"].commits[commit]
    assert {name: sha256(files[name]).hexdigest() for name in sums} == sums
    assert sha256(there["train.parquet"]).hexdigest() == sums["train.parquet"]
    duck = restore(tmp_path / "restored", io.BytesIO(tar))
    sealed: Counter[str] = Counter()
    for segment in duck.layout.manifest.segments:
        sealed.update({table: file.rows for table, file in segment.files.items()})
    assert {table: rows for table, rows in duck.counts().items() if rows} == sealed
    assert list(damages(duck, tmp_path / "restored" / "datasets")) == []
    restored = {row["group_id"] for row in asyncio.run(duck.read("select group_id from groups"))}
    duck.close()
    assert acknowledged <= restored <= groups
    assert acknowledged < groups


def test_a_backup_that_is_not_whole_is_refused_and_leaves_no_folder(open_service: OpenService, tmp_path: Path) -> None:
    with open_service() as client:
        prepare(client)
        sample(client, groups=10)
        tar = client.get("/v1/store/backup").content

    swapped = bytearray(tar)
    swapped[tar.index(b"PAR1") + 100] ^= 1
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w").close()
    for broken in (tar[: len(tar) // 2], bytes(swapped), b"no tar", empty.getvalue()):
        with pytest.raises(Invalid, match="not a whole backup"):
            restore(tmp_path / "restored", io.BytesIO(broken))
        assert not (tmp_path / "restored").exists()
    with pytest.raises(Conflict):
        restore(tmp_path / "data", io.BytesIO(tar))


def test_a_backup_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        info = tarfile.TarInfo("../../escaped")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))

    with pytest.raises(Invalid):
        restore(tmp_path / "a" / "b" / "restored", io.BytesIO(tar.getvalue()))

    assert list(tmp_path.rglob("escaped")) == []


def sealed_files(duck: Duck) -> Iterator[tuple[Path, str]]:
    """With their tables. The store seals by itself, too: which segment has what depends on when it did."""
    for segment in duck.layout.manifest.segments:
        yield from ((duck.segments.path(segment, table), table) for table in segment.files)


def test_a_check_names_a_segment_that_changed(open_service: OpenService) -> None:
    with open_service() as client:
        store = client.app_state["parts"].store  # type: ignore[attr-defined]
        prepare(client)
        sample(client, groups=20)
        store.sealer.seal()
        files = {table: path for path, table in sealed_files(store.duck)}
        files["visits"].write_bytes(files["visits"].read_bytes().replace(b"PAR1", b"PAR2"))
        files["jobs"].unlink()

        found = "\n".join(client.get("/v1/store/check").json()["damages"])

    assert "visits.parquet is not what was sealed" in found
    assert "jobs.parquet is missing" in found


def test_a_check_names_rows_that_contradict_each_other(open_service: OpenService, tmp_path: Path) -> None:
    with open_service() as client:
        store = client.app_state["parts"].store  # type: ignore[attr-defined]
        prepare(client)
        sample(client, groups=20)
        frozen = freeze(client)
        hot = f"hot_{store.duck.layout.newest}"
        job = client.get("/v1/jobs").json()[0]["id"]
        store.duck.write_now(
            lambda tx: [
                tx.rows(f"insert into {hot}.groups by name select * from groups limit 1"),
                tx.rows(f"insert into {hot}.visits by name select * from visits limit 1"),
                tx.rows(
                    f"insert into {hot}.visits (run, prompt_id, job, action) values ('r', 'p', '{job}', 'sampled')"
                ),
                tx.rows(f"insert into {hot}.job_events by name select * from job_events where state = 'done'"),
                tx.rows(f"insert into {hot}.rollouts by name select * replace (99 as idx) from rollouts limit 1"),
                tx.rows(f"insert into {hot}.rescores (group_id) values ('nobody')"),
            ]
        )
        (tmp_path / "data" / "datasets" / frozen["dataset_id"] / "train.parquet").write_bytes(b"more")
        found = "\n".join(client.get("/v1/store/check").json()["damages"])

    for what in (
        "groups that are stored twice",
        "1 visits that were planned twice",
        "1 visits that ended twice",
        "1 visits that never ended",
        "1 jobs that ended twice",
        "jobs of which two events have one number",
        "without all of their rollouts",
        "rescores without",
        "not what was frozen",
    ):
        assert what in found


def test_a_damaged_log_is_refused_and_saved_up_to_the_damage(tmp_path: Path) -> None:
    """Bits flipped anywhere in the log: the service does not start, and a rescue loses only what came after."""
    whole = tmp_path / "whole"
    script = (
        "import os, sys; from pathlib import Path; from service.store.duck import Duck\n"
        "from service.store.sealing import Sealer; from tests.service.test_keeping import put\n"
        "duck = Duck(Path(sys.argv[1]) / 'store.duckdb'); sealer = Sealer(duck)\n"
        "for i in range(60):\n    put(duck, str(i))\n    if i == 20: sealer.seal()\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(whole)], check=False)
    size = (whole / "store.duckdb.wal").stat().st_size
    rng = random.Random(3)
    fewest = 60
    for attempt in range(30):
        data = tmp_path / str(attempt)
        shutil.copytree(whole, data)
        flip(data / "store.duckdb.wal", rng, size // 20)
        before = files_of(data)
        with pytest.raises(StoreFailed, match="refinery store restore"):
            Duck(data / "store.duckdb")
        assert files_of(data) == before

        duck, told = rescue(data, NOW)

        found = sets(duck)
        assert found == list(range(len(found)))
        assert len(found) >= 20
        assert (data / "damaged-20260101T000000" / "store.duckdb.wal").stat().st_size == size
        assert any("up to byte" in line for line in told)
        put(duck, "1000")
        duck.close()
        fewest = min(fewest, len(found))
    assert fewest < 60


def test_a_log_that_ends_anywhere_opens_with_what_was_committed_before(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    duck = Duck(whole / "store.duckdb")
    ends = []
    for i in range(20):
        put(duck, str(i))
        ends.append((whole / "store.duckdb.wal").stat().st_size)
    shutil.copytree(whole, tmp_path / "copied")  # of a running store: as a power cut would leave it
    duck.close()
    rng = random.Random(4)
    for attempt, end in enumerate([*rng.sample(range(ends[-1]), 30), *rng.sample(ends, 3)]):
        data = tmp_path / str(attempt)
        shutil.copytree(tmp_path / "copied", data)
        os.truncate(data / "store.duckdb.wal", end)
        duck = Duck(data / "store.duckdb")
        assert sets(duck) == [i for i, at in enumerate(ends) if at <= end]
        duck.close()


def test_a_bit_that_flips_in_the_database_is_found_when_it_is_opened_or_changes_nothing(tmp_path: Path) -> None:
    """Also in rows, which DuckDB itself would look at only when somebody asks for them."""
    whole = tmp_path / "whole"
    duck = Duck(whole / "store.duckdb")
    for i in range(20):
        put(duck, str(i))
        if i == 9:
            Sealer(duck).seal()
    duck.close()
    rng = random.Random(5)
    refused = []
    for attempt in range(30):
        data = tmp_path / str(attempt)
        shutil.copytree(whole, data)
        flip(data / "store.duckdb", rng)
        before = files_of(data)
        try:
            duck = Duck(data / "store.duckdb")
        except StoreFailed as failure:
            refused.append(str(failure))
            assert files_of(data) == before
            duck, _ = rescue(data, NOW)
            assert sets(duck) == list(range(10))
        else:
            assert sets(duck) == list(range(20))
            assert list(damages(duck, data / "datasets")) == []
        duck.close()

    assert len(refused) > 10
    assert all("refinery store restore" in told for told in refused)


def test_a_database_that_cannot_be_read_is_made_anew_from_its_segments(tmp_path: Path) -> None:
    duck = Duck(tmp_path / "store.duckdb")
    put(duck, "1")
    Sealer(duck).seal()
    put(duck, "2")
    duck.close()
    (tmp_path / "store.duckdb").write_bytes(b"\0" * 100_000)
    with pytest.raises(StoreFailed, match="refinery store restore"):
        Duck(tmp_path / "store.duckdb")

    duck, told = rescue(tmp_path, NOW)

    assert sets(duck) == [1]
    assert "made anew from its segments" in told[-1]
    assert (tmp_path / "damaged-20260101T000000" / "store.duckdb").read_bytes() == b"\0" * 100_000
    duck.close()


FULL_DISK = """
import os, resource, sys, time
from pathlib import Path
from service.stages import StoreFailed
from service.store.duck import Duck
from service.store.sealing import Sealer

duck = Duck(Path(sys.argv[1]) / "store.duckdb")
if sys.argv[2] == "checkpoint":
    duck._store.connection.execute("set checkpoint_threshold = '1MB'")
no_limit = resource.RLIM_INFINITY
resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 20, no_limit))

def put(i):
    rows = [{"prompt_set": str(i), "prompt_id": os.urandom(2000).hex()} for _ in range(20)]
    try:
        duck.write_now(lambda tx: tx.insert("prompt_sets", rows))
    except StoreFailed as error:
        print("failed", i, str(error).replace(chr(10), " "), flush=True)
        return False
    print("stored", i, flush=True)
    return True

i = 0
failures = 0
while failures < 5:
    failures += not put(i := i + 1)
try:
    Sealer(duck).seal()
except StoreFailed as error:
    print("unsealed", error)
resource.setrlimit(resource.RLIMIT_FSIZE, (no_limit, no_limit))
time.sleep(1.5)
while not put(i := i + 1):
    time.sleep(0.1)
Sealer(duck).seal()
duck.close()
"""


@pytest.mark.parametrize("where", ["log", "checkpoint"])
def test_a_full_disk_costs_nothing_that_was_acknowledged_and_is_over_when_there_is_room(
    tmp_path: Path, where: str
) -> None:
    """Files may not grow beyond 6 MiB for a while: what a full disk says, without one."""
    script = [sys.executable, "-c", FULL_DISK, str(tmp_path), where]
    told = subprocess.run(script, capture_output=True, text=True, check=False, timeout=120)
    assert told.returncode == 0, told.stderr
    lines = [line.split(" ", 2) for line in told.stdout.splitlines()]
    stored = {int(line[1]) for line in lines if line[0] == "stored"}
    failed = {int(line[1]): line[2] for line in lines if line[0] == "failed"}
    unknown = {i for i, why in failed.items() if "shows when it opens again" in why}

    duck = Duck(tmp_path / "store.duckdb")
    found = set(sets(duck))
    assert list(damages(duck, tmp_path / "datasets")) == []
    duck.close()

    assert len(failed) >= 5
    assert stored <= found <= stored | unknown
    assert max(stored) == max(found)


def test_the_command_backs_up_restores_and_checks(tmp_path: Path) -> None:
    def refinery(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "refinery", "store", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    data, tar, new = (str(tmp_path / name) for name in ("data", "backup.tar", "new"))
    duck = Duck(tmp_path / "data" / "store.duckdb")
    put(duck, "1")
    busy = refinery("check", "--data", data)
    duck.close()

    assert (busy.returncode, "has" in busy.stderr, "Traceback" in busy.stderr) == (1, True, False)
    assert refinery("compact", "--data", data).returncode == 0
    assert refinery("backup", tar, "--data", data).returncode == 0
    restored = refinery("restore", tar, "--data", new)
    assert restored.returncode == 0, restored.stderr
    assert "20 prompt_sets" in restored.stdout
    assert refinery("check", "--data", new).stdout == "nothing is wrong\n"
    assert "not damaged" in refinery("restore", "--data", new).stdout
    for arguments in (("restore", tar, "--data", new), ("check", "--data", str(tmp_path / "nowhere"))):
        refused = refinery(*arguments)
        assert (refused.returncode, refused.stdout, "Traceback" in refused.stderr) == (1, "", False)
    assert "no service" in refinery("check", "--service", "http://127.0.0.1:9").stderr
