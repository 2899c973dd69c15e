"""What a question sees: the published views over a moment of the store, as SQL for a fresh database.

A restricted caller sees only its runs: the tables that the views stand on hold nothing else for it.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    *("datasets", "pairs", "informativeness", "prompt_history"),
)
SEGMENTS, DATASETS = Path("/store/segments"), Path("/store/datasets")
"""Where the container has them: no path of this machine is seen inside."""

SCOPE: dict[str, str] = {
    "runs": "run in ({runs})",
    "visits": "run in ({runs})",
    "groups": "run in ({runs})",
    "rollouts": "run in ({runs})",
    "rescores": "run in ({runs})",
    "failures": "run in ({runs})",
    "jobs": "run in ({runs})",
    "job_events": "job in (select job from jobs)",
    "prompts": "prompt_id in (select prompt_id from visits)",
    "prompt_sets": "prompt_id in (select prompt_id from visits)",
    "policy_versions": "policy in (select config->>'$.policy' from runs)",
    "datasets": "list_has_all([{runs}], from_json(recipe->'$.runs', '[\"varchar\"]'))",
    "dataset_deletions": "name in (select name from datasets)",
}
"""What of a table a restricted caller sees. In this order: some look at those before them."""

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

NO_PAIRS = """create view pairs as
select null::varchar as dataset, null::integer as version, null::varchar as split, null::varchar as prompt,
       null::varchar as chosen, null::varchar as rejected, null::double as margin, null::double as chosen_reward,
       null::double as rejected_reward, null::integer as chosen_tokens, null::integer as rejected_tokens,
       null::integer as chosen_index, null::integer as rejected_index, null::varchar as prompt_id,
       null::varchar as group_id, null::varchar as run, null::integer as visit, null::integer as policy_version,
       null::double as temperature, null::varchar as verifier
where false"""


def definitions(
    layout: Layout, datasets: Sequence[dict[str, Any]], dataset_root: Path, runs: Sequence[str] | None
) -> dict[str, dict[str, tuple[str, list[str]]]]:
    """SQL that makes each view, and the views of the schema `store` that it stands on, by schema and name. `datasets`
    are rows of `dataset_versions`, `runs` those that may be seen. Datasets whose files are gone are left away."""
    allowed = None if runs is None else ", ".join(map(quoted, runs)) or "null"
    rescored = any("rescores" in segment.files for segment in layout.manifest.segments)
    internal = [*(_table(table, layout, allowed) for table in SCOPE), *INTERNAL]
    internal.append(NOW_RESCORED if rescored else NOW)
    published = [*PUBLISHED, _pairs(datasets, dataset_root, runs)]
    return {
        "store": {_name(sql): (sql, BARE.findall(sql)) for sql in internal},
        "main": {_name(sql): (sql, QUALIFIED.findall(sql)) for sql in published},
    }


def _name(sql: str) -> str:
    found = DEFINED.search(sql)
    assert found, sql
    return found[1]


def _table(table: str, layout: Layout, allowed: str | None) -> str:
    rows = rows_of(table, (0,), layout.manifest, _path)
    where = "" if allowed is None else f" where {SCOPE[table].format(runs=allowed)}"
    return f"create view {table} as from ({rows}){where}"


def _path(segment: Segment, table: str) -> Path:
    return SEGMENTS / segment_folder(segment) / f"{table}.parquet"


def _pairs(datasets: Sequence[dict[str, Any]], root: Path, runs: Sequence[str] | None) -> str:
    """Every pair of every dataset of pairs that is still there."""
    places: dict[str, list[tuple[str, int, str]]] = {}
    for dataset in datasets:
        recipe, files = json.loads(dataset["recipe"]), json.loads(dataset["manifest"])["files"]
        is_seen = runs is None or set(recipe["runs"]) <= set(runs)
        if recipe.get("shape", "pairs") != "pairs" or dataset["deleted_at"] is not None or not is_seen:
            continue
        for split in ("train", "test"):
            if f"{split}.parquet" in files and (root / dataset["dataset_id"] / f"{split}.parquet").exists():
                path = str(DATASETS / dataset["dataset_id"] / f"{split}.parquet")
                places.setdefault(path, []).append((dataset["name"], dataset["version"], split))
    if not places:
        return NO_PAIRS
    files = ", ".join(quoted(path) for path in places)
    rows = ", ".join(
        f"({quoted(path)}, {quoted(name)}, {version}, {quoted(split)})"
        for path, versions in places.items()
        for name, version, split in versions
    )
    return f"""create view pairs as
select d.dataset, d.version, d.split, p.* exclude (filename)
from read_parquet([{files}], union_by_name = true, filename = true) p
join (values {rows}) d(filename, dataset, version, split) using (filename)"""
