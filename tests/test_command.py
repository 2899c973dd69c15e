"""The command and the real processes behind it: the embedded engine, kill -9, and every reader of a frozen dataset."""

import gzip
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import httpx2
import polars as pl
import pytest

from tests.extensions import extension
from tests.processes import ENVIRONMENT, Service, serving
from trainers.client import Refinery, RefineryError
from trainers.tasks import LEVELS, distinct

HTTPFS = extension("duckdb_extension_httpfs")
RUN = {
    "name": "r",
    "policy": "policy",
    "prompt_set": "s",
    "selector": {"kind": "greso"},
    "sampling": {"n": 4, "max_tokens": 80},
    "batch": {"groups": 16, "prompts": 24},
}
RECORDED = {
    "reference": "2",
    "verifier": "recorded",
    "rollouts": [{"text": "2", "reward": 1.0}, {"text": "3", "reward": 0.0}],
}


def refinery(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "refinery", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT, check=False)


def prompts_file(folder: Path, each: int = 8) -> Path:
    rows = [p.as_prompt() for level in LEVELS for p in distinct(level, each, seed=5, held_out=False)]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def decided(client: Refinery) -> dict[str, Any]:
    """Every prompt's decisions and rewards."""
    fields = ("visit", "epoch", "action", "keep_probability", "reason", "rewards")
    ids = [p["id"] for p in client.get("/v1/prompts", set="s", limit=1000)["items"]]
    return {i: [[v[f] for f in fields] for v in client.get(f"/v1/prompts/{i}")["visits"]] for i in ids}


def frozen(client: Refinery) -> dict[str, Any]:
    body = {"name": "d", "recipe": {"runs": ["r"], "pairs": {"kind": "all_right_with_wrong"}}}
    answer: dict[str, Any] = client.post("/v1/datasets", body)
    return answer


def test_from_prompts_to_a_dataset_that_every_reader_understands(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as service, Refinery(service.url) as client:
        at = ("--service", service.url, "--json")
        added = refinery("prompts", "add", str(prompts_file(tmp_path)), "--set", "s", *at, cwd=tmp_path)
        assert json.loads(added.stdout)["added"] > 50, added.stderr
        client.post("/v1/runs", RUN)
        sampled = refinery("rollouts", "r", "--groups", "20", *at, cwd=tmp_path)
        assert json.loads(sampled.stdout)["funnel"]["informative"] >= 20, sampled.stderr
        freezing = refinery("dataset", "freeze", "d", "--recipe", '{"runs": ["r"]}', *at, cwd=tmp_path)
        pairs = json.loads(freezing.stdout)["manifest"]["rows"]
        assert json.loads(refinery("dataset", "show", "d", *at, cwd=tmp_path).stdout)["manifest"]["rows"] == pairs
        url = json.loads(freezing.stdout)["urls"]["train.parquet"]
        funnel = refinery("dataset", "show", "d", *at[:-1], cwd=tmp_path).stdout
        assert "waste included" in funnel
        assert url in funnel

        for reader in (
            "import datasets; print(len(datasets.load_dataset('parquet', data_files=URL, split='train')))",
            "import polars; print(polars.scan_parquet(URL).collect().height)",
            f"import duckdb; duckdb.sql(\"load '{HTTPFS}'\"); print(duckdb.sql(f\"from '{{URL}}'\").shape[0])",
        ):
            code = f"URL = {url!r}; {reader}"
            read = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=False
            )
            assert read.stdout.strip() == str(pairs), read.stderr
        part = subprocess.run(["curl", "-s", "-H", "Range: bytes=0-3", url], capture_output=True, check=True)
        assert part.stdout == b"PAR1"


