"""What clients were told, against what is there: every broken promise is a line of text that names it.

It asks the service as any client could. What was acknowledged is there once and as it was sent; what was refused is not
there; what nobody knows about is there once at most, and then whole.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum, auto
from io import BytesIO
from typing import Any

import pyarrow.parquet as pq

from benchmarks.faults import freezer, importer, requester, trainer
from benchmarks.faults.journal import Event, Json, Line, Sent, sent
from trainers.client import Refinery, RefineryError

Row = dict[str, Any]


class Kind(StrEnum):
    LOST = auto()
    DUPLICATED = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Broken:
    """A promise that was not kept."""

    kind: Kind
    line: str


def lost(line: str) -> Broken:
    return Broken(Kind.LOST, line)


def duplicated(line: str) -> Broken:
    return Broken(Kind.DUPLICATED, line)


def other(line: str) -> Broken:
    return Broken(Kind.OTHER, line)


Journals = Mapping[str, Sequence[Line]]
"""By client."""


class Asked:
    """The service, and what it was asked for."""

    def __init__(self, refinery: Refinery, journals: Journals) -> None:
        self.refinery = refinery
        self.journals = journals
        self.sent = [one for client, lines in journals.items() for one in sent(client, lines)]

    def of(self, *what: str) -> list[Sent]:
        return [one for one in self.sent if one.what in what]

    def noted(self, what: str) -> list[Line]:
        """Whose name ends so."""
        every = (line for lines in self.journals.values() for line in lines)
        return [line for line in every if line.event is Event.NOTED and line.what.endswith(what)]

    def rows(self, sql: str) -> list[Row]:
        """All of them."""
        body = {"sql": sql, "format": "parquet", "timeout_ms": 60_000}
        rows: list[Row] = pq.read_table(BytesIO(b"".join(self.refinery.stream("/v1/sql", body)))).to_pylist()
        return rows


def audit(refinery: Refinery, journals: Journals) -> Iterator[Broken]:
    """Everything that is broken. Nothing else may be at work, and every job must have ended."""
    asked = Asked(refinery, journals)
    for lines in journals.values():
        yield from (other(line.told["line"]) for line in lines if line.event is Event.BROKEN)
    for check in CHECKS:
        try:
            yield from check(asked)
        except RefineryError as error:
            yield other(f"{check.__name__} could not be looked at: {error}")
    told = refinery.get("/v1/store/check")["damages"]
    yield from (other(f"`refinery store check`: {damage}") for damage in told)


# ---- what was sent with a key


def repeated(asked: Asked) -> Iterator[Broken]:
    """Every acknowledged request again, with its key. It comes first: what that does is seen by the checks after it."""
    keyed = (importer.IMPORT, importer.PROMPTS, requester.RUN, requester.JOB, requester.PUBLISH, freezer.FREEZE)
    for one in asked.of(*keyed):
        if one.outcome is not Event.ACKNOWLEDGED:
            continue
        request = one.request
        try:
            answer = asked.refinery.post(request["path"], request["body"], key=request["key"], **request["query"])
        except RefineryError as error:
            yield lost(f"{name_of(one)} was acknowledged, and sent again it is refused: {error}")
            continue
        if answer != one.answer:
            yield other(f"{name_of(one)} is answered otherwise when it is sent again")


def imports(asked: Asked) -> Iterator[Broken]:
    stored = asked.rows(
        f"""select p.text, list({{visit: g.visit, texts: r.texts, rewards: g.rewards}}) as groups
            from groups g join prompts p using (prompt_id)
            join (select group_id, list(text order by idx) as texts from rollouts group by 1) r using (group_id)
            where g.run = '{importer.RUN}' group by 1"""
    )
    found = {row["text"]: [(group["texts"], group["rewards"]) for group in row["groups"]] for row in stored}
    wanted = {one: importer.stored_of(one.request["body"]) for one in asked.of(importer.IMPORT)}
    yield from held(wanted, found)
    known = {text for rows in wanted.values() for text in rows}
    yield from (other(f"group {text!r} is there, and nobody sent it") for text in found.keys() - known)


def prompts(asked: Asked) -> Iterator[Broken]:
    rows = asked.rows(
        f"""select text, metadata->>'$.operation' as op, metadata->>'$.row' as row, reference
            from prompts where list_contains(prompt_sets, '{importer.PROMPT_SET}') and op is not null"""
    )
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(f"{row['op']}, {row['row']}", []).append((row["text"], row["reference"]))
    wanted = {
        one: {f"{one.op}, {i}": (row["prompt"], row["reference"]) for i, row in enumerate(one.request["body"])}
        for one in asked.of(importer.PROMPTS)
    }
    yield from held(wanted, found)


def held(wanted: Mapping[Sent, Mapping[str, Any]], found: Mapping[str, Sequence[Any]]) -> Iterator[Broken]:
    """Whether what was sent is there as often as it may be, and as it was sent: by request, the things of which it is
    made by their names."""
    for one, things in wanted.items():
        there = {name: found.get(name, ()) for name in things}
        for name, found_of in there.items():
            if len(found_of) > 1:
                yield duplicated(f"{name!r} of {name_of(one)} is there {len(found_of)} times")
            yield from (
                other(f"{name!r} of {name_of(one)} is {value}, and was {things[name]}")
                for value in found_of
                if value != things[name]
            )
        missing = [name for name, found_of in there.items() if not found_of]
        if one.outcome is Event.ACKNOWLEDGED:
            yield from (lost(f"{name!r} of {name_of(one)} was acknowledged and is not there") for name in missing)
        elif one.outcome is Event.REFUSED:
            yield from (
                other(f"{name!r} of {name_of(one)} was refused and is there") for name in there.keys() - set(missing)
            )
        elif missing and len(missing) < len(things):
            yield other(f"of {name_of(one)} {len(missing)} of {len(things)} are missing: it is there in part")


# ---- runs and jobs


def runs(asked: Asked) -> Iterator[Broken]:
    names = Counter(run["name"] for run in asked.refinery.get("/v1/runs"))
    yield from (duplicated(f"run {name!r} is there {n} times") for name, n in names.items() if n > 1)
    for one in asked.of(requester.RUN):
        name = one.request["body"]["name"]
        if one.outcome is Event.ACKNOWLEDGED and name not in names:
            yield lost(f"run {name!r} was acknowledged and is not there")
        elif one.outcome is Event.REFUSED and name in names:
            yield other(f"run {name!r} was refused and is there")


def jobs(asked: Asked) -> Iterator[Broken]:
    of_jobs = {row["job"]: row for row in asked.rows(BY_JOB)}
    keyed = asked.of(requester.JOB, requester.PUBLISH)
    told = {one.answer["id"]: one for one in keyed if one.outcome is Event.ACKNOWLEDGED}
    stopped = {one.request["job"] for one in asked.of(requester.CANCEL) if one.outcome is Event.ACKNOWLEDGED}
    known = of_jobs.keys() | told.keys() | {job["id"] for job in asked.refinery.get("/v1/jobs")}
    for job_id in sorted(known - {"import"}):
        try:
            job = asked.refinery.get(f"/v1/jobs/{job_id}")
        except RefineryError as error:
            yield lost(f"job {job_id} is not there: {error}")
            continue
        if one := told.get(job_id):
            yield from _as_sent(job, one)
        if job_id in stopped and job["state"] != "cancelled":
            yield lost(f"job {job_id} was told to stop, and is {job['state']}")
        yield from _as_done(job, of_jobs.get(job_id, {}))


def _as_sent(job: Json, one: Sent) -> Iterator[Broken]:
    request = {name: value for name, value in job["request"].items() if value is not None}
    asked = one.request["body"]
    if {name: request.get(name) for name in asked if name != "budget"} != {
        n: v for n, v in asked.items() if n != "budget"
    }:
        yield other(f"job {job['id']} is {request}, and {asked} was asked for")


def _as_done(job: Json, counts: Row) -> Iterator[Broken]:
    if job["state"] == "failed":
        yield other(f"job {job['id']} on {job['on']} failed: {job['result']}")
    if job["state"] != "done" or job["kind"] != "rollouts":
        return
    funnel = job["result"]["funnel"]
    for name in ("considered", "sampled", "rollouts", "informative"):
        if funnel[name] != (counts.get(name) or 0):
            yield other(f"job {job['id']} says {funnel[name]} {name}, and {counts.get(name)} are there")
    wanted = job["request"]["groups"]
    if job["result"]["stop"] == "enough" and wanted and funnel["informative"] < wanted:
        yield lost(f"job {job['id']} was to give {wanted} informative groups, and gave {funnel['informative']}")


def ends_of_jobs(asked: Asked) -> Iterator[Broken]:
    """A final state that somebody saw is the state for ever."""
    for line in asked.noted(requester.FINAL):
        job = asked.refinery.get(f"/v1/jobs/{line.told['id']}")
        if (job["state"], job["result"]) != (line.told["state"], line.told["result"]):
            yield other(f"job {job['id']} had ended as {line.told['state']}, and now it is {job['state']}")


BY_JOB = """
select v.job, count(*) as considered, count(*) filter (v.action = 'sampled') as sampled,
       coalesce(sum(g.rollouts), 0)::bigint as rollouts, count(*) filter (g.informative) as informative
