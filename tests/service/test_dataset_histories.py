"""Dataset versions against a model of them, through whatever history: a version is what it was, until it is deleted."""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from curation.recipe import AllRightWithWrong, Recipe
from curation.records import Action, Decision, Visit
from service.freezing import Freezer
from service.parts import Store
from service.run_config import Retain, RunConfig
from service.stages import Invalid
from service.store.datasets import DatasetVersion
from service.store.durable import sha256_of
from service.store.groups import PlannedVisit, StoredGroup
from service.store.policies import PolicyVersion
from tests.builders import a_group, a_prompt

T = TypeVar("T")
NOW = datetime(2026, 1, 1)  # noqa: DTZ001 - as the store has them
RUN, OTHER_RUN = "run", "other"
NAMES = ("d", "e")
ONE_PAIR, EVERY_PAIR = Recipe(runs=(RUN,)), Recipe(runs=(RUN,), pairs=AllRightWithWrong())
RECIPES = (ONE_PAIR, ONE_PAIR.model_copy(update={"test_share": 0.5, "seed": 1}), EVERY_PAIR)


@dataclass
class Modelled:
    recipe: Recipe
    groups: int
    """Of the run, when it was frozen."""
    rows: int
    dataset_id: str
    files: dict[str, str]
    """Name and SHA-256."""
    is_deleted: bool = False


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.root = self.folder / "data" / "datasets"
        self.loop = asyncio.new_event_loop()
        self.rewards: list[list[float]] = []
        """Of each group of the run."""
        self.others = 0
        self.versions: dict[str, list[Modelled]] = {name: [] for name in NAMES}
        self.open()
        self.do(self.store.policies.add(PolicyVersion("policy", 1, "", None, NOW)))
        for name in (RUN, OTHER_RUN):
            self.do(self.store.runs.add(RunConfig(name=name, policy="policy", prompt_set="s"), NOW))

    def do(self, what: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(what)

    def open(self) -> None:
        self.store = Store.open(self.folder / "data")
        self.freezer = Freezer(
            self.root,
            groups=self.store.groups,
            judged=self.store.judged,
            prompts=self.store.prompts,
            runs=self.store.runs,
            datasets=self.store.datasets,
            now=lambda: NOW,
        )

    def teardown(self) -> None:
        self.store.close()
        self.loop.close()
        shutil.rmtree(self.folder)

    def rows_of(self, recipe: Recipe) -> int:
        pairs = [int(sum(rewards)) * int(len(rewards) - sum(rewards)) for rewards in self.rewards]
        return sum(pairs) if recipe == EVERY_PAIR else sum(count > 0 for count in pairs)

    def live(self) -> dict[str, Modelled]:
        """By dataset id; the same under several names is the same."""
        return {one.dataset_id: one for of_name in self.versions.values() for one in of_name if not one.is_deleted}

    # ---- what happens

    @rule(rewards=st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=4))
    def another_group(self, rewards: list[float]) -> None:
        self.add(RUN, len(self.rewards), *rewards)
        self.rewards.append(rewards)

    @rule()
    def a_group_of_another_run(self) -> None:
        self.add(OTHER_RUN, self.others, 1.0, 0.0)
        self.others += 1

    def add(self, run: str, number: int, *rewards: float) -> None:
        prompt = a_prompt(f"{number} + 1?")
        visit = Visit(prompt.id, 0, 0, Decision(Action.SAMPLED, 1.0, ""))
        group = a_group(*rewards, prompt=prompt, run=run, policy_version=1)
        self.do(self.store.prompts.add([prompt], "s", NOW))
        self.do(self.store.groups.plan([PlannedVisit(run, "j", 0, 0, visit, 2)], NOW))
        self.do(self.store.groups.append(StoredGroup(group, "j", "policy", 1.0, 0.0, 0.0), Retain.ALL, NOW))

    @rule(name=st.sampled_from(NAMES), recipe=st.sampled_from(RECIPES), at_once=st.integers(1, 2))
    def freeze(self, name: str, recipe: Recipe, at_once: int) -> None:
        if not self.rows_of(recipe):
            self.nothing_is_frozen(name, recipe)
            return

        frozen = self.do(self.frozen(name, recipe, at_once))

        assert all(one == frozen[0] for one in frozen)
        self.is_as_modelled(frozen[0], recipe)

    async def frozen(self, name: str, recipe: Recipe, at_once: int) -> list[DatasetVersion]:
        return list(await asyncio.gather(*(self.freezer.freeze(name, recipe) for _ in range(at_once))))

    def nothing_is_frozen(self, name: str, recipe: Recipe) -> None:
        with pytest.raises(Invalid) as refused:
            self.do(self.freezer.freeze(name, recipe))
        assert refused.value.code == "no_rows"

    def is_as_modelled(self, frozen: DatasetVersion, recipe: Recipe) -> None:
        """The version that there was, if nothing has changed; else the next one."""
        versions, groups = self.versions[frozen.name], len(self.rewards)
        same = [i for i, one in enumerate(versions) if (one.recipe, one.groups, one.is_deleted) == (recipe, groups, 0)]
        assert frozen.version == (same[0] if same else len(versions)) + 1
        if not same:
            files = {name: told["sha256"] for name, told in frozen.manifest["files"].items()}
            versions.append(Modelled(recipe, groups, self.rows_of(recipe), frozen.dataset_id, files))
        for one in (one for of_name in self.versions.values() for one in of_name):
            is_same = (one.recipe, one.groups) == (recipe, groups)
            assert is_same == (one.dataset_id == frozen.dataset_id)
            if is_same:
                assert one.files == versions[frozen.version - 1].files

    @precondition(lambda self: any(self.versions.values()))
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name in NAMES if self.versions[name]]))
        number = data.draw(st.integers(1, len(self.versions[name])))
        assert self.do(self.freezer.delete(name, number, "asked to")).deleted_at == NOW
        self.versions[name][number - 1].is_deleted = True

    @rule(sealed=st.booleans())
    def restart(self, sealed: bool) -> None:
        if sealed:
            self.store.sealer.seal()
        self.store.close()
        self.open()

    # ---- what is so at any time

    @invariant()
    def every_version_is_what_it_was(self) -> None:
        for name, versions in self.versions.items():
            told = self.do(self.store.datasets.versions(name)) if versions else []
            assert [one.version for one in told] == list(range(1, len(versions) + 1))
            for one, known in zip(told, versions, strict=True):
                assert (one.dataset_id, one.recipe) == (known.dataset_id, known.recipe)
                assert (one.manifest["groups"], one.manifest["rows"]) == (known.groups, known.rows)
                assert (one.deleted_at is not None) == known.is_deleted

    @invariant()
    def the_folder_holds_what_is_not_deleted_and_nothing_else(self) -> None:
        live = self.live()
        assert {path.name for path in self.root.glob("*")} == live.keys()
        for dataset_id, known in live.items():
            held = {path.name: sha256_of(path) for path in (self.root / dataset_id).iterdir()}
            assert held == known.files
            splits = [self.root / dataset_id / name for name in held if name in {"train.parquet", "test.parquet"}]
            assert sum(pl.read_parquet(path).height for path in splits) == known.rows


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    phases=[Phase.generate],  # a shorter history would take minutes
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
