"""What the rows of a frozen dataset hold, for each shape: TRL's own columns first, lineage behind them.

- TRL ignores columns that it does not know.
- Rows are made a part at a time, with the texts of that part only.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from curation.conversations import MESSAGES, as_messages
from curation.curate import LeftOut
from curation.judged import Row
from curation.keys import rollout_id
from curation.recipe import GroupRule, Shape, TextFormat
from curation.records import GroupKind, kind_of
from service.store.judged import Judged

Columns = dict[str, Any]
T = TypeVar("T")
ROWS_PER_PART, BYTES_PER_PART = 10_000, 2**26
"""What a writer holds at once, and, as a row group of the file, a reader: so many rows, of about so much text and
tokens unless a single row has more."""
BYTES_PER_TOKEN = 8
"""Id and logprob."""

LINEAGE = [
    ("prompt_id", pa.string()),
    ("group_id", pa.string()),
    ("run", pa.string()),
    ("visit", pa.int32()),
    ("policy_version", pa.int32()),
    ("temperature", pa.float64()),
    ("verifier", pa.string()),
]
ONE = [("prompt", pa.string()), ("completion", pa.string())]
ABOUT_ONE = [
    ("reward", pa.float64()),
    ("tokens", pa.int32()),
    ("index", pa.int32()),
    ("rollout_id", pa.string()),
    ("pass_rate", pa.float64()),
]
MESSAGES_TYPE = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

STANDARD: dict[Shape, pa.Schema] = {
    Shape.PAIRS: pa.schema(
        [
            ("prompt", pa.string()),
            ("chosen", pa.string()),
            ("rejected", pa.string()),
            ("margin", pa.float64()),
            ("chosen_reward", pa.float64()),
            ("rejected_reward", pa.float64()),
            ("chosen_tokens", pa.int32()),
            ("rejected_tokens", pa.int32()),
            ("chosen_index", pa.int32()),
            ("rejected_index", pa.int32()),
            ("chosen_id", pa.string()),
            ("rejected_id", pa.string()),
            ("pass_rate", pa.float64()),
            *LINEAGE,
        ]
    ),
    Shape.LABELLED: pa.schema([*ONE, ("label", pa.bool_()), *ABOUT_ONE, *LINEAGE]),
    Shape.RIGHT: pa.schema([*ONE, *ABOUT_ONE, *LINEAGE]),
    Shape.PROMPTS: pa.schema(
        [
            ("prompt", pa.string()),
            ("reference", pa.string()),
            ("verifier", pa.string()),
            ("pass_rate", pa.float64()),
            ("groups", pa.int32()),
            ("informative", pa.int32()),
            ("rollouts", pa.int32()),
            ("prompt_id", pa.string()),
        ]
    ),
    Shape.GROUPS: pa.schema(
        [
            ("prompt", pa.string()),
            ("completions", pa.list_(pa.string())),
            ("rewards", pa.list_(pa.float64())),
            ("advantages", pa.list_(pa.float64())),
            ("token_ids", pa.list_(pa.list_(pa.int32()))),
            ("logprobs", pa.list_(pa.list_(pa.float32()))),
            ("indices", pa.list_(pa.int32())),
            ("rollout_ids", pa.list_(pa.string())),
            ("pass_rate", pa.float64()),
            *LINEAGE,
        ]
    ),
}
CONVERSATIONAL = {
    "prompt": MESSAGES_TYPE,
    "chosen": MESSAGES_TYPE,
    "rejected": MESSAGES_TYPE,
    "completion": MESSAGES_TYPE,
    "completions": pa.list_(MESSAGES_TYPE),
}
"""Types of the columns that are text in the standard format."""

LEFT_OUT = pa.schema(
    [
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("indices", pa.list_(pa.int32())),
        ("prompt_id", pa.string()),
        ("group_id", pa.string()),
        ("run", pa.string()),
        ("visit", pa.int32()),
        ("policy_version", pa.int32()),
    ]
)
"""What gave no row, or was left out again."""


def count(rows: Sequence[Row], shape: Shape) -> int:
    """How many rows `tables_of` makes."""
    return len({row.origin.prompt_id for row in rows}) if shape is Shape.PROMPTS else len(rows)


def columns_of(recipe: GroupRule) -> pa.Schema:
    """Of the rows that it makes."""
    standard = STANDARD[recipe.shape]
    if recipe.format is TextFormat.STANDARD:
        return standard
    return pa.schema([(field.name, CONVERSATIONAL.get(field.name, field.type)) for field in standard])


def tables_of(rows: Sequence[Row], recipe: GroupRule, judged: Judged) -> Iterator[pa.Table]:
    """The rows in their order, as the recipe's columns have them, in parts."""
    schema = columns_of(recipe)
    make = _tables_of_prompts if recipe.shape is Shape.PROMPTS else _tables
    for columns in make(rows, recipe, judged):
        if recipe.format is TextFormat.CONVERSATIONAL:
            columns = {name: _answered(name, values) for name, values in columns.items()}
        yield _table(columns, schema)


