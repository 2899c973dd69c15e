"""From a line of somebody else's rollout file to the native import row, by a mapping of fields.

A path is dotted (``a.b``); ``*`` as the path of the rollouts takes every value of the row that is an object with the
text in it, in the order of the file.
"""

import re
from typing import Any

from pydantic import Field

from curation.choice import Choice, Metadata


class RolloutIn(Choice):
    """One recorded completion."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    reward: float | None = Field(None, ge=0, le=1)
    """The recorder's own label. Kept for comparison; our verifier's verdict is what counts."""


class GroupIn(Choice):
    """The native import row: one prompt and its recorded rollouts."""

    prompt: str = Field(min_length=1)
    reference: str = ""
    """May be empty where the verifier needs none."""
    verifier: str = "math"
    metadata: Metadata = Field(default_factory=dict)
    rollouts: tuple[RolloutIn, ...] = Field(min_length=1)


class FieldMapping(Choice):
    """Where the fields of a native row stand in a foreign one."""

    prompt: str
    reference: str
    reference_pattern: str | None = None
    """Regular expression; its first group, or all of it, is the reference. The last match counts."""
    rollouts: str
    text: str | None = None
    """Path of the text within a rollout; None when the rollouts are plain strings."""
    label: str | None = None
    """Path of a boolean or a number from 0 to 1: within a rollout, or, for plain strings, a list beside them."""
    verifier: str = "math"

    def apply(self, row: dict[str, Any]) -> GroupIn:
        """Raises ValueError (a pydantic ValidationError is one) that names the field at fault."""
        reference = str(_at(row, self.reference))
        if self.reference_pattern is not None:
            found = list(re.finditer(self.reference_pattern, reference, re.MULTILINE))
            if not found:
                raise ValueError(f"{self.reference}: no match for {self.reference_pattern!r} in {reference[-80:]!r}")
            reference = found[-1][1 if found[-1].re.groups else 0] or ""
        return GroupIn(
            prompt=_at(row, self.prompt),
            reference=reference.strip(),
            verifier=self.verifier,
            rollouts=tuple(self._rollouts(row)),
        )

    def _rollouts(self, row: dict[str, Any]) -> list[RolloutIn]:
        if self.rollouts == "*":
            found = [v for v in row.values() if isinstance(v, dict) and self.text and _has(v, self.text)]
        else:
            found = _at(row, self.rollouts)
            if not isinstance(found, list):
                raise ValueError(f"{self.rollouts}: a list of rollouts was expected")
        if self.text is None:
            labels = _at(row, self.label) if self.label else [None] * len(found)
            return [RolloutIn(text=t, reward=_reward(v)) for t, v in zip(found, labels, strict=True)]
        return [
            RolloutIn(text=_at(v, self.text), reward=_reward(_at(v, self.label) if self.label else None)) for v in found
        ]


def _at(value: Any, path: str) -> Any:
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            raise ValueError(f"{path}: there is no field {key!r}")
        value = value[key]
    return value


def _has(value: dict[str, Any], path: str) -> bool:
    try:
        _at(value, path)
    except ValueError:
        return False
    return True


def _reward(label: Any) -> float | None:
    return None if label is None else float(label)
