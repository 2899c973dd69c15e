"""Frozen dataset versions: what they were made from and where their bytes are."""

import asyncio
import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from curation.curate import Split
from curation.keys import canonical_json
from curation.recipe import Recipe, Shape
from service.stages import NotFound
from service.store.duck import Duck
from service.store.transaction import Row, Transaction

MOST_LIVE = 256
"""Versions that are known without asking the store."""
SHARD = re.compile(rf"({'|'.join(Split)})(-\d{{5}}-of-\d{{5}})?\.parquet")


def split_of_shard(name: str) -> str | None:
    """The split that a file of this name holds rows of; None if it holds none."""
    found = SHARD.fullmatch(name)
    return found[1] if found else None


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    name: str
    version: int
    """Counted from 1 within the name."""
    dataset_id: str
    recipe: Recipe
    watermark: int
    manifest: dict[str, Any]
    frozen_at: datetime
    deleted_at: datetime | None = None
    """Its files are gone; what it was made of is still told."""
    deletion_reason: str | None = None

    @property
    def splits(self) -> list[Split]:
        """Those that hold rows."""
        return [split for split in Split if self.shards(split)]

    def shards(self, split: str) -> list[str]:
        """Names of its Parquet files, in the order of its rows; none for what is no split of it."""
        return sorted(name for name in self.manifest["files"] if split_of_shard(name) == split)


class Datasets:
    def __init__(self, duck: Duck) -> None:
        self._duck = duck
        self._live: dict[tuple[str, int], DatasetVersion] = {}
        """Asked for lately. All that ever changes of a version is that it is deleted, which is done here."""
        self._deletions = 0

    async def register(
        self, name: str, dataset_id: str, recipe: Recipe, watermark: int, manifest: dict[str, Any], now: datetime
    ) -> DatasetVersion:
        """The next version of the name; the existing one if it holds this very dataset and was not deleted."""

        def operation(tx: Transaction) -> int:
            versions = tx.rows(
                "select version, dataset_id, deleted_at from dataset_versions where name = ? order by version", [name]
            )
            for version, known, deleted_at in versions:
                if known == dataset_id and deleted_at is None:
                    return int(version)
            tx.insert(
                "datasets",
                [
                    {
                        "name": name,
                        "version": len(versions) + 1,
                        "dataset_id": dataset_id,
                        "recipe": canonical_json(recipe.model_dump(mode="json")),
                        "watermark": watermark,
                        "manifest": canonical_json(manifest),
                        "frozen_at": now,
                    }
                ],
            )
            return len(versions) + 1

        return await self.get(name, await self._duck.write(operation))

    async def by_id(self, name: str, dataset_id: str) -> DatasetVersion | None:
        rows = await self._duck.read(
            "select * from dataset_versions where name = ? and dataset_id = ? and deleted_at is null",
            [name, dataset_id],
        )
        return _version_of(rows[0]) if rows else None

    async def get(self, name: str, version: int) -> DatasetVersion:
        if known := self._live.get((name, version)):
            return known
        deletions = self._deletions
        rows = await self._duck.read("select * from dataset_versions where name = ? and version = ?", [name, version])
        if not rows:
            raise NotFound("dataset_not_found", f"there is no dataset {name}@{version}")
        found = _version_of(rows[0])
        if found.deleted_at is None and deletions == self._deletions:
            if len(self._live) >= MOST_LIVE:
                self._live.clear()
            self._live[name, version] = found
        return found

    async def versions(self, name: str | None = None) -> list[DatasetVersion]:
        """Oldest version first, of one name or of all."""
        rows = await self._duck.read(
            "select * from dataset_versions where $name is null or name = $name order by name, version", {"name": name}
        )
        if name is not None and not rows:
            raise NotFound("dataset_not_found", f"there is no dataset {name!r}; POST /v1/datasets freezes one")
        return [_version_of(row) for row in rows]

    async def delete(self, name: str, version: int, reason: str, now: datetime) -> bool:
        """Leaves a tombstone, once. Whether no other version needs its files."""

        def operation(tx: Transaction) -> bool:
            [[dataset_id, deleted_at]] = tx.rows(
                "select dataset_id, deleted_at from dataset_versions where name = ? and version = ?", [name, version]
            )
            if deleted_at is None:
                stone = {"name": name, "version": version, "reason": reason, "deleted_at": now}
                tx.insert("dataset_deletions", [stone])
            left = "select count(*) from dataset_versions where dataset_id = ? and deleted_at is null"
            return bool(tx.rows(left, [dataset_id])[0][0] == 0)

        def forget(_: Any) -> None:
            self._deletions += 1
            self._live.pop((name, version), None)

        deletion = asyncio.ensure_future(self._duck.write(operation))
        deletion.add_done_callback(forget)  # also when nobody waits any more
        return await asyncio.shield(deletion)


def _version_of(row: Row) -> DatasetVersion:
    recipe = _recipe_of(json.loads(row["recipe"]))
    return DatasetVersion(**row | {"recipe": recipe, "manifest": json.loads(row["manifest"])})


def _recipe_of(stored: dict[str, Any]) -> Recipe:
    """Rules 1 took options that could do nothing; they are left away."""
    shape = Shape(stored.get("shape", Shape.PAIRS))
    idle = {
        "pairs": shape is not Shape.PAIRS,
        "advantages_over": shape is not Shape.GROUPS,
        "down_sampling": shape is Shape.PROMPTS,
    }
    fields = {field: value for field, value in stored.items() if not idle.get(field)}
    if "pairs" in fields and not fields["pairs"]["kind"].startswith("best_with"):
        fields["pairs"] = {option: value for option, value in fields["pairs"].items() if option != "margin"}
    return Recipe.model_validate(fields)
