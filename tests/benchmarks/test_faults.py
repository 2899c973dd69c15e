"""The bench of faults for real, in its short form; and that it would see what is lost, doubled or changed."""

import json
import os
import subprocess
import sys
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.audit import Kind, held
from benchmarks.faults.importer import stored_of
from benchmarks.faults.journal import Event, Journal, Json, Line, Sent, read, sent
from benchmarks.faults.processes import descendants
from benchmarks.faults.schedule import FULL, QUICK, How, Plan, Target, schedule, with_engine

COMMAND = [sys.executable, "-m", "refinery", "bench", "faults", "--quick", "--json"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
GROUP = {"prompt": "1 + 1 =", "rollouts": [{"text": "2", "reward": 1.0}, {"text": "3", "reward": 0.0}]}
OTHER = GROUP | {"prompt": "1 + 2 ="}
WHOLE = (["2", "3"], [1.0, 0.0])


def test_nothing_is_lost_doubled_or_broken_whichever_process_is_killed() -> None:
    ended = subprocess.run(COMMAND, capture_output=True, text=True, env=ENVIRONMENT, check=False)

    assert ended.returncode == 0, ended.stderr[-3000:]
    line = json.loads(ended.stdout.splitlines()[-1])
    figures = {name: figure["value"] for name, figure in line["figures"].items()}
    assert (line["bench"], figures["lost"], figures["duplicated"]) == ("faults", 0, 0), ended.stderr[-3000:]
    assert figures["broken_invariants"] == 0, ended.stderr[-3000:]
    assert figures["kills"] == 60
    assert figures["kills_of_service"] >= 2
    for kind in ("verifier", "sql", "requester", "trainer", "importer", "freezer", "reader"):
        assert figures[f"kills_of_{kind}"] >= 5, figures
    assert figures["acknowledged"] > 20
    assert 0 < figures["recovery_seconds"] < 60


def test_a_bench_that_is_interrupted_leaves_no_process(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    bench = subprocess.Popen([*COMMAND, "--folder", str(folder)], stderr=subprocess.PIPE, env=ENVIRONMENT)
    while not (folder / "reader.jsonl").exists():
        assert bench.poll() is None
    family = descendants(bench.pid)
    bench.terminate()
    bench.communicate()

    assert len(family) > 6
    assert [one.title for one in family if one.is_there] == []


@pytest.mark.parametrize("plan", [FULL, QUICK, with_engine(FULL)])
def test_the_schedule_is_a_function_of_the_seed(plan: Plan) -> None:
    first, again, other = (list(islice(schedule(seed, plan), 200)) for seed in (0, 0, 1))

    assert first == again != other
    size = sum(plan.counts.values())
    found = [(fault.target, fault.how) for fault in first[:size]]
    assert {kind: found.count(kind) for kind in plan.counts} == plan.counts


def test_an_engine_is_killed_only_where_there_is_one() -> None:
    assert (Target.ENGINE, How.KILL) not in FULL.counts
    assert with_engine(FULL).counts[Target.ENGINE, How.KILL] > 0


def test_an_engine_stands_still_for_a_minute_and_the_others_for_moments() -> None:
    faults = list(islice(schedule(0, with_engine(FULL)), 2000))
    engine = [fault.seconds for fault in faults if (fault.target, fault.how) == (Target.ENGINE, How.STOP)]
    others = [fault.seconds for fault in faults if fault.target is not Target.ENGINE]

    assert 50 < max(engine) < 60
    assert 0.5 < min(others) <= max(others) < 3


def test_a_line_that_was_torn_is_no_line_and_the_journal_goes_on_behind_the_last_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "client.jsonl"
    lines = [Line(op, "import", Event.SENT, {"text": "zwölf"}) for op in range(3)]
    with closing(Journal(path)) as journal:
        journal.write(lines[0])
    with path.open("a") as torn:
        torn.write('{"op": 1, "what": "imp')
    assert read(path) == lines[:1]

    for line in lines[1:]:
        with closing(Journal(path)) as journal:
            journal.write(line)

    assert read(path) == lines


def told(*events: tuple[Event, Json]) -> Sent:
    [one] = sent("importer", [Line(0, "import", event, said) for event, said in events])
    return one


SENT = (Event.SENT, {"body": [GROUP, OTHER]})
ACKNOWLEDGED = told(SENT, (Event.ACKNOWLEDGED, {"groups": 2}))
REFUSED = told(SENT, (Event.REFUSED, {"code": "rows_rejected"}))
GIVEN_UP, UNANSWERED = told(SENT, (Event.GIVEN_UP, {})), told(SENT)


@pytest.mark.parametrize(
    ("one", "first", "second", "broken"),
    [
        (ACKNOWLEDGED, [WHOLE], [WHOLE], []),
        (ACKNOWLEDGED, [WHOLE], [], [Kind.LOST]),
        (ACKNOWLEDGED, [WHOLE, WHOLE], [WHOLE], [Kind.DUPLICATED]),
        (ACKNOWLEDGED, [WHOLE], [(["2", "3"], [1.0])], [Kind.OTHER]),
        (REFUSED, [], [], []),
        (REFUSED, [], [WHOLE], [Kind.OTHER]),
        (GIVEN_UP, [], [], []),
        (UNANSWERED, [WHOLE], [WHOLE], []),
        (UNANSWERED, [WHOLE], [], [Kind.OTHER]),
        (GIVEN_UP, [WHOLE], [WHOLE, WHOLE], [Kind.DUPLICATED]),
    ],
)
def test_what_was_sent_is_there_as_often_as_it_may_be(one: Sent, first: Any, second: Any, broken: list[Kind]) -> None:
    wanted = {one: stored_of(one.request["body"])}

    found = list(held(wanted, {"1 + 1 =": first, "1 + 2 =": second}))

    assert [line.kind for line in found] == broken
