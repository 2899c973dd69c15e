"""Prompts and the sets they are in."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from curation.keys import canonical_json
from curation.recorded import RECORDED
from curation.records import Prompt
from service.stages import NotFound
from service.store.duck import LISTED, Duck
from service.store.transaction import Row, Transaction


class Added(NamedTuple):
    added: int
    existing: int


def no_prompts(missing: Sequence[str]) -> NotFound:
    return NotFound("prompt_not_found", f"there is no prompt {', '.join(missing[:5])}", missing=missing[:100])


class Prompts:
    def __init__(self, duck: Duck) -> None:
        self._duck = duck

    async def add(self, prompts: Sequence[Prompt], prompt_set: str, now: datetime) -> Added:
        """Puts prompts into a set. A prompt that is already in it is counted, not doubled."""
        return await self._duck.write(lambda tx: add_prompts(tx, prompts, prompt_set, now))

    async def get(self, prompt_ids: Sequence[str]) -> dict[str, Prompt]:
        """The prompts by id. Raises NotFound with the ids that do not exist."""
        rows = await self._duck.read(f"select * from prompts where prompt_id in {LISTED}", [list(prompt_ids)])
        found = {row["prompt_id"]: prompt_of(row) for row in rows}
        if missing := [p for p in dict.fromkeys(prompt_ids) if p not in found]:
            raise no_prompts(missing)
        return found

    async def of_set(self, prompt_set: str) -> dict[str, Prompt]:
        """Every prompt of a set, by id; empty for a set nobody filled."""
        rows = await self._duck.read(
            "select p.* from prompts p join prompt_sets s using (prompt_id) where s.prompt_set = ? order by 1",
            [prompt_set],
        )
        return {row["prompt_id"]: prompt_of(row) for row in rows}

    async def judged_elsewhere(self, prompt_set: str) -> int:
        """How many prompts of the set no verifier can judge: their rollouts came with labels."""
        sql = (
            "select count(*) as n from prompts join prompt_sets using (prompt_id) where prompt_set = ? and verifier = ?"
        )
        return int((await self._duck.read(sql, [prompt_set, RECORDED]))[0]["n"])

    async def page(self, prompt_set: str | None, after: str, limit: int) -> list[Prompt]:
        """Prompts in the order of their ids, those after `after`."""
        rows = await self._duck.read(
            """select * from prompts where prompt_id > $after and ($set is null or prompt_id in
               (select prompt_id from prompt_sets where prompt_set = $set)) order by prompt_id limit $limit""",
            {"after": after, "set": prompt_set, "limit": limit},
        )
        return [prompt_of(row) for row in rows]

    async def visits(self, prompt_id: str) -> list[Row]:
        """Every visit in every run, oldest first, with the rewards of its group where there is one."""
        return await self._duck.read(
            """select v.run, v.visit, v.epoch, v.action, v.keep_probability, v.reason, v.decided_at,
                      g.group_id, g.seq as group_seq, g.policy_version, g.kind, g.rewards
               from visits v left join groups g using (run, prompt_id, visit)
               where v.prompt_id = ? order by v.seq""",
            [prompt_id],
        )


def add_prompts(tx: Transaction, prompts: Sequence[Prompt], prompt_set: str, now: datetime) -> Added:
    """`Prompts.add` inside a transaction that does more than that."""
    ids = [prompt.id for prompt in prompts]
    stored = {i for (i,) in tx.rows(f"select prompt_id from prompts where prompt_id in {LISTED}", [ids])}
    members = {
        i
        for (i,) in tx.rows(
            f"select prompt_id from prompt_sets where prompt_set = ? and prompt_id in {LISTED}",
            [prompt_set, ids],
        )
    }
    fresh = {prompt.id: prompt for prompt in prompts}
    tx.insert("prompts", (row_of(prompt, now) for i, prompt in fresh.items() if i not in stored))
    joining = [i for i in fresh if i not in members]
    tx.insert("prompt_sets", ({"prompt_set": prompt_set, "prompt_id": i} for i in joining))
    return Added(len(joining), len(prompts) - len(joining))


def prompt_of(row: Row) -> Prompt:
    return Prompt(row["prompt_id"], row["text"], row["reference"], row["verifier"], json.loads(row["metadata"]))


def row_of(prompt: Prompt, now: datetime) -> Row:
    return {
        "prompt_id": prompt.id,
        "text": prompt.text,
        "reference": prompt.reference,
        "verifier": prompt.verifier,
        "metadata": canonical_json(prompt.metadata),
        "added_at": now,
    }
