"""What curation reads: groups as they are judged, without their texts; then the texts of the rows it made.

- Everything comes as a stream: the memory that a dataset takes does not grow with the texts that it is made from.
- As of a watermark: groups and rescores that came later are not there.
- Everything here blocks: call it from a thread.
"""

from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import accumulate, chain
from math import fsum
from sys import intern
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from curation.informativeness import Informativeness, summarize
from curation.judged import JudgedGroup, Origin, Row
from curation.records import Outcome
from service.stages import StoreFailed
from service.store.duck import Duck
from service.store.shelves import in_order

WIDE_ROWS_PER_BATCH = 2048
"""Of a scan with texts, of which Arrow holds only up to 2 GiB in one piece."""


class Judged:
    def __init__(self, duck: Duck) -> None:
        self._duck = duck

    def groups(
        self,
        runs: Sequence[str],
        watermark: int,
        verifier: str | None = None,
        prompt_id: str | None = None,
        *,
        group_ids: Sequence[str] | None = None,
        digests: bool = False,
        references: bool = False,
    ) -> Iterator[JudgedGroup]:
        """The groups in the order they were stored. They carry their newest verdicts; with the label of a verifier,
        those where they have them. Of one prompt or some groups only, if named. The bytes of a prompt are with or
        without its reference. Raises StoreFailed for a group that is not whole."""
        scope = {"runs": list(runs), "watermark": watermark, "verifier": verifier, "prompt_id": prompt_id}
        scope |= {"first": None, "last": None}
        if group_ids is not None:
            scope |= {"group_ids": list(group_ids), **self._range_of(group_ids)}
        size = "strlen(p.text) + strlen(p.reference)" if references else "strlen(p.text)"
        named = "true" if group_ids is None else NAMED
        sql = GROUPS.format(digest=DIGEST if digests else "null", prompt_bytes=size, named=named)
        rest = pl.DataFrame()
        for batch in self._duck.scan(sql, scope):
            frame = pl.concat([rest, pl.DataFrame(pa.Table.from_batches([batch]))], how="diagonal")
            # The last group may go on in the next batch.
            is_last = pl.col("seq") == frame["seq"][-1]
            yield from _groups_in(frame.filter(~is_last))
            rest = frame.filter(is_last)
        if len(rest):
            yield from _groups_in(rest)

    def _range_of(self, group_ids: Sequence[str]) -> dict[str, int | None]:
        """The first and last number of these groups: nothing but what lies between them has to be read."""
        [batch] = self._duck.scan(RANGE, {"ids": list(group_ids)})
        [found] = batch.to_pylist()
        return dict(found)

    def informativeness(self, runs: Sequence[str], watermark: int) -> Informativeness:
        """Of every group of the runs, by its newest verdicts."""
        batches = list(self._duck.scan(REWARDS, {"runs": list(runs), "watermark": watermark}))
        lists = pa.chunked_array([batch.column(0) for batch in batches], REWARDS_TYPE)
        return summarize(pc.list_flatten(lists), pc.list_value_length(lists))

    def spent(self, runs: Sequence[str], watermark: int) -> dict[str, float]:
        """Tokens and seconds that all groups of the runs took, waste included."""
        parts: dict[str, list[float]] = {"tokens": [], "sampling_seconds": [], "verifying_seconds": []}
        for batch in self._duck.scan(SPENT, {"runs": list(runs), "watermark": watermark}):
            for name, values in parts.items():
                values += batch[name].to_pylist()
        return {name: fsum(values) for name, values in parts.items()}  # exact, so in any order

    def contaminated(self, runs: Sequence[str], watermark: int, is_in: Callable[[str], bool]) -> Collection[str]:
        """Ids of the prompts of these runs whose text `is_in` a set to keep away from."""
        scope = {"runs": list(runs), "watermark": watermark}
        batches = self._duck.scan(PROMPTS_OF_RUNS, scope, rows_per_batch=WIDE_ROWS_PER_BATCH)
        pairs = (zip(*(column.to_pylist() for column in batch.columns), strict=True) for batch in batches)
        return frozenset(prompt_id for prompt_id, text in chain.from_iterable(pairs) if is_in(text))

    def prompts(self, parts: Sequence[Sequence[str]], columns: Sequence[str]) -> Iterator[pa.Table]:
        """A table for each part: of each of these prompts, in this order, the text, reference, verifier or metadata (in
        JSON)."""
        ids = pa.array([prompt_id for part in parts for prompt_id in part], pa.string())
        wanted = pa.table({"place": np.arange(len(ids)), "prompt_id": ids})
        return self._fetched(PROMPTS.format(columns=", ".join(columns)), wanted, [len(part) for part in parts])

    def texts(self, parts: Sequence[Sequence[Row]], *, with_tokens: bool) -> Iterator[pa.Table]:
        """A table for each part: the text of each rollout of each of its rows, all of groups that have it, in their
        order; with token_ids and logprobs on demand."""
        rows = [row for part in parts for row in part]
        group_ids = pa.array([row.origin.group_id for row in rows for _ in row.indices], pa.string())
        slots = pa.array([index for row in rows for index in row.indices], pa.int32())
        wanted = pa.table({"place": np.arange(len(slots)), "group_id": group_ids, "idx": slots})
        sizes = [sum(len(row.indices) for row in part) for part in parts]
        return self._fetched(TOKENS if with_tokens else TEXTS, wanted, sizes)

    def _fetched(self, sql: str, wanted: pa.Table, sizes: Sequence[int]) -> Iterator[pa.Table]:
        with self._duck.scratch() as folder:
            batches = self._duck.scan(sql, tables={"wanted": wanted}, rows_per_batch=WIDE_ROWS_PER_BATCH)
            yield from in_order(batches, list(accumulate(sizes)), folder)


