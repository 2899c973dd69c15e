"""Rows as a long training leaves them: made up, but with the sizes, the skew and the entropy of real ones.

Groups of 8, completions of 1.5 KB of English-like words and 300 tokens with logprobs, 30 policy versions in ten runs, a
few prompts that are sampled much oftener than the rest, a pass rate of its own for each prompt that grows with the
version, and a visit for each group.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

GROUP_SIZE = 8
RUNS, VERSIONS = 10, 30
GROUPS_PER_PROMPT = 60
TOKENS, CHARACTERS = 300, 1500
VOCABULARY = 128_000
NOW = np.datetime64("2026-01-01T00:00:00", "us")

Tables = dict[str, pa.Table]
Rng = np.random.Generator


class Size(NamedTuple):
    groups: int

    @property
    def prompts(self) -> int:
        return max(8, self.groups // GROUPS_PER_PROMPT)

    @property
    def groups_of_run(self) -> int:
        return -(-self.groups // RUNS)


def run_name(number: int) -> str:
    return f"run{number}"


def prompts(size: Size, schema: pa.Schema) -> pa.Table:
    numbers = np.arange(size.prompts)
    return _table(
        schema,
        {
            "prompt_id": _names("p", numbers),
            "text": pa.array([f"What is {i} + {7 * i}? Show your work, then answer." for i in numbers.tolist()]),
            "reference": pa.array([str(8 * i) for i in numbers.tolist()]),
            "verifier": _all("math", len(numbers)),
            "metadata": _all("{}", len(numbers)),
            "added_at": _all(NOW, len(numbers)),
        },
    )


def batches(size: Size, schemas: Mapping[str, pa.Schema], each: int, seed: int) -> Iterator[Tables]:
    """Visits, groups and rollouts of so many groups each, in the order of their numbers."""
    rng = np.random.default_rng(seed)
    words = _words(rng)
    solvable = np.clip(rng.beta(0.5, 0.7, size.prompts), 0, 1)
    visits = np.zeros((RUNS, size.prompts), dtype=np.int32)
    for first in range(0, size.groups, each):
        numbers = np.arange(first, min(first + each, size.groups))
        yield _batch(numbers, size, schemas, rng, words, solvable, visits)


def _batch(
    numbers: Any, size: Size, schemas: Mapping[str, pa.Schema], rng: Rng, words: pa.Array, solvable: Any, visits: Any
) -> Tables:
    runs = numbers // size.groups_of_run
    prompt = (size.prompts * rng.random(len(numbers)) ** 2).astype(np.int64)
    visit = np.empty(len(numbers), dtype=np.int32)
    for i, (run, one) in enumerate(zip(runs.tolist(), prompt.tolist(), strict=True)):
        visit[i] = visits[run, one]
        visits[run, one] += 1
    version = 1 + (numbers % size.groups_of_run) * VERSIONS // size.groups_of_run
    rate = solvable[prompt] + (1 - solvable[prompt]) * 0.3 * version / VERSIONS * (solvable[prompt] > 0.05)
    right = rng.random((len(numbers), GROUP_SIZE)) < rate[:, None]
    tokens = np.clip(rng.lognormal(np.log(TOKENS) - 0.08, 0.4, right.shape), 8, 2048).astype(np.int32)
    of_group = {
        "seq": numbers + 1,
        "group_id": _names("g", numbers),
        "run": pa.array([run_name(run) for run in runs.tolist()]),
        "prompt_id": _names("p", prompt),
        "policy": _all("policy", len(numbers)),
        "policy_version": version,
        "visit": visit,
        "job": _all("j_made_up", len(numbers)),
    }
    return {
        "visits": _table(schemas["visits"], _visits(of_group, len(numbers))),
        "groups": _table(schemas["groups"], _groups(of_group, right, tokens)),
        "rollouts": _table(schemas["rollouts"], _rollouts(of_group, right.ravel(), tokens.ravel(), rng, words)),
    }


def _visits(of_group: dict[str, Any], n: int) -> dict[str, Any]:
    epoch = of_group["visit"]
    return of_group | {
        "epoch": epoch,
        "step": of_group["policy_version"],
        "round": np.zeros(n, dtype=np.int32),
        "action": _all("sampled", n),
        "keep_probability": np.ones(n),
        "reason": _all("never skipped", n),
        "decided_at": _all(NOW, n),
        "rollouts": np.full(n, GROUP_SIZE, dtype=np.int32),
    }


def _groups(of_group: dict[str, Any], right: Any, tokens: Any) -> dict[str, Any]:
    n = len(right)
    wins = right.sum(axis=1)
    kinds = np.where(wins == 0, "hard", np.where(wins == GROUP_SIZE, "easy", "informative"))
    ends = np.arange(0, n * GROUP_SIZE + 1, GROUP_SIZE, dtype=np.int32)
    outcomes = pa.MapArray.from_arrays(np.arange(n + 1, dtype=np.int32), _all("scored", n), pa.array([GROUP_SIZE] * n))
    return of_group | {
        "temperature": np.ones(n),
        "kind": pa.array(kinds),
        "rewards": pa.ListArray.from_arrays(ends, pa.array(right.ravel().astype(float))),
        "rollouts": np.full(n, GROUP_SIZE, dtype=np.int32),
        "tokens": tokens.sum(axis=1),
        "outcomes": outcomes,
        "truncated": np.zeros(n, dtype=np.int32),
        "sampling_seconds": tokens.max(axis=1) * 0.02,
        "verifying_seconds": np.full(n, 0.1),
        "stored_at": pa.array(NOW + np.asarray(of_group["seq"]) * np.timedelta64(20, "ms")),
        "has_text": np.ones(n, dtype=bool),
    }


def _rollouts(of_group: dict[str, Any], right: Any, tokens: Any, rng: Rng, words: pa.Array) -> dict[str, Any]:
    n = len(right)
    ends = np.concatenate([[0], np.cumsum(tokens)]).astype(np.int32)
    text = _texts(words, tokens * CHARACTERS // TOKENS, rng)
    logprobs = -rng.standard_exponential(ends[-1], dtype=np.float32) * 0.4
    sizes = pa.compute.binary_length(text)
    shared = {
        name: pa.array(values).take(np.repeat(np.arange(n // GROUP_SIZE), GROUP_SIZE))
        for name, values in of_group.items()
    }
    return shared | {
        "idx": np.tile(np.arange(GROUP_SIZE, dtype=np.int32), n // GROUP_SIZE),
        "tokens": tokens,
        "characters": sizes,
        "bytes": sizes,
        "text_hash": rng.integers(0, 2**63, n, dtype=np.uint64),
        "logprob": np.add.reduceat(logprobs, ends[:-1]).astype(float),
        "finish_reason": _all("stop", n),
        "outcome": _all("scored", n),
        "reward": right.astype(float),
        "verifier": _all("math@0.9.0", n),
        "elapsed": np.round(rng.random(n) * 0.02, 6),
        "detail": pa.array(rng.integers(0, 5000, n).astype(str)),
        "recorded_reward": pa.nulls(n, pa.float64()),
        "weight_versions": pa.array([[]] * n, _weight_versions()),
        "text": text,
        "token_ids": pa.ListArray.from_arrays(ends, _token_ids(ends[-1], rng)),
        "logprobs": pa.ListArray.from_arrays(ends, pa.array(logprobs)),
    }


def _weight_versions() -> pa.DataType:
    span = pa.struct([("version", pa.int32()), ("start", pa.int32()), ("end", pa.int32())])
    return pa.list_(span)


def _token_ids(n: int, rng: Rng) -> pa.Array:
    """Common ones come often, as in any language."""
    return pa.array((VOCABULARY ** rng.random(n)).astype(np.int32))


def _words(rng: Rng) -> pa.Array:
    """One long text of words, from which completions are cut."""
    letters = np.frombuffer(b"etaoinshrdlucmfwypvbgkjqxz", dtype=np.uint8)
    lengths = rng.integers(2, 10, 20_000)
    vocabulary = [bytes(letters[(26 * rng.random(k) ** 2).astype(int)]) for k in lengths]
    picks = (len(vocabulary) ** rng.random(4_000_000)).astype(int) - 1
    return np.frombuffer(b" ".join(vocabulary[i] for i in picks.tolist()), dtype=np.uint8)


def _texts(words: Any, lengths: Any, rng: Rng) -> pa.Array:
    starts = rng.integers(0, len(words) - lengths.max(), len(lengths))
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    places = np.repeat(starts - ends[:-1], lengths) + np.arange(ends[-1])
    return pa.StringArray.from_buffers(len(lengths), pa.py_buffer(ends), pa.py_buffer(words[places]))


def _names(prefix: str, numbers: Any) -> pa.Array:
    """Ids as content keys are: 32 characters without any order."""
    mixed = (np.asarray(numbers, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return pa.array([f"{prefix}_{one:016x}{one ^ 0x5DEECE66D:016x}" for one in mixed.tolist()])


def _all(value: Any, n: int) -> pa.Array:
    return pa.array(np.full(n, value)) if isinstance(value, np.datetime64) else pa.array([value] * n)


def _table(schema: pa.Schema, columns: dict[str, Any]) -> pa.Table:
    return pa.table([pa.array(columns[field.name]).cast(field.type) for field in schema], schema=schema)
