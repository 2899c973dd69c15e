"""Dataset versions against a model of them, through whatever history: a version is what it was, until it is deleted."""

import asyncio
from dataclasses import dataclass

import polars as pl
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from curation.recipe import AllRightWithWrong, Recipe
from service.freezing import Freezer
from service.stages import Invalid
from service.store.datasets import DatasetVersion
from service.store.durable import sha256_of
from tests.service.histories import NOW, SETTINGS, History

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


class Histories(History):
    def __init__(self) -> None:
        super().__init__()
        self.root = self.folder / "data" / "datasets"
        self.rewards: list[list[float]] = []
        """Of each group of the run."""
        self.others = 0
        self.versions: dict[str, list[Modelled]] = {name: [] for name in NAMES}
        self.add_runs(RUN, OTHER_RUN)
        self.open()

    def open(self) -> None:
        self.freezer = Freezer(
            self.root,
            groups=self.store.groups,
            judged=self.store.judged,
            prompts=self.store.prompts,
            runs=self.store.runs,
            datasets=self.store.datasets,
            now=lambda: NOW,
        )

    def rows_of(self, recipe: Recipe) -> int:
        pairs = [int(sum(rewards)) * int(len(rewards) - sum(rewards)) for rewards in self.rewards]
        return sum(pairs) if recipe == EVERY_PAIR else sum(count > 0 for count in pairs)

    def live(self) -> dict[str, Modelled]:
        """By dataset id; the same under several names is the same."""
        return {one.dataset_id: one for of_name in self.versions.values() for one in of_name if not one.is_deleted}

    # ---- what happens

    @rule(rewards=st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=4))
    def another_group(self, rewards: list[float]) -> None:
        self.add_group(RUN, len(self.rewards), *rewards)
        self.rewards.append(rewards)

    @rule()
    def a_group_of_another_run(self) -> None:
        self.add_group(OTHER_RUN, self.others, 1.0, 0.0)
        self.others += 1

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
        self.reopen(sealed=sealed)
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
TestHistories.settings = SETTINGS