GROUPS = """
select g.seq, g.prompt_id, g.run, g.visit, g.group_id, g.policy_version, g.temperature,
       ({prompt_bytes})::int as prompt_bytes, g.has_text, r.idx,
       if(coalesce(n.verdicts is null or r.verifier = $verifier, false),
          {{outcome: r.outcome, reward: r.reward, verifier: r.verifier}},
          {{outcome: n.verdicts[r.idx + 1].outcome, reward: n.verdicts[r.idx + 1].reward,
            verifier: n.verdicts[r.idx + 1].verifier}}) as verdict,
       r.finish_reason = 'length' as truncated, r.tokens,
       if(g.has_text, r.characters, 0) as characters, if(g.has_text, r.bytes, 0) as bytes, {digest} as digest
from rollouts r join groups g using (seq) join prompts p on p.prompt_id = g.prompt_id
left join (select group_id, arg_max(verdicts, seq) as verdicts from rescores
           where seq <= $watermark and ($verifier is null or verdicts[1].verifier = $verifier)
           group by group_id) n on n.group_id = g.group_id
where g.seq <= $watermark and list_contains($runs, g.run) and ($prompt_id is null or g.prompt_id = $prompt_id)
  and {named}
  and ($first is null or (r.seq between $first and $last and g.seq between $first and $last))
order by g.seq, r.idx
"""
NAMED = "g.group_id in (select unnest($group_ids::varchar[]))"
RANGE = """
select min(seq) as first, max(seq) as last from groups semi join (select unnest($ids) as group_id) using (group_id)
"""
DIGEST = "coalesce(md5(md5(p.text) || md5(r.text)), '-')"

REWARDS = """
select coalesce(n.rewards, g.rewards) from groups g
left join (select group_id, arg_max(rewards, seq) as rewards from rescores where seq <= $watermark group by group_id) n
  using (group_id)
where g.seq <= $watermark and list_contains($runs, g.run)
"""
REWARDS_TYPE = pa.list_(pa.float64())

SPENT = """
select tokens::double as tokens, sampling_seconds, verifying_seconds from groups
where seq <= $watermark and list_contains($runs, run)
"""

PROMPTS_OF_RUNS = """
select prompt_id, text from prompts
semi join (select prompt_id from groups where seq <= $watermark and list_contains($runs, run)) using (prompt_id)
"""

PROMPTS = "select place, {columns} from wanted join prompts using (prompt_id)"
# By number: of groups that lie together nothing else is read.
OF_WANTED = "from wanted w join groups g using (group_id) join rollouts r on r.seq = g.seq and r.idx = w.idx"
TEXTS = f"select w.place, r.text {OF_WANTED}"
TOKENS = f"select w.place, r.text, r.token_ids, r.logprobs {OF_WANTED}"

OUTCOMES = {outcome.value: outcome for outcome in Outcome}
OF_ORIGIN = ("prompt_id", "run", "visit", "group_id", "policy_version", "verifier", "temperature")
OF_GROUP = ("prompt_bytes", "has_text")
OF_ROLLOUT = ("reward", "outcome", "truncated", "tokens", "characters", "bytes", "digest")


class _Same(dict[tuple[Any, ...], tuple[Any, ...]]):
    """For each value the first of those that equal it."""

    def of(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.setdefault(value, value)


def _groups_in(frame: pl.DataFrame) -> Iterator[JudgedGroup]:
    by_group = frame.unnest("verdict").group_by("seq", maintain_order=True)
    whole = (pl.col("idx") == pl.int_range(pl.len())).all().alias("whole")
    groups = by_group.agg(pl.col(OF_ORIGIN + OF_GROUP).first(), pl.col(OF_ROLLOUT), whole)
    if broken := groups.filter(~pl.col("whole"))["group_id"].to_list():
        raise StoreFailed(f"group {broken[0]} is stored twice or in part: the store is damaged")
    # Millions of groups are held at once, and most of them are alike.
    same_rewards, same_outcomes, same_truncated = _Same(), _Same(), _Same()
    for row in groups.select(OF_ORIGIN + OF_GROUP + OF_ROLLOUT).iter_rows():
        prompt_id, run, visit, group_id, policy_version, verifier, temperature = row[: len(OF_ORIGIN)]
        origin = Origin(intern(prompt_id), intern(run), visit, group_id, policy_version, intern(verifier), temperature)
        prompt_bytes, has_text, rewards, outcomes, truncated, tokens, characters, sizes, digests = row[len(OF_ORIGIN) :]
        yield JudgedGroup(
            origin,
            prompt_bytes,
            same_rewards.of(tuple(rewards)),
            same_outcomes.of(tuple([OUTCOMES[outcome] for outcome in outcomes])),
            same_truncated.of(tuple(truncated)),
            array("i", tokens),
            array("i", characters),
            array("i", sizes),
            tuple(digests) if digests[0] else (),
            has_text,
        )
