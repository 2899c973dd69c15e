"""Code: programs run in a sandbox, tests in another; nothing gets out, nothing is forged, and honest work passes."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyseccomp
import pytest

from benchmarks.faults.processes import descendants
from curation.records import Outcome, Prompt, Verdict
from service import bubblewrap
from service.verifiers.catalogue import Catalogue
from service.verifiers.code import sandbox
from service.verifiers.code.sandbox import NoSandbox, find
from service.verifiers.panel import Panel
from service.verifiers.pool import VerifierPool
from service.verifiers.worker import Limits
from tests.processes import serving, until_unready
from tests.service.attacks import FORGED, HOSTILE, LOOKING
from tests.service.conftest import OpenService
from trainers.client import Refinery, RefineryError

try:
    find(None, unsafe=False)
except NoSandbox as absent:
    pytest.skip(str(absent), allow_module_level=True)

ADD = {
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(4, 5) == 9",
}
STUB = 'def add(a: int, b: int) -> int:\n    """The sum."""\n'


@pytest.fixture(scope="module")
def panel() -> Iterator[Panel]:
    pool = VerifierPool(workers=2, limits=Limits(wall_seconds=60.0, cpu_seconds=5.0, memory_bytes=2 << 30))
    yield Panel(Catalogue(), pool)
    pool.close()


def judge(
    panel: Panel, *texts: str, prompt: str = "Write add.", verifier: str = "code", **metadata: Any
) -> list[Verdict]:
    return asyncio.run(panel.verify(Prompt("p", prompt, "", verifier, metadata), texts))


def told(verdict: Verdict) -> tuple[Outcome, float | None]:
    return verdict.outcome, verdict.reward


RIGHT, WRONG = (Outcome.SCORED, 1.0), (Outcome.SCORED, 0.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def add(a, b):\n    return a + b", RIGHT),
        ("Sure!\n```python\ndef add(a, b):\n    return a + b\n```\nDone.", RIGHT),
        (
            "```\ndef add(a, b):\n    return b - a\n```\nno, better:\n```python\ndef add(a, b):\n    return a + b\n```",
            RIGHT,
        ),
        ("def add(a, b):\n    return a - b", WRONG),
        ("def add(a, b):\n    return (a + b", WRONG),
        ("def subtract(a, b):\n    return a - b", WRONG),
        ("def add(a, b):\n    raise ValueError", WRONG),
        ("def add(a, b):\n    print('3')\n    return a + b", RIGHT),
        ("import sys\nsys.exit(0)", WRONG),
        ("", (Outcome.NO_ANSWER, 0.0)),
    ],
)
def test_a_program_is_judged_by_what_it_returns(panel: Panel, text: str, expected: Any) -> None:
    [verdict] = judge(panel, text, **ADD)

    assert told(verdict) == expected, verdict.detail


def test_a_completion_of_a_stub_is_only_its_body(panel: Panel) -> None:
    bodies = judge(
        panel, "    return a + b\n", "    return a\n", f"```python\n{STUB}    return a + b\n```", prompt=STUB, **ADD
    )

    assert [told(v) for v in bodies] == [RIGHT, WRONG, RIGHT]


def test_partial_credit_is_the_share_of_the_tests(panel: Panel) -> None:
    [whole] = judge(panel, "def add(a, b): return 3", **ADD)
    [share] = judge(panel, "def add(a, b): return 3", verifier="code?partial=true", **ADD)

    assert (whole.reward, share.reward) == (0.0, 0.5)
    assert share.verifier == "code@1?partial=true"


def test_assertions_may_call_functions_by_name(panel: Panel) -> None:
    tests = {"test_list": ["assert double(2) == 4", "assert set(both(1)) == {1, 2}"], "test_setup_code": "import math"}

    verdicts = judge(
        panel, "def double(x): return 2*x\ndef both(x): return (x, 2*x)", "def double(x): return 2*x", **tests
    )

    assert [told(v) for v in verdicts] == [RIGHT, WRONG]


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("a, b = map(int, input().split())\nprint(a + b)", RIGHT),
        ("print(sum(map(int, input().split())), end='  \\n\\n')", RIGHT),
        ("print(input())", WRONG),
        ("raise SystemExit(3)", WRONG),
    ],
)
def test_a_program_may_read_and_write(panel: Panel, program: str, expected: Any) -> None:
    [verdict] = judge(panel, program, inputs=["1 2\n", "30 12\n"], outputs=["3\n", "42\n"])

    assert told(verdict) == expected, verdict.detail


@pytest.mark.parametrize(("program", "expected"), [("return a + b", RIGHT), ("return float(a + b)", WRONG)])
def test_a_function_may_be_called_with_examples(panel: Panel, program: str, expected: Any) -> None:
    examples = {"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [3, 7]}
    plain, method = f"def add(a, b):\n    {program}", f"class Solution:\n    def add(self, a, b):\n        {program}"

    assert [told(v) for v in judge(panel, plain, method, **examples)] == [expected, expected]


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"test": "def check(candidate): pass", "entry_point": "add"},
        {"test": "def check(candidate): assert nonsense", "entry_point": "add"},
        {"test": "def check(candidate", "entry_point": "add"},
        {"test_list": ["assert add(1, 2"]},
        {"inputs": ["1"], "outputs": []},
    ],
)
def test_broken_tests_are_the_prompts_fault(panel: Panel, metadata: dict[str, Any]) -> None:
    [verdict] = judge(panel, "def add(a, b): return a + b", **metadata)

    assert told(verdict) == (Outcome.BAD_REFERENCE, None)


def test_what_a_program_says_can_be_stored(panel: Panel) -> None:
    [verdict] = judge(panel, "def add(a, b): raise ValueError(chr(0xd800) + chr(0) + 'half')", **ADD)

    assert told(verdict) == WRONG
    assert "half" in verdict.detail.encode().decode()


def test_the_tests_of_one_prompt_cannot_touch_those_of_another() -> None:
    spoiling = "import builtins, json\nbuiltins.AssertionError = json.loads = None\nassert spoiled()"
    pool = VerifierPool(workers=1, limits=Limits(wall_seconds=60.0, cpu_seconds=5.0, memory_bytes=2 << 30))
    mine = Panel(Catalogue(), pool)
    spoiler = Prompt("p1", "?", "", "code", {"test_list": [spoiling]})
    victim = Prompt("p2", "?", "", "code", ADD)

    async def one_after_the_other() -> list[Verdict]:
        try:
            await mine.verify(spoiler, ["def spoiled(): return True"])
            return await mine.verify(victim, ["def add(a, b): return a - b", "def add(a, b): return a + b"])
        finally:
            await mine.close()

    assert [told(v) for v in asyncio.run(one_after_the_other())] == [WRONG, RIGHT]


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_solution_gets_nothing(panel: Panel, name: str) -> None:
    [verdict] = judge(panel, FORGED[name], **ADD)

    assert verdict.reward in (0.0, None), verdict.detail


ENDS_AS = {
    "a loop": Outcome.TIMEOUT,
    "a sleep": Outcome.TIMEOUT,
    "a flood": Outcome.ERROR,
    "a balloon": Outcome.ERROR,
    "a crash": Outcome.ERROR,
}
"""Where only one end is possible; the others give up or are stopped, depending on who is faster."""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_stopped_and_the_next_one_is_judged(panel: Panel, name: str) -> None:
    started = time.monotonic()

    hostile, honest = judge(panel, HOSTILE[name], "def add(a, b): return a + b", verifier="code?seconds=12", **ADD)

    assert hostile.reward in (None, 0.0)
    assert hostile.outcome is ENDS_AS.get(name, hostile.outcome), hostile.detail
    assert told(honest) == RIGHT
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("name", LOOKING)
def test_there_is_nothing_to_see_and_no_way_out(panel: Panel, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        attack = LOOKING[name].replace("PORT", str(server.getsockname()[1]))
        program = f"import os\ndef add(a, b):\n    {attack}\n    return a + b"
        [verdict] = judge(panel, program, **ADD)

    assert told(verdict) == WRONG, verdict.detail


def test_the_environment_of_the_service_is_not_inside(panel: Panel) -> None:
    program = "import os\ndef add(a, b):\n    return repr(sorted(os.environ))"
    test = "def check(candidate):\n    assert candidate() == repr(['HOME', 'LC_CTYPE', 'PATH', 'PWD']), candidate()"

    [verdict] = judge(panel, program.replace("a, b", ""), entry_point="add", test=test)

    assert verdict.detail.startswith(("1 of 1", "0 of 1 tests; AssertionError: ['HOME'")), verdict.detail
    assert "REFINERY" not in verdict.detail


PRYING = """
import glob
def seen():
    found = ""
    for path in glob.glob("/proc/*/environ") + glob.glob("/proc/*/cmdline"):
        try:
            found += open(path).read()
        except OSError:
            pass
    return found
