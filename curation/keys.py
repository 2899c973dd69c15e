"""Names and random draws that depend on their arguments only: not on call order, process, worker or restart."""

import hashlib
import json
import random
from typing import Any


def digest(*parts: object, size: int = 16) -> str:
    """Hex name of `size` bytes for the parts; parts that read differently have different names."""
    text = json.dumps([str(part) for part in parts], ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()


def canonical_json(value: Any) -> str:
    """One spelling per JSON value: sorted keys, no spaces. Raises ValueError on NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def prompt_id(text: str, reference: str, verifier: str, metadata: dict[str, Any]) -> str:
    """A prompt is its content: the same question with the same judge is the same prompt in every set."""
    return "p_" + digest(text, reference, verifier, canonical_json(metadata))


def seed_for(*parts: object) -> int:
    """A 63-bit seed for the parts; fits every engine's signed integer."""
    return int(digest(*parts, size=8), 16) >> 1


def rng_for(*parts: object) -> random.Random:
    """A generator of its own for the parts."""
    return random.Random(seed_for(*parts))


def rollout_id(group_id: str, index: int) -> str:
    """Names a rollout by its group and its place there."""
    return f"{group_id}.{index}"
