"""What curation reads: groups as they are judged, without their texts; then the texts of the rows it made.

- Everything comes as a stream: the memory that a dataset takes does not grow with the texts that it is made from.
- As of a watermark: groups and rescores that came later are not there.
- Everything here blocks: call it from a thread.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from curation.informativeness import Informativeness, summarize
from curation.judged import JudgedGroup, Origin, Row, TextFacts
from curation.records import Outcome
from service.stages import StoreFailed
from service.store.duck import Duck


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
        measured: bool = True,
    ) -> Iterator[JudgedGroup]:
        """The groups whose text is kept, in the order they were stored. They carry their newest verdicts; with the
        label of a verifier, those where they have them. One prompt only, if named."""
        scope = {"runs": list(runs), "watermark": watermark, "verifier": verifier, "prompt_id": prompt_id}
        rest = pl.DataFrame()
        for batch in self._duck.scan(GROUPS.format(MEASURES if measured else "null"), scope):
            frame = pl.concat([rest, pl.DataFrame(pa.Table.from_batches([batch]))], how="diagonal")
            # The last group may go on in the next batch.
            is_last = pl.col("seq") == frame["seq"][-1]
            yield from _groups_in(frame.filter(~is_last))
            rest = frame.filter(is_last)
        if len(rest):
            yield from _groups_in(rest)

    def informativeness(self, runs: Sequence[str], watermark: int) -> Informativeness:
        """Of every group of the runs, with and without text."""
        batches = list(self._duck.scan(REWARDS, {"runs": list(runs), "watermark": watermark}))
        lists = pa.chunked_array([batch.column(0) for batch in batches], REWARDS_TYPE)
        return summarize(pc.list_flatten(lists), pc.list_value_length(lists))

    def spent(self, runs: Sequence[str], watermark: int) -> dict[str, float]:
        """Tokens and seconds that all groups of the runs took, waste included."""
        [batch] = self._duck.scan(SPENT, {"runs": list(runs), "watermark": watermark})
        [spent] = batch.to_pylist()
        return dict(spent)

    def contaminated(self, runs: Sequence[str], watermark: int, is_in: Callable[[str], bool]) -> Collection[str]:
        """Ids of the prompts of these runs whose text `is_in` a set to keep away from."""
        batches = self._duck.scan(PROMPTS_OF_RUNS, {"runs": list(runs), "watermark": watermark})
        pairs = (zip(*(column.to_pylist() for column in batch.columns), strict=True) for batch in batches)
        return frozenset(prompt_id for prompt_id, text in chain.from_iterable(pairs) if is_in(text))

    def prompts(self, prompt_ids: Sequence[str]) -> "Stream":
        """text, reference and verifier of each, in this order."""
        wanted = pa.table({"place": np.arange(len(prompt_ids)), "prompt_id": pa.array(prompt_ids, pa.string())})
        return Stream(self._duck.scan(PROMPTS, tables={"wanted": wanted}))

    def texts(self, rows: Sequence[Row], *, with_tokens: bool) -> "Stream":
        """The text of each rollout of each row, in their order; with token_ids and logprobs on demand."""
        group_ids = [row.origin.group_id for row in rows for _ in row.indices]
        slots = [index for row in rows for index in row.indices]
        wanted = pa.table({"place": np.arange(len(slots)), "group_id": pa.array(group_ids, pa.string()), "idx": slots})
        return Stream(self._duck.scan(TOKENS if with_tokens else TEXTS, tables={"wanted": wanted}))


class Stream:
    """Rows that are taken in the order they come."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._held: list[pa.RecordBatch] = []

    def take(self, count: int) -> pa.Table:
        """The next rows. Raises StoreFailed if there are fewer: some were removed since they were promised."""
        held = sum(batch.num_rows for batch in self._held)
        while held < count:
            batch = next(self._batches, None)
            if batch is None:
                raise StoreFailed(f"{count - held} texts are gone that the store held a moment ago; freeze again")
            self._held.append(batch)
            held += batch.num_rows
        table = pa.Table.from_batches(self._held)
        self._held = table.slice(count).to_batches()
        return table.slice(0, count)


GROUPS = """
select g.seq, g.prompt_id, g.run, g.visit, g.group_id, g.policy_version, g.temperature,
       if(coalesce(n.verdicts is null or r.verifier = $verifier, false),
          {{outcome: r.outcome, reward: r.reward, verifier: r.verifier}},
          {{outcome: n.verdicts[r.idx + 1].outcome, reward: n.verdicts[r.idx + 1].reward,
            verifier: n.verdicts[r.idx + 1].verifier}}) as verdict,
       r.finish_reason = 'length' as truncated, r.tokens, {} as facts
from rollouts r join groups g using (group_id) join prompts p using (prompt_id)
left join (select group_id, arg_max(verdicts, seq) as verdicts from rescores
           where seq <= $watermark and ($verifier is null or verdicts[1].verifier = $verifier)
           group by group_id) n on n.group_id = g.group_id
where r.text is not null and g.seq <= $watermark and list_contains($runs, g.run)
      and ($prompt_id is null or g.prompt_id = $prompt_id)
order by g.seq, r.idx
"""
MEASURES = """
{characters: length(r.text)::int, utf8_bytes: strlen(r.text)::int, digest: md5(md5(p.text) || md5(r.text))}
"""

REWARDS = """
select coalesce(n.rewards, g.rewards) from groups g
left join (select group_id, arg_max(rewards, seq) as rewards from rescores where seq <= $watermark group by group_id) n
  using (group_id)
where g.seq <= $watermark and list_contains($runs, g.run)
"""
REWARDS_TYPE = pa.list_(pa.float64())

SPENT = """
select coalesce(sum(tokens), 0)::bigint as tokens, coalesce(fsum(sampling_seconds), 0) as sampling_seconds,
       coalesce(fsum(verifying_seconds), 0) as verifying_seconds
from groups where seq <= $watermark and list_contains($runs, run)
"""

PROMPTS_OF_RUNS = """
select prompt_id, text from prompts
semi join (select prompt_id from groups where seq <= $watermark and list_contains($runs, run)) using (prompt_id)
"""
PROMPTS = """
select p.text, p.reference, p.verifier from wanted w join prompts p using (prompt_id) order by w.place
"""
TEXTS = "select r.text from wanted w join rollouts r using (group_id, idx) order by w.place"
TOKENS = """
select r.text, r.token_ids, r.logprobs from wanted w join rollouts r using (group_id, idx) order by w.place
"""

OUTCOMES = {outcome.value: outcome for outcome in Outcome}
OF_GROUP = ("prompt_id", "run", "visit", "group_id", "policy_version", "verifier", "temperature")
OF_ROLLOUT = ("reward", "outcome", "truncated", "tokens", "facts")


def _groups_in(frame: pl.DataFrame) -> Iterator[JudgedGroup]:
    by_group = frame.unnest("verdict").group_by("seq", maintain_order=True)
    rows = by_group.agg(pl.col(OF_GROUP).first(), pl.col(OF_ROLLOUT)).select(OF_GROUP + OF_ROLLOUT)
    for *origin, rewards, outcomes, truncated, tokens, facts in rows.iter_rows():
        judged = [OUTCOMES[outcome] for outcome in outcomes]
        texts = [TextFacts(**fact) for fact in facts if fact]
        yield JudgedGroup(Origin._make(origin), rewards, judged, truncated, tokens, texts)
