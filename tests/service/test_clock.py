"""A service whose clock on the wall jumps by hours while it works: leases and deadlines have a clock of their own."""

import asyncio
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.engines.base import Sampled
from service.engines.scripted import ScriptedEngine
from service.parts import utc_now
from service.run_config import Sampling
from tests.processes import ENVIRONMENT, serving
from tests.service.conftest import OpenService
from tests.service.steps import decisions, finish, prepare
from trainers.client import Refinery, RefineryError

HOUR = 3600
ENDLESS = "select count(*) from range(1000000000000)"
SHIFTED = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int64_t ahead(void) {
    static volatile int64_t *seconds;
    if (!seconds) {
        int file = open(getenv("CLOCK_AHEAD"), O_RDONLY);
        seconds = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
        close(file);
    }
    return *seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *told) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (told) *told = exact.tv_sec;
    return exact.tv_sec;
}
"""
"""The clock on the wall of a process and its children, by as many seconds ahead as a file says; of no other clock."""
GROUPS = [
    {"prompt": f"{n} + {n} =", "reference": str(2 * n), "verifier": "numeric"}
    | {"rollouts": [{"text": str(2 * n)}, {"text": "none of it is 7.5"}]}
    for n in range(20)
]
RUN = {"name": "r", "policy": "policy", "prompt_set": "s", "sampling": {"n": 4, "max_tokens": 32}}


class Clock:
    """That of the services that are started from now on."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("there is no C compiler: no clock can be shifted")
        source, library, self._file = (folder / name for name in ("clock.c", "clock.so", "ahead"))
        source.write_text(SHIFTED)
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        self._file.write_bytes(bytes(8))
        environment |= {"LD_PRELOAD": str(library), "CLOCK_AHEAD": str(self._file)}

    def jump(self, seconds: int) -> None:
        """To so many seconds ahead of ours."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("q", seconds))


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    for name in ("LD_PRELOAD", "CLOCK_AHEAD"):
        monkeypatch.setitem(ENVIRONMENT, name, "")
    return Clock(tmp_path, ENVIRONMENT)


def ahead(client: Refinery, lease: dict[str, Any]) -> float:
    """Hours that the service's clock is ahead, by what it tells of a lease."""
    told = datetime.fromisoformat(client.get(f"/v1/leases/{lease['lease']}")["expires_at"]).replace(tzinfo=UTC)
    return round((told - datetime.now(UTC)).total_seconds() / HOUR)


def timed(ask: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the answer or the code of the refusal."""
    began = time.monotonic()
    try:
        answer = ask()
    except RefineryError as error:
        answer = error.code
    return time.monotonic() - began, answer


def test_leases_and_deadlines_keep_to_their_time_while_the_clock_jumps(clock: Clock, tmp_path: Path) -> None:
    with serving(tmp_path / "data") as service, Refinery(service.url) as client:
        client.import_groups(GROUPS, "recorded")
        client.add_prompts([{k: row[k] for k in ("prompt", "reference", "verifier")} for row in GROUPS], "s")
        client.post("/v1/runs", RUN)
        mine = client.lease("recorded", 4, key="mine", seconds=5)
        told = set()
        for hours in (1, -1):
            clock.jump(hours * HOUR)
            told.add(ahead(client, mine))
            assert client.renew(mine)["state"] == "open"
            other = client.lease("recorded", 4, key=f"other-{hours}", seconds=600)
            assert not set(other["group_ids"]) & set(mine["group_ids"])
        renewed = time.monotonic()

        with ThreadPoolExecutor(4) as threads:
            job = client.post("/v1/runs/r/rollouts", {"passes": 10_000, "budget": {"seconds": 2}})
            asked = [
                threads.submit(timed, ask)
                for ask in (
                    lambda: client.get(f"/v1/jobs/{job['id']}", wait=1.5)["state"],
                    lambda: client.post("/v1/runs/recorded/leases", {"groups": 1000, "wait": 1.5})["state"],
                    lambda: client.post("/v1/sql", {"sql": ENDLESS, "timeout_ms": 1500}),
                )
            ]
            for hours in (1, -1, 0):
                time.sleep(0.3)
                clock.jump(hours * HOUR)
            answers = [one.result() for one in asked]
        done = client.wait(job)
        while client.get(f"/v1/leases/{mine['lease']}")["state"] == "open":
            time.sleep(0.05)
        lasted = time.monotonic() - renewed

        assert told == {1, -1}  # the service's clock has jumped
        assert [answer for _, answer in answers] == ["running", "too_few_groups", "sql_timeout"]
        assert all(1.4 < seconds < 4 for seconds, _ in answers), answers
        assert (done["result"]["stop"], 2 <= done["result"]["funnel"]["seconds"] < 5) == ("budget", True)
        assert 4.5 < lasted < 8
        assert client.lease("recorded", 4, key="again", wait=1)["group_ids"] == mine["group_ids"]


def test_a_service_that_is_started_an_hour_before_it_was_ended_goes_on(clock: Clock, tmp_path: Path) -> None:
    clock.jump(HOUR)
    with serving(tmp_path / "data") as service, Refinery(service.url) as client:
        client.import_groups(GROUPS[:10], "recorded")
        leases = [client.lease("recorded", 3, key=key, seconds=60) for key in ("one", "two")]
        client.acknowledge(leases[0])
        first = client.post("/v1/datasets", {"name": "d", "recipe": {"runs": ["recorded"]}})
    clock.jump(0)
    with serving(tmp_path / "data") as service, Refinery(service.url) as client:
        states = [client.get(f"/v1/leases/{lease['lease']}")["state"] for lease in leases]
        again = client.post("/v1/datasets", {"name": "d", "recipe": {"runs": ["recorded"]}})
        client.import_groups(GROUPS[10:], "recorded")
        second = client.post("/v1/datasets", {"name": "d", "recipe": {"runs": ["recorded"]}})
        third = client.lease("recorded", 14, key="three")
        acknowledged = client.acknowledge(leases[1])["state"]

    assert states == ["acknowledged", "open"]
    assert (again["version"], second["version"], second["manifest"]["rows"]) == (first["version"], 2, 20)
    assert acknowledged == "acknowledged"
    assert not set(third["group_ids"]) & {group for lease in leases for group in lease["group_ids"]}


class Stopping(ScriptedEngine):
    """Answers a few times, and never again."""

    answers = 30

    async def sample(self, prompt: str, sampling: Sampling, seeds: Sequence[int]) -> Sampled:
        if len(self.asked) >= self.answers:
            await asyncio.sleep(3600)
        return await super().sample(prompt, sampling, seeds)


def test_jobs_are_taken_up_in_the_order_in_which_they_were_asked_for(open_service: OpenService) -> None:
    wall = [utc_now()]
    seen = []
    for data, engine in (("whole", ScriptedEngine), ("broken", Stopping)):
        with open_service(data=data, engine=engine, now=lambda: wall[0]) as client:
            prepare(client)
            jobs = []
            for groups in (25, 10):
                jobs.append(client.post("/v1/runs/r/rollouts", json={"groups": groups}).json())
                wall[0] -= timedelta(hours=1)
            client.get(f"/v1/jobs/{jobs[0]['id']}?wait={1 if engine is Stopping else 30}")
        with open_service(data=data, now=lambda: wall[0]) as client:
            assert [finish(client, job)["state"] for job in jobs] == ["done", "done"]
            seen.append(decisions(client))
            newest_first = [job["id"] for job in client.get("/v1/jobs").json()]

    assert seen[0] == seen[1]
    assert newest_first == [jobs[1]["id"], jobs[0]["id"]]