def test_a_killed_service_goes_on_with_the_same_decisions_and_the_same_bytes(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in prompts_file(tmp_path).read_text().splitlines()]
    results = []
    for data, kills in (("whole", 0), ("killed", 3)):
        service = Service(tmp_path / data)
        with Refinery(service.url) as client:
            client.add_prompts(rows, "s")
            client.post("/v1/runs", RUN)
            job = client.post("/v1/runs/r/rollouts", {"groups": 60})
        for kill in range(kills):
            with Refinery(service.url) as client:
                while client.get("/v1/runs/r")["informativeness"]["groups"] < 25 * (kill + 1):
                    time.sleep(0.02)
            service.end(signal.SIGKILL)
            service = Service(tmp_path / data)
        with Refinery(service.url) as client:
            assert client.wait(client.get(f"/v1/jobs/{job['id']}"))["state"] == "done"
            results.append((decided(client), frozen(client)["manifest"]["files"]))
        assert service.end(signal.SIGTERM) == 0

    assert results[0] == results[1]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_job_ends_the_service_cleanly(tmp_path: Path, how: signal.Signals) -> None:
    rows = [json.loads(line) for line in prompts_file(tmp_path).read_text().splitlines()]
    service = Service(tmp_path / "data")
    with Refinery(service.url) as client:
        client.add_prompts(rows, "s")
        client.post("/v1/runs", RUN)
        job = client.post("/v1/runs/r/rollouts", {"groups": 60})
    time.sleep(1.0)
    service.process.send_signal(how)

    assert service.end(how) == 0  # the second signal changes nothing
    with serving(tmp_path / "data") as service, Refinery(service.url) as client:
        assert client.wait(client.get(f"/v1/jobs/{job['id']}"))["state"] == "done"


def test_who_waits_when_the_service_ends_is_told_to_come_again_and_does(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in prompts_file(tmp_path).read_text().splitlines()]
    with (
        serving(tmp_path / "data") as first,
        Refinery(first.url) as client,
        Refinery(first.url, patience=120) as patient,
        ThreadPoolExecutor(2) as threads,
    ):
        client.add_prompts(rows, "s")
        client.post("/v1/runs", RUN)
        leases = [threads.submit(asking.lease, "r", 2, key="k", wait=100) for asking in (client, patient)]
        time.sleep(1.0)
        assert first.end(signal.SIGTERM) == 0
        with serving(tmp_path / "data", port=int(first.url.rpartition(":")[2])):
            with pytest.raises(RefineryError) as told:
                leases[0].result()
            sampled = patient.once("/v1/runs/r/rollouts", {"groups": 2}, key="k")
            leased = leases[1].result()

    assert (told.value.status, told.value.code) == (503, "closing")
    assert sampled["funnel"]["informative"] >= 2
    assert len(leased["group_ids"]) == 2
    assert "Traceback" not in (tmp_path / "service.log").read_text()


