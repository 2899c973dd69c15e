"""`refinery doctor` finds what would keep a service from working, and says what to do."""

import json
import shutil
import socket
from collections import namedtuple
from pathlib import Path
from typing import Any

import duckdb
import pytest

from service import doctor
from service.access import Keyring, Role
from service.doctor import Finding, Found, examine
from service.settings import Settings
from service.verifiers.code.sandbox import NoSandbox
from tests.processes import serving
from tests.service.conftest import OpenService
from tests.service.steps import prepare, sample
from tests.test_command import refinery

Usage = namedtuple("Usage", "total used free")


def found(data: Path, *, thoroughly: bool = False, **settings: Any) -> dict[str, Found]:
    told = examine(Settings.model_validate({"data": data, **settings}), thoroughly=thoroughly)
    return {one.what: one for one in told}


def failed(findings: dict[str, Found]) -> dict[str, str]:
    assert all(one.remedy for one in findings.values() if one.finding is Finding.FAILED)
    return {what: one.told for what, one in findings.items() if one.finding is Finding.FAILED}


@pytest.fixture
def filled(tmp_path: Path, open_service: OpenService) -> Path:
    """A data folder with a store in it."""
    with open_service() as client:
        prepare(client)
        sample(client, passes=1)
        client.post("/v1/store/compact")
    return tmp_path / "data"


def test_where_all_is_well_nothing_need_be_done(filled: Path) -> None:
    findings = found(filled, thoroughly=True)

    assert {one.finding for one in findings.values()} == {Finding.OK}
    assert not any(one.remedy for one in findings.values())
    assert "30 groups, 120 rollouts" in findings["store"].told


def test_it_leaves_no_folder_behind(tmp_path: Path) -> None:
    assert failed(found(tmp_path / "new")) == {}
    assert not (tmp_path / "new").exists()


def test_an_open_door_is_found(tmp_path: Path) -> None:
    assert "loopback" in failed(found(tmp_path, host="0.0.0.0"))["keys"]
    assert found(tmp_path, host="0.0.0.0", unsafe_no_keys=True)["keys"].finding is Finding.WARNING
    Keyring(tmp_path).add("alice", Role.ADMIN)
    assert failed(found(tmp_path, host="0.0.0.0")) == {}


def test_a_full_disk_is_found_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, finding in ((500 << 20, Finding.FAILED), (5 << 30, Finding.WARNING), (50 << 30, Finding.OK)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(free, 0, free))
        assert found(tmp_path)["disk"].finding is finding


def test_a_machine_without_a_sandbox_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: Any, **__: Any) -> None:
        raise NoSandbox("there is no bwrap; install bubblewrap 0.8 or newer")

    monkeypatch.setattr(doctor, "find", nowhere)

    assert "no bwrap" in failed(found(tmp_path))["sandbox"]


def test_engines_that_are_not_there_are_found(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]

    assert "does not answer" in failed(found(tmp_path, engine_url=[{"url": f"http://127.0.0.1:{port}"}]))["engine"]
    assert "no /nowhere" in failed(found(tmp_path, engine="vllm", engine_python="/nowhere"))["engine"]
    no_program = tmp_path / "python"
    no_program.touch()
    assert "does not run" in failed(found(tmp_path, engine="vllm", engine_python=no_program))["engine"]


def test_a_policy_that_is_not_there_is_found(tmp_path: Path) -> None:
    assert "/nowhere" in failed(found(tmp_path, policy="/nowhere"))["policy"]


def test_a_damaged_store_is_found(filled: Path) -> None:
    [segment] = (filled / "segments").glob("*/groups.parquet")
    content = bytearray(segment.read_bytes())
    content[8] ^= 1  # of the rows; what is wrong with the end of a file shows when it is opened
    segment.write_bytes(content)

    assert "is not what was sealed" in failed(found(filled, thoroughly=True))["every file and row"]


def test_a_store_of_a_newer_program_is_named_as_such(filled: Path) -> None:
    with duckdb.connect(str(filled / "store.duckdb")) as connection:
        connection.execute("update meta set value = '99' where name = 'schema'")

    assert "schema 99" in failed(found(filled))["store"]


def test_a_clock_that_stands_before_what_is_stored_is_found(filled: Path) -> None:
    with duckdb.connect(str(filled / "store.duckdb")) as connection:
        names = connection.execute("select schema_name from duckdb_schemas() where schema_name like 'hot%'").fetchall()
        event = "('j', 1, 'done', '{}', now() + interval 1 hour)"
        connection.execute(f"insert into {max(names)[0]}.job_events values {event}")

    assert found(filled)["clock"].finding is Finding.WARNING


def test_the_folder_of_a_running_service_is_left_alone(tmp_path: Path) -> None:
    with serving(tmp_path / "data"):
        told = refinery("doctor", "--data", str(tmp_path / "data"), "--json", cwd=tmp_path)
    broken = refinery("doctor", "--data", "/proc/nothing/[/dim]", cwd=tmp_path)  # which is no markup
    (tmp_path / "refinery.toml").write_text("port = 'x'")
    unset = refinery("doctor", cwd=tmp_path)

    assert told.returncode == 0, told.stdout
    assert "has" in next(one["told"] for one in json.loads(told.stdout) if one["what"] == "store")
    assert broken.returncode == 1
    assert "failed" in broken.stdout
    assert unset.returncode == 1
    assert unset.stderr.splitlines() == [
        "refinery doctor: port: Input should be a valid integer, unable to parse string as an integer"
    ]