ASKED_FOR = {
    TextFormat.STANDARD: ("text",),
    TextFormat.CONVERSATIONAL: ("text", f"metadata->'$.{MESSAGES}' as {MESSAGES}"),
}
"""Of each prompt."""


def _asked(known: pa.Table, format: TextFormat) -> pa.ChunkedArray | pa.Array:
    """What each prompt says, as the column has it."""
    if format is TextFormat.STANDARD:
        return known["text"]
    prompts = zip(known["text"].to_pylist(), known[MESSAGES].to_pylist(), strict=True)
    kept = (as_messages(text, {MESSAGES: json.loads(said)} if said else {}) for text, said in prompts)
    return pa.array(list(kept), MESSAGES_TYPE)


def _answered(name: str, values: Any) -> Any:
    """Columns of completions as messages of an assistant; others as they are."""
    match CONVERSATIONAL.get(name):
        case None:
            return values
        case _ if name == "prompt":
            return values
        case wanted if wanted == MESSAGES_TYPE:
            return _as_messages(values.combine_chunks())
        case _:
            return pa.ListArray.from_arrays(values.offsets, _as_messages(values.values))


def _as_messages(texts: pa.Array) -> pa.Array:
    """A list of one message for each text."""
    message = pa.StructArray.from_arrays([pa.repeat(pa.scalar("assistant"), len(texts)), texts], ["role", "content"])
    return pa.ListArray.from_arrays(np.arange(len(texts) + 1, dtype=np.int32), message)


def _tables(rows: Sequence[Row], recipe: GroupRule, judged: Judged) -> Iterator[Columns]:
    """Of each part all columns, the completions as texts."""
    with_tokens = recipe.shape is Shape.GROUPS
    parts = _parts(rows, [_bytes_of(row, with_tokens=with_tokens) for row in rows])
    asked = [list(dict.fromkeys(row.origin.prompt_id for row in part)) for part in parts]
    prompts = judged.prompts(asked, ASKED_FOR[recipe.format])
    texts = judged.texts(parts, with_tokens=with_tokens)
    for part, prompt_ids, known, said in zip(parts, asked, prompts, texts, strict=True):
        place = {prompt_id: i for i, prompt_id in enumerate(prompt_ids)}
        of_row = pa.array([place[row.origin.prompt_id] for row in part])
        prompt = _asked(known, recipe.format).take(of_row)
        yield {"prompt": prompt} | _own(part, recipe.shape, said) | _lineage(part)


def _bytes_of(row: Row, *, with_tokens: bool) -> int:
    return row.group.prompt_bytes + sum(row.bytes) + (BYTES_PER_TOKEN * sum(row.tokens) if with_tokens else 0)


def _parts(units: Sequence[T], sizes: Sequence[int]) -> list[Sequence[T]]:
    """The units in their order, cut where the next one would be too much."""
    cuts, size = [0], 0
    for place, of_unit in enumerate(sizes):
        size += of_unit
        if place - cuts[-1] == ROWS_PER_PART or (size > BYTES_PER_PART and place > cuts[-1]):
            cuts.append(place)
            size = of_unit
    return [units[start:end] for start, end in pairwise([*cuts, len(units)])]


def tables_of_left_out(left_out: Sequence[LeftOut]) -> Iterator[pa.Table]:
    for part in _parts(left_out, [0] * len(left_out)):
        columns: Columns = {
            "reason": [one.reason.value for one in part],
            "detail": [one.detail for one in part],
            "indices": [list(one.indices) for one in part],
        }
        for name in ("prompt_id", "group_id", "run", "visit", "policy_version"):
            columns[name] = [getattr(one.origin, name) for one in part]
        yield _table(columns, LEFT_OUT)