def test_a_port_that_is_taken_and_data_that_is_in_use_are_clear_errors(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as service:
        second = refinery("serve", "--data", str(tmp_path / "data"), "--port", "0", cwd=tmp_path)
        port = service.url.rpartition(":")[2]
        taken = refinery("serve", "--data", str(tmp_path / "other"), "--port", port, cwd=tmp_path)

    assert second.returncode != 0
    assert "another service has" in second.stderr
    assert taken.returncode != 0
    assert "in use" in taken.stderr


def test_a_folder_of_a_newer_program_is_refused_with_what_to_do_and_left_as_it_is(tmp_path: Path) -> None:
    with serving(tmp_path / "data"):
        pass
    store = tmp_path / "data" / "store.duckdb"
    with duckdb.connect(str(store)) as connection:
        connection.execute("update meta set value = '99' where name = 'schema'")
    before = store.read_bytes()

    ended = refinery("serve", "--data", str(tmp_path / "data"), "--port", "0", cwd=tmp_path)

    assert ended.returncode == 1
    assert "the store has schema 99" in ended.stderr
    assert "or a newer one" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert store.read_bytes() == before


def test_data_in_use_stays_in_use_whatever_the_service_reads_of_it(tmp_path: Path) -> None:
    """Neither its own lock nor DuckDB's is lost to a backup, a check or a download."""
    rows = [RECORDED | {"prompt": f"{n} + 1 ="} for n in range(40)]
    with serving(tmp_path / "data") as service, Refinery(service.url) as client:
        client.import_groups(rows[:20], "r")
        client.post("/v1/store/compact", {})
        urls = [service.url + url for url in frozen(client)["urls"].values()]
        assert client.get("/v1/store/check") == {"damages": []}
        for url in (f"{service.url}/v1/store/backup", *urls):
            assert httpx2.get(url).raise_for_status().content

        second = refinery("serve", "--data", str(tmp_path / "data"), "--port", "0", cwd=tmp_path)
        connect = f"import duckdb; duckdb.connect({str(tmp_path / 'data' / 'store.duckdb')!r})"
        another = subprocess.run([sys.executable, "-c", connect], capture_output=True, text=True, check=False)
        client.import_groups(rows[20:], "r")
        service.end(signal.SIGKILL)
    with serving(tmp_path / "data") as again, Refinery(again.url) as client:
        groups = list(client.groups("r"))

    assert second.returncode == 1
    assert f"open (process {service.process.pid})" in second.stderr
    assert another.returncode != 0
    assert "Conflicting lock is held" in another.stderr
    assert len(groups) == len({group["prompt_id"] for group in groups}) == len(rows)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("rollouts", "r", "--groups", "1", "--service", "http://127.0.0.1:9"), "no service answers"),
        (("import", "missing.jsonl", "--run", "r"), "missing.jsonl"),
        (("import", "bad.jsonl", "--run", "r"), "bad.jsonl:2: rollouts: Field required; nothing was sent"),
        (("import", "torn.jsonl", "--run", "r"), "not UTF-8 text with one JSON value a line"),
        (("import", "/dev/stdin", "--run", "r"), "a file is read twice"),
        (("import", "bad.jsonl", "--run", "r", "--format", "verl", "--label-range", "1", "1"), "no label is between"),
        (("dataset", "freeze", "d", "--recipe", "{"), "--recipe is not JSON"),
        (("serve", "--port", "99999"), "port"),
        (("serve", "--policy", "/nowhere"), "there is no folder '/nowhere'"),
    ],
)
def test_a_command_that_cannot_work_ends_with_one_clear_line(
    tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    good = {"prompt": "1 + 1?", "reference": "2", "rollouts": [{"text": "2"}]}
    (tmp_path / "bad.jsonl").write_text(json.dumps(good) + "\n" + '{"prompt": "x", "reference": "y"}\n')
    (tmp_path / "torn.jsonl").write_text('{"prompt": ')

    ended = refinery(*arguments, cwd=tmp_path)

    assert ended.returncode != 0
    assert complaint in ended.stderr
    assert "Traceback" not in ended.stderr


def test_bad_rows_of_a_file_are_kept_aside_with_their_lines_and_reasons(tmp_path: Path) -> None:
    row = {"prompt": "1 + 1?", "reference": "2", "rollouts": [{"text": "2"}, {"text": "3"}]}
    good = [json.dumps(row | {"prompt": f"1 + 1, asked {n} times?"}).encode() for n in range(250)]
    faulty = [json.dumps(row | {"prompt": f"{n}?", "reference": ""}).encode() for n in range(150)]
    bad = [
        b"{",
        b'{"prompt": "\xff\xfe"}',
        json.dumps(row | {"rollouts": [{"text": 3}]}).encode(),
        json.dumps(row | {"rollouts": [{"text": "2", "reward": float("nan")}]}).encode(),
        json.dumps(row | {"verifier": "nope"}).encode(),
        b'["' + b"x" * 100_000_000 + b'"]',
    ]
    lines = [*good[:100], *bad[:3], *good[100:], *bad[3:], good[0]]
    packed = gzip.compress(b"\n".join(lines), compresslevel=1)
    (tmp_path / "rows.jsonl.gz").write_bytes(packed)
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b"\n".join(good[:50]))[:-12])
    (tmp_path / "faulty.jsonl").write_bytes(b"\n".join(faulty))
    (tmp_path / "empty.jsonl").touch()

    with serving(tmp_path / "data") as service:
        command = ("--run", "r", "--service", service.url, "--json")
        refused = refinery("import", "rows.jsonl.gz", *command, cwd=tmp_path)
        kept = refinery("import", "rows.jsonl.gz", "--aside", "bad.jsonl", *command, cwd=tmp_path)
        others = ("torn.jsonl.gz", "faulty.jsonl", "empty.jsonl", "rows.jsonl.gz")
        again = refinery("import", *others, "--aside", "again.jsonl", *command, cwd=tmp_path)
        empty = refinery("import", "empty.jsonl", *command, cwd=tmp_path)
        over = refinery("import", "rows.jsonl.gz", "--aside", "bad.jsonl", *command, cwd=tmp_path)

    assert refused.returncode != 0
    assert "rows.jsonl.gz:101: not UTF-8 text with one JSON value a line" in refused.stderr
    assert "nothing was sent" in refused.stderr
    told = json.loads(kept.stdout)
    assert (told["groups"], told["existing"], told["rows_rejected"]) == (250, 1, 6)
    aside = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert sorted(one["line"] for one in aside) == [101, 102, 103, 254, 255, 256]
    assert all(one["reason"] for one in aside)
    told = json.loads(again.stdout)
    assert told["groups"] == 0
    assert told["existing"] > 250  # what can be read of the torn file was there, too
    aside = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert told["rows_rejected"] == len(aside) == 1 + 150 + 6
    assert [one["line"] for one in aside if one["file"] == "faulty.jsonl"] == list(range(1, 151))
    assert sum("breaks off here" in one["reason"] for one in aside) == 1
    assert json.loads(empty.stdout)["groups"] == 0
    assert "it is there already" in over.stderr


