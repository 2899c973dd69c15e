"""Asks questions in SQL whose answers must agree with themselves, and with the answers before: nothing that was seen
goes away."""

from typing import Any

from benchmarks.faults.desk import Desk
from benchmarks.faults.journal import Event, Json
from trainers.client import RefineryError

COUNTS = "counts"
"""What is written into the journal."""
SQL_SECONDS = 30

QUESTIONS = {
    "groups and rollouts": """
        with g as (select run, count(*) as groups, count(distinct group_id) as different,
                          sum(rollouts)::bigint as rollouts from groups group by 1),
             r as (select run, count(distinct group_id) as groups, count(distinct group_id) as different,
                          count(*) as rollouts from rollouts group by 1),
             v as (select run, count(*) as groups, count(distinct (prompt_id, visit)) as different
                   from prompt_history where group_id is not null group by 1)
        select run, [[g.groups, g.different], [r.groups, r.different], [v.groups, v.different]],
               [[g.rollouts], [r.rollouts]]
        from g full join r using (run) full join v using (run)""",
    "visits": """
        select run, [[count(*)], [count(distinct (prompt_id, visit))], [count(distinct seq)]] from visits group by 1""",
    "leased groups": """
        select run || ' for ' || consumer, [[count(*)], [count(distinct group_id)]] from (
            select run, consumer, unnest(group_ids) as group_id from leases where state in ('open', 'acknowledged')
        ) group by 1""",
    "pairs": """
        select d.name || '@' || d.version, [[any_value(train_rows) + any_value(test_rows)], [count(p.prompt)]]
        from datasets d left join pairs p on (p.dataset, p.version) = (d.name, d.version) group by 1""",
}
"""Each row is a name, and lists of lists that are all equal."""
TOTALS = """
    select 'visits', count(*) from visits union all select 'groups', count(*) from groups
    union all select 'rollouts', count(*) from rollouts union all select 'prompts', count(*) from prompts
    union all select 'datasets', count(*) from datasets union all select 'leases', count(*) from leases"""


def act(desk: Desk, op: int) -> None:
    name, sql = desk.rng(op).choice(sorted(QUESTIONS.items()))
    for row in _asked(desk, op, sql):
        for alike in row[1:]:
            if any(counts != alike[0] for counts in alike):
                desk.broken(op, f"{name} of {row[0]} do not agree: {alike}")
    counts = dict(_asked(desk, op, TOTALS))
    before = [line.told for line in desk.journal.lines if line.what == COUNTS][-1:]
    for earlier in before:
        for table, rows in counts.items():
            if rows < earlier[table]:
                desk.broken(op, f"there were {earlier[table]} {table}, and now there are {rows}")
    if counts:
        desk.write(op, COUNTS, Event.NOTED, counts)


def _asked(desk: Desk, op: int, sql: str) -> list[Any]:
    """Its rows; none if it could not be answered in time."""
    body: Json = {"sql": sql, "timeout_ms": 1000 * SQL_SECONDS, "limit": 100_000}
    try:
        rows: list[Any] = desk.patiently(lambda: desk.refinery.post("/v1/sql", body))["rows"]
    except RefineryError as error:
        if error.code != "sql_timeout":
            desk.broken(op, f"a good question was refused: {error}")
        return []
    return rows