def _tables_of_prompts(rows: Sequence[Row], recipe: GroupRule, judged: Judged) -> Iterator[Columns]:
    by_prompt = [list(of_prompt) for _, of_prompt in groupby(rows, key=lambda row: row.origin.prompt_id)]
    parts = _parts(by_prompt, [groups[0].group.prompt_bytes for groups in by_prompt])
    asked = [[groups[0].origin.prompt_id for groups in part] for part in parts]
    prompts = judged.prompts(asked, [*ASKED_FOR[recipe.format], "reference", "verifier"])
    for part, known in zip(parts, prompts, strict=True):
        yield {
            "prompt": _asked(known, recipe.format),
            "reference": known["reference"],
            "verifier": known["verifier"],
            "pass_rate": [_mean([reward for group in groups for reward in group.rewards]) for groups in part],
            "groups": [len(groups) for groups in part],
            "informative": [sum(kind_of(g.rewards) is GroupKind.INFORMATIVE for g in groups) for groups in part],
            "rollouts": [sum(len(group.indices) for group in groups) for groups in part],
            "prompt_id": [groups[0].origin.prompt_id for groups in part],
        }


def _own(rows: Sequence[Row], shape: Shape, said: pa.Table) -> Columns:
    """The columns of a shape, without prompt and lineage; `said` holds the texts of all rollouts of the rows."""
    match shape:
        case Shape.PAIRS:
            return _pairs(rows, said["text"])
        case Shape.LABELLED:
            return _singles(rows, said["text"]) | {"label": [row.rewards[0] >= 1.0 for row in rows]}
        case Shape.RIGHT:
            return _singles(rows, said["text"])
        case Shape.GROUPS:
            return _groups(rows, said)
        case _:
            raise ValueError(f"rows of shape {shape} have no texts of rollouts")


def _pairs(rows: Sequence[Row], texts: pa.ChunkedArray) -> Columns:
    columns: Columns = {"margin": [row.rewards[0] - row.rewards[1] for row in rows]}
    for place, side in enumerate(("chosen", "rejected")):
        columns |= {
            side: texts.take(pa.array(np.arange(place, 2 * len(rows), 2))),
            f"{side}_reward": [row.rewards[place] for row in rows],
            f"{side}_tokens": [row.tokens[place] or None for row in rows],
            f"{side}_index": [row.indices[place] for row in rows],
            f"{side}_id": [rollout_id(row.origin.group_id, row.indices[place]) for row in rows],
        }
    return columns


def _singles(rows: Sequence[Row], texts: pa.ChunkedArray) -> Columns:
    return {
        "completion": texts,
        "reward": [row.rewards[0] for row in rows],
        "tokens": [row.tokens[0] or None for row in rows],
        "index": [row.indices[0] for row in rows],
        "rollout_id": [rollout_id(row.origin.group_id, row.indices[0]) for row in rows],
    }


def _groups(rows: Sequence[Row], said: pa.Table) -> Columns:
    ends = np.cumsum([0, *(len(row.indices) for row in rows)], dtype=np.int32)
    of_group = {name: pa.ListArray.from_arrays(ends, said[name].combine_chunks()) for name in said.column_names}
    return {
        "completions": of_group["text"],
        "rewards": [row.rewards for row in rows],
        "advantages": [row.advantages for row in rows],
        "token_ids": of_group["token_ids"],
        "logprobs": of_group["logprobs"],
        "indices": [row.indices for row in rows],
        "rollout_ids": [[rollout_id(row.origin.group_id, index) for index in row.indices] for row in rows],
    }


def _lineage(rows: Sequence[Row]) -> Columns:
    of_group: Columns = {name: [getattr(row.origin, name) for row in rows] for name, _ in LINEAGE}
    return of_group | {"pass_rate": [row.pass_rate for row in rows]}


def _table(columns: Columns, schema: pa.Schema) -> pa.Table:
    def as_told(field: pa.Field) -> pa.Array:
        values = columns[field.name]
        return pa.array(values, field.type) if isinstance(values, list) else values.cast(field.type)

    return pa.table([as_told(field) for field in schema], schema=schema)


def _mean(rewards: Sequence[float]) -> float:
    return sum(rewards) / len(rewards)
