"""What the rows of a frozen dataset hold, for each shape: TRL's own columns first, lineage behind them.

TRL ignores columns that it does not know.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa

from curation.curate import LeftOut, advantages_of
from curation.recipe import Recipe, Shape
from curation.records import Group, GroupKind, Pair, Picked, Row, kind_of

Columns = dict[str, Any]
Temperatures = dict[str, float | None]

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
ABOUT_ONE = [("reward", pa.float64()), ("tokens", pa.int32()), ("index", pa.int32()), ("pass_rate", pa.float64())]

COLUMNS: dict[Shape, pa.Schema] = {
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
            *LINEAGE,
        ]
    ),
}

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


def rows_in(rows: Sequence[Row], recipe: Recipe) -> int:
    """How many rows `rows_of` makes."""
    return len({row.group.prompt.id for row in rows}) if recipe.shape is Shape.PROMPTS else len(rows)


def rows_of(rows: Sequence[Row], temperatures: Temperatures, recipe: Recipe) -> list[Columns]:
    """As the columns of the recipe's shape have them, in the same order."""
    if recipe.shape is Shape.PROMPTS:
        by_prompt = groupby(rows, key=lambda row: row.group.prompt.id)
        return [_prompt(list(of_prompt)) for _, of_prompt in by_prompt]
    make = _MAKE[recipe.shape]
    made = (make(row, recipe) | _lineage(row.group, temperatures) for row in rows)
    return [{name: columns[name] for name in COLUMNS[recipe.shape].names} for columns in made]


def _pair(pair: Pair, recipe: Recipe) -> Columns:
    group = pair.group
    chosen, rejected = group.rollouts_G[pair.chosen], group.rollouts_G[pair.rejected]
    return {
        "prompt": group.prompt.text,
        "chosen": chosen.text,
        "rejected": rejected.text,
        "margin": pair.margin,
        "chosen_reward": chosen.reward,
        "rejected_reward": rejected.reward,
        "chosen_tokens": len(chosen.completion.token_ids_T) or None,
        "rejected_tokens": len(rejected.completion.token_ids_T) or None,
        "chosen_index": pair.chosen,
        "rejected_index": pair.rejected,
    }


def _labelled(row: Picked, recipe: Recipe) -> Columns:
    right = _right(row, recipe)
    return right | {"label": right["reward"] >= 1.0}


def _right(row: Picked, recipe: Recipe) -> Columns:
    [index] = row.indices
    rollout = row.group.rollouts_G[index]
    return {
        "prompt": row.group.prompt.text,
        "completion": rollout.text,
        "reward": rollout.reward,
        "tokens": len(rollout.completion.token_ids_T) or None,
        "index": index,
        "pass_rate": _mean(row.group.rewards_G),
    }


def _group(row: Picked, recipe: Recipe) -> Columns:
    kept = [row.group.rollouts_G[index] for index in row.indices]
    return {
        "prompt": row.group.prompt.text,
        "completions": [rollout.text for rollout in kept],
        "rewards": [rollout.reward for rollout in kept],
        "advantages": advantages_of(row, recipe),
        "token_ids": [list(rollout.completion.token_ids_T) for rollout in kept],
        "logprobs": [list(rollout.completion.logprobs_T) for rollout in kept],
        "indices": list(row.indices),
    }


_MAKE: dict[Shape, Callable[[Any, Recipe], Columns]] = {
    Shape.PAIRS: _pair,
    Shape.LABELLED: _labelled,
    Shape.RIGHT: _right,
    Shape.GROUPS: _group,
}


def _prompt(rows: list[Row]) -> Columns:
    prompt = rows[0].group.prompt
    groups = [[row.group.rollouts_G[i].reward or 0.0 for i in row.indices] for row in rows]
    rewards = [reward for rewards_G in groups for reward in rewards_G]
    return {
        "prompt": prompt.text,
        "reference": prompt.reference,
        "verifier": prompt.verifier,
        "pass_rate": _mean(rewards),
        "groups": len(groups),
        "informative": sum(kind_of(rewards_G) is GroupKind.INFORMATIVE for rewards_G in groups),
        "rollouts": len(rewards),
        "prompt_id": prompt.id,
    }


def left_out_rows(left_out: Iterable[LeftOut]) -> list[Columns]:
    return [
        {
            "reason": one.reason.value,
            "detail": one.detail,
            "indices": list(one.indices),
            "prompt_id": one.group.prompt.id,
            "group_id": one.group.id,
            "run": one.group.run,
            "visit": one.group.visit,
            "policy_version": one.group.policy_version,
        }
        for one in left_out
    ]


def _lineage(group: Group, temperatures: Temperatures) -> Columns:
    return {
        "prompt_id": group.prompt.id,
        "group_id": group.id,
        "run": group.run,
        "visit": group.visit,
        "policy_version": group.policy_version,
        "temperature": temperatures[group.id],
        "verifier": group.rollouts_G[0].verdict.verifier,
    }


def _mean(rewards: Iterable[float]) -> float:
    rewards = list(rewards)
    return sum(rewards) / len(rewards)
