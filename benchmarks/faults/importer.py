"""Imports recorded groups and adds prompts, each with a key of its own, until it is told that they are stored."""

import random
from typing import Any

from benchmarks.faults.desk import Desk, request
from benchmarks.faults.journal import Json

RUN, PROMPT_SET = "recorded", "grown"
"""Where the groups go, and the set that grows while another run samples it."""
IMPORT, PROMPTS = "import", "prompts"
"""What is written into the journal."""
GIVEN_UP_SHARE = 0.12


def act(desk: Desk, op: int) -> None:
    rng = desk.rng(op)
    kind = rng.random()
    is_given_up = rng.random() < GIVEN_UP_SHARE
    if kind < 0.15:
        desk.repeat(op, IMPORT)
        return
    if kind < 0.4:
        rows = [_prompt(op, row, rng) for row in range(rng.randint(1, 4))]
        asked, what = request("/v1/prompts", rows, f"prompts {op}", set=PROMPT_SET), PROMPTS
    else:
        rows = [_group(op, row, rng) for row in range(rng.randint(1, 6))]
        asked, what = request("/v1/rollouts/import", rows, f"import {op}", run=RUN), IMPORT
    if rng.random() < 0.1:
        rows[rng.randrange(len(rows))]["verifier"] = "nobody"
    desk.tell(op, what, asked, desk.post, is_given_up=is_given_up)


def _prompt(op: int, row: int, rng: random.Random) -> Json:
    left, right = rng.randint(10, 999), rng.randint(10, 999)
    metadata = {"operation": op, "row": row}
    return {
        "prompt": f"{left} + {right} =",
        "reference": str(left + right),
        "verifier": "numeric",
        "metadata": metadata,
    }


def _group(op: int, row: int, rng: random.Random) -> Json:
    """Right and wrong answers, of which the label says so: no two operations have a group in common."""
    left, right = rng.randint(10, 999), rng.randint(10, 999)
    rollouts = []
    for _ in range(rng.randint(2, 5)):
        off = rng.choice((0, 1))
        rollouts.append({"text": f"so it is <answer>{left + right + off}</answer>", "reward": 1.0 - off})
    return {
        "prompt": f"{left} + {right} = ({op}, {row})",
        "reference": str(left + right),
        "verifier": rng.choice(("numeric", "numeric", "recorded")),
        "rollouts": rollouts,
    }


def stored_of(rows: list[dict[str, Any]]) -> dict[str, tuple[list[str], list[float]]]:
    """Texts and rewards of each group that is imported, by the text of its prompt."""
    return {
        row["prompt"]: ([one["text"] for one in row["rollouts"]], [one["reward"] for one in row["rollouts"]])
        for row in rows
    }
