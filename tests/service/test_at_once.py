"""Readers, a writer and SQL at once, on a real service: everybody gets the right answers, each its own."""

import itertools
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from curation.keys import prompt_id
from tests.processes import serving
from trainers.client import Json, Refinery

READERS, QUESTIONS = 4, 2
EACH = 20
"""Groups of a commit."""
FRESH_SECONDS = 2.0
"""What was stored before is in every answer to SQL."""
SQL = """
select count(*), count(distinct group_id), sum(rollouts)::bigint, (select count(*) from rollouts),
       (select count(*) from rollouts r join prompts p using (prompt_id)
        where r.text = 'so it is ' || (p.reference::bigint + r.idx))
from groups"""


def group(n: int) -> Json:
    """Its texts, its labels and its prompt all say which it is."""
    rollouts = [{"text": f"so it is {n + idx}", "reward": 1.0 - idx} for idx in range(2)]
    return {"prompt": f"{n} + 0 =", "reference": str(n), "verifier": "recorded", "rollouts": rollouts}


def test_four_readers_a_writer_and_sql_see_what_was_acknowledged_and_nothing_else(tmp_path: Path) -> None:
    acknowledged = EACH
    over = threading.Event()

    def write(client: Refinery, _: int) -> None:
        nonlocal acknowledged
        client.import_groups([group(n) for n in range(acknowledged, acknowledged + EACH)], "r")
        acknowledged += EACH

    def read(client: Refinery, seed: int) -> None:
        wanted = group(random.Random(seed).randrange(acknowledged))
        name = prompt_id(wanted["prompt"], wanted["reference"], wanted["verifier"], {})
        prompt = client.get(f"/v1/prompts/{name}")
        [visit] = prompt["visits"]
        assert (prompt["id"], prompt["prompt"], visit["rewards"]) == (name, wanted["prompt"], [1.0, 0.0])
        found = client.get(f"/v1/groups/{visit['group_id']}")
        assert (found["id"], found["prompt_id"]) == (visit["group_id"], name)
        assert [{"text": one["text"], "reward": one["reward"]} for one in found["members"]] == wanted["rollouts"]

    def ask(client: Refinery) -> None:
        least = acknowledged
        time.sleep(FRESH_SECONDS)
        [[groups, different, rollouts, rows, right]] = client.post("/v1/sql", {"sql": SQL})["rows"]
        assert groups == different
        assert 2 * groups == rollouts == rows == right
        assert groups % EACH == 0
        assert groups >= least

    with serving(tmp_path / "data") as service, ThreadPoolExecutor(READERS + 1) as threads:

        def again_and_again(act: Callable[[Refinery, int], None], number: int) -> int:
            """How often, until it is over."""
            with Refinery(service.url) as client:
                for turn in itertools.count(1):
                    act(client, READERS * turn + number)
                    if over.is_set():
                        return turn
            raise AssertionError("nobody counts so far")

        with Refinery(service.url) as client:
            client.import_groups([group(n) for n in range(acknowledged)], "r")
            writing = threads.submit(again_and_again, write, 0)
            reading = [threads.submit(again_and_again, read, number) for number in range(READERS)]
            try:
                for _ in range(QUESTIONS):
                    ask(client)
            finally:
                over.set()
            assert writing.result() > 1
            assert min(one.result() for one in reading) > 1