from visits v left join groups g using (run, prompt_id, visit) group by 1"""


def versions(asked: Asked) -> Iterator[Broken]:
    """Each publication is one version, known by its step."""
    published = asked.rows(f"select version, step from policy_versions where policy = '{requester.POLICY}'")
    times = Counter(row["step"] for row in published if row["step"] is not None)
    for one in asked.of(requester.PUBLISH):
        if times[one.op] > 1:
            yield duplicated(f"{name_of(one)} is {times[one.op]} versions")
        if one.outcome is Event.ACKNOWLEDGED and not times[one.op]:
            yield lost(f"{name_of(one)} was acknowledged, and no version comes from it")
        elif one.outcome is Event.REFUSED and times[one.op]:
            yield other(f"{name_of(one)} was refused and is there")


# ---- visits and groups


def visits(asked: Asked) -> Iterator[Broken]:
    for what, sql in TWICE.items():
        yield from (duplicated(f"{what}: {row['name']}, {row['times']} times") for row in asked.rows(sql))
    for row in asked.rows(UNENDED):
        failed = asked.refinery.get(f"/v1/runs/{row['run']}")["funnel"]["failed"]
        if failed:
            yield lost(f"{failed} visits of run {row['run']} failed")
        if row["without_group"] != failed:
            yield lost(f"{row['without_group']} sampled visits of run {row['run']} have no group, and {failed} failed")
    yield from (
        lost(f"{row['outcome']} of {row['times']} rollouts of run {row['run']}: {row['detail']}")
        for row in asked.rows(UNJUDGED)
    )


TWICE = {
    "a visit": """
        select run || ', ' || prompt_id || ', visit ' || visit as name, count(*) as times
        from visits group by run, prompt_id, visit having count(*) > 1""",
    "a group of a visit": """
        select run || ', ' || prompt_id || ', visit ' || visit as name, count(*) as times
        from groups group by run, prompt_id, visit having count(*) > 1""",
    "a group": "select group_id as name, count(*) as times from groups group by 1 having count(*) > 1",
    "a rollout": "select rollout_id as name, count(*) as times from rollouts group by 1 having count(*) > 1",
    "a prompt": "select prompt_id as name, count(*) as times from prompts group by 1 having count(*) > 1",
}
UNENDED = """
select run, count(*) filter (v.action = 'sampled' and g.group_id is null) as without_group
from visits v left join groups g using (run, prompt_id, visit) group by 1"""
UNJUDGED = """
select run, outcome, count(*) as times, any_value(detail) as detail
from rollouts where outcome not in ('scored', 'no_answer') group by all"""


# ---- leases


def leases(asked: Asked) -> Iterator[Broken]:
    there = {lease["lease"]: lease for run in trainer.RECIPES for lease in all_leases(asked.refinery, run)}
    for state in ("acknowledged", "open"):
        yield from _in_two(state, [lease for lease in there.values() if lease["state"] == state])
    ends: dict[str, str] = {}
    for one in asked.of(trainer.END):
        if one.outcome is Event.ACKNOWLEDGED and ends.get(one.answer["lease"]) != "acknowledged":
            ends[one.answer["lease"]] = one.answer["state"]
    for line in asked.noted(trainer.REOPENED):
        if ends.get(line.told["lease"]) == "released":
            del ends[line.told["lease"]]
    for one in asked.of(trainer.LEASE):
        if one.outcome is not Event.ACKNOWLEDGED:
            continue
        lease = there.get(one.answer["lease"])
        if lease is None:
            yield lost(f"lease {one.answer['lease']} of {name_of(one)} is not there")
        elif lease["group_ids"] != one.answer["group_ids"]:
            yield other(f"lease {lease['lease']} of {name_of(one)} has other groups than it had")
        elif not _may_be(lease["state"], ends.get(lease["lease"])):
            yield lost(f"lease {lease['lease']} of {name_of(one)} was {ends[lease['lease']]}, and is {lease['state']}")
    places = {row["group_id"]: row["seq"] for row in asked.rows(PLACES)}
    for lease in there.values():
        in_order = [places.get(group, -1) for group in lease["group_ids"]]
        if in_order != sorted(in_order):
            yield other(f"the groups of lease {lease['lease']} are not in the order in which they were chosen")


def _in_two(state: str, leases: Sequence[Json]) -> Iterator[Broken]:
    times = Counter((one["run"], one["consumer"], group) for one in leases for group in one["group_ids"])
    for (run, consumer, group), n in times.items():
        if n > 1:
            yield duplicated(f"group {group} of run {run} is in {n} leases of {consumer} that are {state}")


def _may_be(state: str, told: str | None) -> bool:
    """What was given back may be handed out again, and be taken from its lease by that."""
    return state == "acknowledged" if told == "acknowledged" else told is None or state in {told, "expired"}


def left_to_lease(asked: Asked) -> Iterator[Broken]:
    """Nothing is lost on the way to a trainer: what it has neither acknowledged nor leased, it can lease now."""
    for run, recipe in trainer.RECIPES.items():
        held = all_leases(asked.refinery, run)
        condition = "has_text" if recipe.get("zero_variance") else "has_text and informative"
        groups = {
            row["group_id"] for row in asked.rows(f"select group_id from groups where run = '{run}' and {condition}")
        }
        for consumer in sorted({lease["consumer"] for lease in held}):
            taken = {
                group
                for lease in held
                if lease["consumer"] == consumer and lease["state"] in {"acknowledged", "open"}
                for group in lease["group_ids"]
            }
            available = _available(asked.refinery, run, consumer, recipe)
            if available != len(groups - taken):
                yield lost(
                    f"{available} groups of run {run} can be leased to {consumer}, and {len(groups - taken)} are left"
                )


def _available(refinery: Refinery, run: str, consumer: str, recipe: Json) -> int:
    body = {"groups": 100_000, "consumer": consumer, "recipe": recipe}
    try:
        refinery.post(f"/v1/runs/{run}/leases", body)
    except RefineryError as error:
        return int(error.problem.get("available", -1))
    return -1


PLACES = """
select g.group_id, v.seq from groups g join visits v using (run, prompt_id, visit)"""


def all_leases(refinery: Refinery, run: str) -> list[Json]:
    found: list[Json] = []
    cursor = None
    while True:
        try:
            page = refinery.get(f"/v1/runs/{run}/leases", cursor=cursor, limit=1000)
        except RefineryError as error:
            if error.code == "run_not_found":
                return found
            raise
        found += page["items"]
        if (cursor := page["next"]) is None:
            return found


# ---- datasets


def datasets(asked: Asked) -> Iterator[Broken]:
    versions: dict[int, list[Json]] = {}
    for version in asked.refinery.get("/v1/datasets"):
        versions.setdefault(version["manifest"]["recipe"]["seed"], []).append(version)
    for one in asked.of(freezer.FREEZE):
        found = versions.get(one.op, [])
        if len(found) > 1:
            names = ", ".join(f"{v['name']}@{v['version']}" for v in found)
            yield duplicated(f"{name_of(one)} made {names}")
        if one.outcome is Event.ACKNOWLEDGED and one.answer not in found:
            name = f"{one.answer['name']}@{one.answer['version']}"
            yield lost(f"{name} of {name_of(one)} was acknowledged and is not there as it was")
        elif one.outcome is Event.REFUSED and found:
            yield other(f"{name_of(one)} was refused and is there")
    numbers = sorted(one["version"] for of_op in versions.values() for one in of_op)
    if numbers != list(range(1, len(numbers) + 1)):
        yield other(f"the versions of {freezer.NAME} are {numbers}")


def name_of(one: Sent) -> str:
    return f"{one.what} {one.op} of {one.client}"


CHECKS: tuple[Callable[[Asked], Iterable[Broken]], ...] = (
    repeated,
    imports,
    prompts,
    runs,
    jobs,
    ends_of_jobs,
    versions,
    visits,
    leases,
    left_to_lease,
    datasets,
)