"""


def test_no_program_finds_what_the_service_was_started_with(tmp_path: Path) -> None:
    secret = "hf_what_nobody_may_see"
    tests = {"test_list": [f"assert {secret!r} in seen()"]}
    texts = [PRYING, f"def seen(): return {secret!r}"]
    row = {"prompt": "Look.", "reference": "", "verifier": "code", "metadata": tests}
    with (
        serving(tmp_path / "data", environment={"HF_TOKEN": secret}) as service,
        Refinery(service.url) as client,
    ):
        client.import_groups([row | {"rollouts": [{"text": text} for text in texts]}], "r")
        [group] = client.groups("r")
        prying, knowing = client.get(f"/v1/groups/{group['id']}")["members"]

    assert (knowing["outcome"], knowing["reward"]) == ("scored", 1.0)
    assert (prying["outcome"], prying["reward"]) == ("scored", 0.0), prying["detail"]
    assert prying["detail"].startswith("0 of 1 tests")
    assert secret not in prying["detail"]


def test_nothing_is_left_behind(panel: Panel) -> None:
    judge(panel, *HOSTILE.values(), verifier="code?seconds=8", **ADD)

    left = [p for p in Path("/proc").iterdir() if p.name.isdigit() and _is_boxed(p)]

    assert len(left) <= 4  # the tests' own boxes, one for each worker: bubblewrap and its Python


def _is_boxed(process: Path) -> bool:
    try:
        return "/program.py" in (process / "cmdline").read_text() and "tests" not in (process / "cmdline").read_text()
    except OSError:
        return False


@pytest.fixture
def alone() -> Iterator[Panel]:
    """With one worker, which has judged nothing yet."""
    pool = VerifierPool(workers=1, limits=Limits(wall_seconds=60.0, cpu_seconds=5.0, memory_bytes=2 << 30))
    yield Panel(Catalogue(), pool)
    pool.close()


@pytest.mark.parametrize(("how", "ends_as"), [(signal.SIGKILL, Outcome.ERROR), (signal.SIGSTOP, Outcome.TIMEOUT)])
@pytest.mark.parametrize("whose", ["program", "tests"])
def test_a_sandbox_that_somebody_kills_or_stops_makes_no_zero(
    alone: Panel, whose: str, how: signal.Signals, ends_as: Outcome
) -> None:
    slow = "import time\ndef add(a, b):\n    time.sleep(1.5)\n    return a + b"
    programs = (slow, "def add(a, b): return a + b", "def add(a, b): return a - b")
    with ThreadPoolExecutor(1) as thread:
        judging = thread.submit(judge, alone, *programs, verifier="code?seconds=6", **ADD)
        while not (_boxes_of("program") and _boxes_of("tests")):
            time.sleep(0.05)
        time.sleep(1.0)  # it is called by now
        os.kill(_boxes_of(whose)[-1], how)
        verdicts = judging.result()

    assert [told(verdict) for verdict in verdicts] == [(ends_as, None), RIGHT, WRONG]


def test_tests_whose_sandbox_was_killed_while_they_waited_are_begun_anew(alone: Panel) -> None:
    judge(alone, "def add(a, b): return a + b", **ADD)
    os.kill(_boxes_of("tests")[-1], signal.SIGKILL)
    time.sleep(0.5)

    verdicts = judge(alone, "def add(a, b): return b + a", "def add(a, b): return a", **ADD)

    assert [told(verdict) for verdict in verdicts] == [RIGHT, WRONG]


def _boxes_of(whose: str) -> list[int]:
    """The processes of a sandbox of ours, outermost first: that of the program or that of the tests."""
    below = descendants(os.getpid())
    return [one.pid for one in below if one.command.split(bytes(1))[-3:-1] == [b"/program.py", whose.encode()]]


OUTSIDE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from attacks import LOOKING
from sandbox import find
sandbox = find(None, unsafe=False)
for name, attack in LOOKING.items():
    box = sandbox.start(attack.replace("PORT", "22") + "\\nprint('out')")
    if box.rest(b"", time.monotonic() + 20) or box.end(1.0) == 0:
        print("out:", name)
print("done", len(LOOKING))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_normal_user_is_held_as_well() -> None:
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for source in (Path(sandbox.__file__), Path(pyseccomp.__file__), here / "attacks.py"):
            shutil.copy(source, folder)
        (Path(folder) / "service").mkdir()
        shutil.copy(bubblewrap.__file__, Path(folder) / "service")
        done = subprocess.run(
            ["/usr/bin/python3", "-I", "-c", OUTSIDE, folder],
            user=sandbox.NOBODY,
            group=sandbox.NOBODY,
            extra_groups=[],
            cwd="/",
            env={},
            capture_output=True,
            text=True,
        )

    assert done.stdout == f"done {len(LOOKING)}\n", done.stdout + done.stderr


def test_without_a_sandbox_code_is_refused_where_prompts_are_added(open_service: OpenService) -> None:
    prompt = {"prompt": "Write add.", "verifier": "code", "metadata": ADD}
    with open_service(code_python="/nowhere/bin/python") as client:
        answer = client.post("/v1/prompts", json=[prompt])

    assert answer.json()["code"] == "rows_rejected"
    assert "--unsafe-local-code" in answer.json()["detail"]


ROW = {"prompt": "Write add.", "reference": "", "verifier": "code", "metadata": ADD}
GROUP = ROW | {"rollouts": [{"text": f"def add(a, b): return a {sign} b"} for sign in "+-"]}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a program that is right and one that is wrong."""
    data = tmp_path_factory.mktemp("judged") / "data"
    with serving(data) as service, Refinery(service.url) as client:
        client.import_groups([GROUP], "r")
        assert [group["rewards"] for group in client.groups("r")] == [[1.0, 0.0]]
    return data


