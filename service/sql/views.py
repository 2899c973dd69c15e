"""What a question sees: the published views over a moment of the store, as SQL for a fresh database.

A restricted caller sees only what has names of its own: the tables that the views stand on hold nothing else for it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from curation.recipe import Shape, TextFormat
from service.shapes import STANDARD
from service.store.datasets import DatasetVersion
from service.store.layout import VIEWS, Layout, quoted, rows_of
from service.store.segments import Segment, segment_folder

DEFINED = re.compile(r"create (?:or replace )?(?:view|macro) (\w+)")
BARE = re.compile(r"\b(?:from|join) (\w+)")
QUALIFIED = re.compile(r"\bstore\.(\w+)")
HERE = Path(__file__).parent


def _statements(script: str) -> list[str]:
    code = "\n".join(line for line in script.splitlines() if not line.startswith("--"))
    return [statement.strip() for statement in code.split(";") if statement.strip()]


INTERNAL, PUBLISHED = _statements(VIEWS), _statements((HERE / "views.sql").read_text())
NAMES = (
    *("prompts", "runs", "policy_versions", "visits", "groups", "rollouts", "verdicts"),
    *("leases", "datasets", "pairs", "informativeness", "prompt_history"),
)
SEGMENTS, DATASETS = Path("/store/segments"), Path("/store/datasets")
"""Where the container has them: no path of this machine is seen inside."""


class Names(NamedTuple):
    """Of what a restricted caller may see."""

    runs: Sequence[str]
    policies: Sequence[str]
    datasets: Sequence[str]


SCOPE: dict[str, str] = {
    "runs": "run in ({runs})",
    "visits": "run in ({runs})",
    "groups": "run in ({runs})",
    "rollouts": "run in ({runs})",
    "rescores": "run in ({runs})",
    "failures": "run in ({runs})",
    "jobs": "run in ({runs})",
    "job_events": "job in (select job from jobs)",
    "leases": "run in ({runs})",
    "lease_events": "lease in (select lease from leases)",
    "prompts": "prompt_id in (select prompt_id from visits)",
    "prompt_sets": "prompt_id in (select prompt_id from visits)",
    "policy_versions": "policy in ({policies})",
    "datasets": "name in ({datasets}) and list_has_all([{runs}], from_json(recipe->'$.runs', '[\"varchar\"]'))",
    "dataset_deletions": "name in (select name from datasets)",
}
"""What of a table a restricted caller sees. In this order: some look at those before them."""

PRIVATE = {"answers"}
"""Tables that nobody sees."""

FENCE = f"limit {2**62}"
"""No condition of a question gets past it: one that is tried on rows of others could tell of them by failing."""

NOW = """create view rollouts_now as from rollouts"""
NOW_RESCORED = """create view rollouts_now as
select r.* replace (
    if(n.verdicts is null, r.outcome, n.verdicts[r.idx + 1].outcome) as outcome,
    if(n.verdicts is null, r.reward, n.verdicts[r.idx + 1].reward) as reward,
    if(n.verdicts is null, r.verifier, n.verdicts[r.idx + 1].verifier) as verifier,
    if(n.verdicts is null, r.detail, n.verdicts[r.idx + 1].detail) as detail,
    if(n.verdicts is null, r.elapsed, n.verdicts[r.idx + 1].elapsed) as elapsed
)
from rollouts r left join (select group_id, arg_max(verdicts, seq) as verdicts from rescores group by 1) n
    using (group_id)"""
"""With the verdict that counts now. Where nothing was rescored there is no need to look for one in every row."""

SQL_TYPES = {pa.string(): "varchar", pa.int32(): "integer", pa.float64(): "double"}
OF_PAIRS = [("dataset", "varchar"), ("version", "integer"), ("split", "varchar")] + [
    (field.name, SQL_TYPES[field.type]) for field in STANDARD[Shape.PAIRS]
]
NO_PAIRS = f"select {', '.join(f'null::{kind} as {name}' for name, kind in OF_PAIRS)} where false"
"""What the columns are, also of files that lack some of them."""
AS_TEXT = {
    TextFormat.STANDARD: "",
    TextFormat.CONVERSATIONAL: "replace (prompt[-1].content as prompt, chosen[1].content as chosen, "
    "rejected[1].content as rejected)",
}
"""Of the columns of a file."""


def definitions(
    layout: Layout, datasets: Sequence[DatasetVersion], dataset_root: Path, seen: Names | None
) -> dict[str, dict[str, tuple[str, list[str]]]]:
    """SQL that makes each view, and the views of the schema `store` that it stands on, by schema and name.
    `seen` is None for all. Datasets whose files are gone are left away."""
    rescored = any("rescores" in segment.files for segment in layout.manifest.segments)
    internal = [*(_table(table, layout, seen) for table in SCOPE), *INTERNAL]
    internal.append(NOW_RESCORED if rescored else NOW)
    published = [*PUBLISHED, _pairs(datasets, dataset_root, seen)]
    return {
        "store": {_name(sql): (sql, BARE.findall(sql)) for sql in internal},
        "main": {_name(sql): (sql, QUALIFIED.findall(sql)) for sql in published},
    }


def _name(sql: str) -> str:
    found = DEFINED.search(sql)
    assert found, sql
    return found[1]


def _table(table: str, layout: Layout, seen: Names | None) -> str:
    rows = rows_of(table, (0,), layout.manifest, _path)
    if seen is not None:
        listed = {what: ", ".join(map(quoted, names)) or "null" for what, names in seen._asdict().items()}
        rows = f"from ({rows}) where {SCOPE[table].format(**listed)} {FENCE}"
    return f"create view {table} as from ({rows})"


def _path(segment: Segment, table: str) -> Path:
    return SEGMENTS / segment_folder(segment) / f"{table}.parquet"


def _pairs(datasets: Sequence[DatasetVersion], root: Path, seen: Names | None) -> str:
    """Every pair of every dataset of pairs that is still there, as texts."""
    places: dict[TextFormat, dict[str, list[tuple[str, int, str]]]] = {format: {} for format in TextFormat}
    for dataset in datasets:
        is_seen = seen is None or (dataset.name in seen.datasets and set(dataset.recipe.runs) <= set(seen.runs))
        if dataset.recipe.shape is not Shape.PAIRS or dataset.deleted_at is not None or not is_seen:
            continue
        for split in dataset.splits:
            for name in dataset.shards(split):
                if (root / dataset.dataset_id / name).exists():
                    path = str(DATASETS / dataset.dataset_id / name)
                    versions = places[dataset.recipe.format].setdefault(path, [])
                    versions.append((dataset.name, dataset.version, split))
    parts = [_pairs_of(files, AS_TEXT[format]) for format, files in places.items() if files]
    return "create view pairs as\n" + "\nunion all by name\n".join([NO_PAIRS, *parts])


def _pairs_of(places: Mapping[str, Sequence[tuple[str, int, str]]], columns: str) -> str:
    files = ", ".join(quoted(path) for path in places)
    rows = ", ".join(
        f"({quoted(path)}, {quoted(name)}, {version}, {quoted(split)})"
        for path, versions in places.items()
        for name, version, split in versions
    )
    return f"""select d.dataset, d.version, d.split, p.* exclude (filename) {columns}
from read_parquet([{files}], union_by_name = true, filename = true, hive_partitioning = false) p
join (values {rows}) d(filename, dataset, version, split) using (filename)"""
