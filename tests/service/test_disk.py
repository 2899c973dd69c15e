"""A real service on a real disk that fills up, that nobody may write to, or that gives back something else."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.processes import Service, serving
from tests.service.steps import GRESO_RUN
from tests.test_command import RECORDED, decided, prompts_file, refinery
from trainers.client import Refinery

KIB, PAGE, MIB = 1 << 10, 1 << 12, 1 << 20
ROWS = [{"prompt": f"{n} + 1 = {' ' * KIB}", "reference": str(n + 1)} for n in range(1000)]
"""More than the room that is left in the last page of a file."""
GROUPS = [RECORDED | {"prompt": f"{n} + 1 ="} for n in range(40)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small one of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", folder]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """To its last page, and what is given back by a commit that fails for it as well."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        while shutil.disk_usage(disk).free >= PAGE:
            for size in (MIB, PAGE):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    continue
            time.sleep(1)
    return ballast


def status(told: Any) -> tuple[int, str]:
    assert told.headers["content-type"] == "application/problem+json", told.text
    return told.status_code, told.json()["code"]


def begun(refinery: Refinery, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A job of a few seconds."""
    refinery.add_prompts(rows, "s")
    refinery.post("/v1/runs", GRESO_RUN | {"sampling": {"n": 4, "max_tokens": 80}})
    job: dict[str, Any] = refinery.post("/v1/runs/r/rollouts", {"passes": 6})
    return job


def test_a_disk_that_is_full_for_a_while_costs_time_and_nothing_else(disk: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in prompts_file(tmp_path).read_text().splitlines()]
    with serving(tmp_path / "undisturbed") as service, Refinery(service.url) as client:
        client.wait(begun(client, rows))
        expected = decided(client)

    with (
        serving(disk / "data") as service,
        Refinery(service.url) as client,
        httpx2.Client(base_url=service.url, timeout=120) as http,
    ):
        job = begun(client, rows)
        while client.get("/v1/runs/r")["funnel"]["sampled"] < 20:
            pass
        client.post("/v1/datasets", {"name": "before", "recipe": {"runs": ["r"]}})
        ballast = fill(disk)

        refused = http.post("/v1/prompts", json=ROWS)
        unfrozen = http.post("/v1/datasets", json={"name": "d", "recipe": {"runs": ["r"], "seed": 1}})
        unsaved = http.get("/v1/store/backup")
        assert status(refused) == status(unfrozen) == status(unsaved) == (503, "store_failed")
        assert refused.headers["retry-after"]
        assert http.get("/livez").status_code == 200
        assert http.get("/v1/datasets/before@1/train.parquet").status_code == 200
        stored = client.get("/v1/groups", run="r", limit=1000)["items"]
        assert len(stored) > 0
        assert client.get(f"/v1/groups/{stored[0]['id']}")["id"] == stored[0]["id"]
        unasked = http.post("/v1/sql", json={"sql": "select 1"})
        assert status(unasked) == (503, "store_failed")  # rather than an answer without what is not sealed
        assert client.get(f"/v1/jobs/{job['id']}")["state"] == "running"

        ballast.unlink()
        assert client.wait(client.get(f"/v1/jobs/{job['id']}"))["state"] == "done"
        assert decided(client) == expected
        assert client.get("/v1/store/check") == {"damages": []}
        assert not list((disk / "data" / "datasets").glob("*.part"))
        assert client.add_prompts(ROWS, "s")["added"] == len(ROWS)
        assert client.post("/v1/datasets", {"name": "d", "recipe": {"runs": ["r"], "seed": 1}})["version"] == 1


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a service that was killed, and its groups: half of them are sealed, half in the log."""
    data = tmp_path_factory.mktemp("killed") / "data"
    with serving(data) as service, Refinery(service.url) as client:
        client.import_groups(GROUPS[:20], "r")
        client.post("/v1/store/compact", {})
        client.import_groups(GROUPS[20:30], "r")
        client.import_groups(GROUPS[30:], "r")
        found = [group["id"] for group in client.groups("r")]
        service.end(signal.SIGKILL)
    return data, found


def found_by_a_service(data: Path) -> list[str]:
    """The groups of a folder, to which those that it lacks are imported again."""
    with serving(data) as service, Refinery(service.url) as client:
        found = [group["id"] for group in client.groups("r")]
        assert client.get("/v1/store/check") == {"damages": []}
        assert client.import_groups(GROUPS, "r")["groups"] == len(GROUPS) - len(found)
    return found


def test_a_log_that_was_cut_is_taken_up_to_the_cut_by_itself(killed: tuple[Path, list[str]], tmp_path: Path) -> None:
    whole, groups = killed
    data = shutil.copytree(whole, tmp_path / "data")
    log = data / "store.duckdb.wal"
    os.truncate(log, log.stat().st_size - 100)

    found = found_by_a_service(data)

    assert found == groups[:30]


@pytest.mark.parametrize("name", ["store.duckdb", "store.duckdb.wal"])
def test_a_file_that_changed_is_named_and_left_until_somebody_restores(
    killed: tuple[Path, list[str]], tmp_path: Path, name: str
) -> None:
    whole, groups = killed
    data = shutil.copytree(whole, tmp_path / "data")
    content = bytearray((data / name).read_bytes())
    content[8 if name == "store.duckdb" else -100] ^= 1
    (data / name).write_bytes(content)

    refused = refinery("serve", "--data", str(data), "--port", "0", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"{data}/store.duckdb cannot be opened, nothing was changed" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert (data / name).read_bytes() == content
    restored = refinery("store", "restore", "--data", str(data), cwd=tmp_path)
    assert restored.returncode == 0, restored.stderr
    [aside] = data.glob("damaged-*")
    assert (aside / name).read_bytes() == content

    found = found_by_a_service(data)

    assert found == groups[: 30 if name == "store.duckdb.wal" else 20]


def test_a_folder_that_nobody_may_write_to_is_refused_with_the_reason(disk: Path, tmp_path: Path) -> None:
    with serving(disk / "data"):
        pass
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

    for folder in ("data", "new"):
        ended = refinery("serve", "--data", str(disk / folder), "--port", "0", cwd=tmp_path)
        assert ended.returncode == 1
        assert "Read-only file system" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_service_whose_disk_is_full_when_it_starts_says_so(disk: Path, tmp_path: Path) -> None:
    fill(disk)

    ended = refinery("serve", "--data", str(disk / "data"), "--port", "0", cwd=tmp_path)

    assert ended.returncode == 1
    assert "No space left" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", ["missing", "written"])
def test_nothing_is_left_open_after_a_thousand_questions(tmp_path: Path, name: str) -> None:
    with serving(tmp_path / "data") as service, httpx2.Client(base_url=service.url, timeout=60) as client:
        ask = {
            "missing": lambda n: client.get(f"/v1/groups/g_{n}"),
            "written": lambda n: client.post("/v1/prompts", json=[{"prompt": f"{n} + 1 =", "reference": str(n + 1)}]),
        }[name]
        for n in range(100):
            ask(n)
        before = open_files(service)
        for n in range(1000):
            ask(n)

        assert abs(open_files(service) - before) <= 2


def open_files(service: Service) -> int:
    return len(os.listdir(f"/proc/{service.process.pid}/fd"))