TAKEN_AWAY = {
    "namespaces": ("--user", "--map-root-user", "echo 0 > /proc/sys/user/max_user_namespaces"),
    "bubblewrap": ("--mount", 'mount --bind /dev/null "$(command -v bwrap)"'),
}


@pytest.mark.parametrize("what", TAKEN_AWAY)
def test_a_service_that_lost_its_sandbox_runs_nothing_rewards_nothing_and_says_so(judged: Path, what: str) -> None:
    *private, take_away = TAKEN_AWAY[what]
    under = ("unshare", *private, "sh", "-c", f'{take_away} && exec "$@"', "sh")
    if subprocess.run([*under, "true"], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be taken away here")

    with serving(judged, under=under, canary_seconds=0.3) as service, Refinery(service.url) as client:
        for path, body in (("/v1/prompts", [ROW]), ("/v1/rollouts/import", [GROUP | {"prompt": "Again."}])):
            with pytest.raises(RefineryError, match="no sandbox for code") as refused:
                client.post(path, body, run="r")
            assert (refused.value.status, refused.value.code) == (422, "rows_rejected")
        with pytest.raises(RefineryError, match="no sandbox for SQL") as unasked:
            client.post("/v1/sql", {"sql": "select 1"})
        assert (unasked.value.status, unasked.value.code) == (503, "sql_failed")

        client.wait(client.post("/v1/runs/r/rescore", {}))
        [group] = client.groups("r")
        verdicts = client.get(f"/v1/groups/{group['id']}")["rescores"][-1]["verdicts"]
        assert [(verdict["outcome"], verdict["reward"]) for verdict in verdicts] == [("error", None)] * 2
        assert "verifier code is blind" in until_unready(client)


def test_no_bubblewrap_is_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)

    with pytest.raises(NoSandbox, match="there is no bwrap; install bubblewrap"):
        find(Path("/usr/bin/python3.11"), unsafe=False)


def test_an_operator_may_accept_the_risk(panel: Panel) -> None:
    box = find(Path(sys.executable), unsafe=True).start("print(6 * 7)")

    assert (box.rest(b"", time.monotonic() + 20), box.end(1.0)) == (b"42\n", 0)
