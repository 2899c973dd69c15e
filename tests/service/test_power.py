"""Wherever the power is cut, what was said to be stored is there, once, and the store is whole."""

import asyncio
import random
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.access import Keyring
from service.parts import Store
from service.stages import StoreFailed
from service.store.durable import sha256_of
from service.store.keeping import damages, rescue
from tests.service.power import Cut, Disk, calls_in, strace

ROOT = Path(__file__).parents[2]
WORK = """
import asyncio, os, sys
from datetime import datetime
from pathlib import Path
from curation.records import Action, Decision, Visit
from curation.recipe import Recipe
from service.access import Keyring, Role
from service.freezing import Freezer
from service.parts import Store
from service.run_config import Retain, RunConfig
from service.store.groups import PlannedVisit, StoredGroup
from service.store.policies import PolicyVersion
from tests.builders import a_group, a_prompt

NOW = datetime(2026, 1, 1)
data = Path(sys.argv[1])

def say(*words):
    os.write(1, ("said: " + " ".join(map(str, words)) + chr(10)).encode())

async def work():
    store = Store.open(data)
    freezer = Freezer(data / "datasets", groups=store.groups, judged=store.judged, prompts=store.prompts,
                      runs=store.runs, datasets=store.datasets, now=lambda: NOW)
    await store.policies.add(PolicyVersion("policy", 1, "", None, NOW))
    await store.runs.add(RunConfig(name="run", policy="policy", prompt_set="s"), NOW)
    for part in range(4):
        for number in range(3):
            prompt = a_prompt(f"{part} {number} + 1?")
            group = a_group(1.0, 0.0, prompt=prompt, run="run", policy_version=1)
            visit = Visit(prompt.id, 0, 0, Decision(Action.SAMPLED, 1.0, ""))
            await store.prompts.add([prompt], "s", NOW)
            await store.groups.plan([PlannedVisit("run", "j", 0, 0, visit, 2)], NOW)
            await store.groups.append(StoredGroup(group, "j", "policy", 1.0, 0.0, 0.0), Retain.ALL, NOW)
            say("group", group.id)
        if part == 1:
            Keyring(data).add("alice", Role.READ)
            say("key alice")
        store.sealer.seal()
        frozen = await freezer.freeze("d", Recipe(runs=("run",)))
        for name, file in frozen.manifest["files"].items():
            say("file", frozen.dataset_id, name, file["sha256"])
    store.sealer.compact()
    store.close()

asyncio.run(work())
"""


CUTS = 25


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Cut]]:
    """Every moment of a short life of a store, and where it was."""
    return moments_of(WORK, tmp_path_factory.mktemp("power"))


def moments_of(work: str, folder: Path) -> tuple[Path, list[Cut]]:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    data, log = folder / "data", folder / "log"
    data.mkdir()
    command = [*strace(log), sys.executable, "-c", work, str(data)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if ended.returncode:
        pytest.skip(f"strace may not trace here: {ended.stderr[-500:]}")
    return data, list(Disk(data).cuts(list(calls_in(log))))


def said(cut: Cut, what: str) -> list[list[str]]:
    return [line.split()[1:] for line in cut.said if line.split()[0] == what]


def test_the_store_says_something_and_syncs_it(cuts: tuple[Path, list[Cut]]) -> None:
    _, moments = cuts

    assert len(said(moments[-1], "group")) == 12
    assert len(moments) > 200


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_wherever_the_power_is_cut_nothing_that_was_said_is_lost(
    cuts: tuple[Path, list[Cut]], tmp_path: Path, seed: int | None
) -> None:
    """Without a seed only what is sure to be there is; with one also some of what need not be."""
    root, moments = cuts
    chosen = random.Random(seed or 0).sample(range(len(moments)), CUTS)
    for number in sorted(chosen):
        folder = tmp_path / "found"
        moments[number].restore(root, folder, None if seed is None else random.Random(f"{seed} {number}"))

        check(folder, moments[number], may_need_rescue=seed is not None)


def check(folder: Path, cut: Cut, *, may_need_rescue: bool) -> None:
    try:
        store = Store.open(folder)
    except StoreFailed:
        # Pages of the log that nobody waited for may have come in any order.
        assert may_need_rescue
        duck, _ = rescue(folder, datetime.now(UTC))
        duck.close()
        store = Store.open(folder)
    try:
        found = [row["group_id"] for row in asyncio.run(store.duck.read("select group_id from groups"))]
        assert {group for [group] in said(cut, "group")} <= set(found)
        assert len(found) == len(set(found))
        assert list(damages(store.duck, folder / "datasets")) == []
    finally:
        store.close()
    for dataset, name, sha256 in said(cut, "file"):
        assert sha256_of(folder / "datasets" / dataset / name) == sha256
    if said(cut, "key"):
        assert [key.name for key in Keyring(folder).keys or ()] == ["alice"]


def test_the_model_of_the_disk_is_that_of_the_disk(cuts: tuple[Path, list[Cut]], tmp_path: Path) -> None:
    """At the end, with everything that was written, it holds what the folder holds."""
    root, moments = cuts
    names = moments[-1].names[-1] if moments[-1].names else moments[-1].durable
    written = {str(Path(name).relative_to(root)): bytes(file.data) for name, file in names.items() if file}

    there = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert written.keys() == there.keys()
    assert [name for name in there if there[name] != written[name]] == []


def test_a_store_that_syncs_nothing_of_its_own_is_caught(tmp_path: Path) -> None:
    root, moments = moments_of("import os; os.fsync = lambda descriptor: None\n" + WORK, tmp_path)

    def find_fault() -> None:
        for number in sorted(random.Random(0).sample(range(len(moments)), CUTS)):
            moments[number].restore(root, tmp_path / "found", None)
            check(tmp_path / "found", moments[number], may_need_rescue=False)

    with pytest.raises((AssertionError, StoreFailed, OSError)):
        find_fault()