def test_the_groups_of_a_run_can_be_taken_along_and_imported_elsewhere(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "sql.md").read_text()
    question = text.partition('-o warm-up.ndjson.zst "')[2].partition('"\n```')[0]
    rows = [
        {"prompt": f"{n} + {n}?", "reference": str(2 * n), "metadata": {"n": n}, "policy_version": n}
        | {"rollouts": [{"text": f"A: {2 * n}", "token_ids": [1, 2], "logprobs": [-0.5, -1.0]}, {"text": "none"}]}
        for n in range(20)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(tmp_path / "data") as service, Refinery(service.url) as client:
        at = ("--service", service.url)
        assert refinery("import", "rows.jsonl", "--run", "here", *at, cwd=tmp_path).returncode == 0
        client.post("/v1/store/compact", {})
        for file in ("all.ndjson.zst", "all.ndjson.gz", "all.parquet"):
            asked = refinery("sql", question, "--param", "run=here", "-o", file, *at, cwd=tmp_path)
            assert asked.returncode == 0, asked.stderr
            run = file.replace(".", "-")
            taken = refinery("import", file, "--run", run, "--json", *at, cwd=tmp_path)
            told = json.loads(taken.stdout)
            assert (told["groups"], told["agreement"]) == (20, 1.0)
            here, there = ([_said(client, group) for group in client.groups(one)] for one in ("here", run))
            assert here == there


def _said(client: Refinery, group: dict[str, Any]) -> list[Any]:
    members = client.get(f"/v1/groups/{group['id']}")["members"]
    said = [(m["text"], m["token_ids"], m["logprobs"], m["reward"]) for m in members]
    return [group["prompt_id"], group["policy_version"], group["kind"], said]


def test_an_import_that_was_killed_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    rows = [
        {"input": f"{n} + {n}?", "output": f"A: {2 * n + off}", "gts": str(2 * n), "score": float(off == 0), "step": 1}
        for off in range(2)
        for n in range(400)
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "1.parquet")
    with serving(tmp_path / "data") as service, Refinery(service.url) as client:
        arguments = ("import", "1.parquet", "--format", "verl", "--verifier", "math", "--run", "r", "--json")
        command = [sys.executable, "-m", "refinery", *arguments, "--service", service.url]
        first = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT)
        while not (client.get("/v1/runs") and client.get("/v1/groups?run=r")["items"]):
            time.sleep(0.05)
        first.kill()
        first.wait()
        second = refinery(*arguments, "--service", service.url, cwd=tmp_path)
        groups = list(client.groups("r"))

    told = json.loads(second.stdout)
    assert 0 < told["existing"] < 400
    assert told["groups"] + told["existing"] == len(groups) == len({group["id"] for group in groups}) == 400
    assert told["agreement"] == 1.0


def test_the_client_repeats_the_services_own_words(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as service, Refinery(service.url) as client:
        with pytest.raises(RefineryError, match="there is no run 'nope'") as caught:
            client.get("/v1/runs/nope")

        assert (caught.value.status, caught.value.code) == (404, "run_not_found")
