"""From a row of somebody else's rollout file to the native import row, by a mapping of fields.

- A row holds the rollouts of a group side by side, or a single rollout; see `FieldMapping.is_single`.
- A path is dotted (``a.b``). ``*`` in a path of texts takes every member of a list that has the rest, and joins what
  they say by lines; ``*`` as the path of the rollouts takes every value of the row that is an object with the text.
- Prompts and texts may be chat messages (`curation.conversations`).
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Any

from pydantic import model_validator

from curation.choice import Choice
from curation.conversations import MESSAGES, asked_and_answered, is_conversation, messages_of, text_of
from curation.keys import canonical_json
from curation.recorded import RECORDED, GroupIn, Numbered, RolloutIn, merged

MASKED = -100
"""In a mask, a token that the policy did not write."""
ONLY_NUMBER = "*"


def _check_range(low: float, high: float) -> None:
    if not 0 < high - low < math.inf:
        raise ValueError(f"no label is between {low:g} and {high:g}")


class FieldMapping(Choice):
    """Where the fields of a native row stand in a foreign one."""

    prompt: str | None
    """None where each rollout is a whole conversation: what comes before its first answer."""
    reference: str | None = "reference"
    reference_pattern: str | None = None
    """Regular expression; its first group, or all of it, is the reference. The last match counts."""
    rollouts: str | None
    """None where a row is a single rollout."""
    text: str | None = None
    """Path of the text within a rollout; None when the rollouts are plain texts."""
    label: str | None = None
    """Path of a boolean or a number: within a rollout, or, for plain texts, a list beside them. ``*`` is the only
    number of a single rollout that is neither `step` nor in `beside`."""
    beside: tuple[str, ...] = ()
    label_range: tuple[float, float] = (0.0, 1.0)
    """What the labels are between; they become rewards from 0 to 1."""
    step: str | None = None
    """Path of a whole number that becomes the policy version."""
    token_ids: str | None = None
    """Path of lists beside plain texts."""
    masks: str | None = None
    """Path of lists as long as those of `token_ids`, with -100 for tokens that the policy did not write."""
    verifier: str = "math"

    @model_validator(mode="after")
    def _can_be_used(self) -> "FieldMapping":
        _check_range(*self.label_range)
        try:
            re.compile(self.reference_pattern or "")
        except re.error as error:
            raise ValueError(f"reference_pattern {self.reference_pattern!r} is none: {error}") from None
        return self

    @property
    def is_single(self) -> bool:
        """Whether a row is one rollout, so that rows have to be merged to groups."""
        return self.rollouts is None

    def apply(self, row: Any) -> GroupIn:
        """Raises ValueError (a pydantic ValidationError is one) that names the field at fault."""
        if not isinstance(row, dict):
            raise ValueError("an object was expected")
        rollouts = self._rollouts(row)
        asked = _at(row, self.prompt) if self.prompt else self._asked(rollouts)
        messages = messages_of(asked) if is_conversation(asked) else []
        says_more = len(messages) > 1 or any(message["role"] != "user" for message in messages)
        return GroupIn(
            prompt=text_of(asked),
            reference=self._reference(row),
            verifier=self.verifier,
            metadata={MESSAGES: messages} if says_more else {},
            policy_version=_at(row, self.step) if self.step else 0,
            rollouts=tuple(self._recorded(row, rollouts)),
        )

    def _reference(self, row: dict[str, Any]) -> str:
        if self.reference is None or (self.verifier == RECORDED and not _has(row, self.reference)):
            return ""
        reference = _spelled(_at(row, self.reference))
        if self.reference_pattern is not None:
            found = list(re.finditer(self.reference_pattern, reference, re.MULTILINE))
            if not found:
                raise ValueError(f"{self.reference}: no match for {self.reference_pattern!r} in {reference[-80:]!r}")
            reference = found[-1][1 if found[-1].re.groups else 0] or ""
        return reference.strip()

    def _rollouts(self, row: dict[str, Any]) -> list[Any]:
        if self.rollouts is None:
            return [row]
        if self.rollouts == "*":
            return [v for v in row.values() if isinstance(v, dict) and self.text and _has(v, self.text)]
        found = _at(row, self.rollouts)
        if not isinstance(found, list):
            raise ValueError(f"{self.rollouts}: a list of rollouts was expected")
        return found

    def _asked(self, rollouts: Sequence[Any]) -> list[dict[str, str]]:
        asked = [asked_and_answered(rollout)[0] if is_conversation(rollout) else [] for rollout in rollouts]
        if not asked or not asked[0] or any(other != asked[0] for other in asked):
            raise ValueError(f"{self.rollouts}: conversations that begin with the same question were expected")
        return asked[0]

    def _recorded(self, row: dict[str, Any], rollouts: Sequence[Any]) -> Iterator[RolloutIn]:
        if self.text is not None:
            for rollout in rollouts:
                text = "\n".join(filter(None, map(text_of, _every(rollout, self.text))))
                yield RolloutIn(text=text, reward=self._reward(self._label(rollout)))
            return
        labels = _beside(row, self.label, rollouts)
        tokens = _beside(row, self.token_ids, rollouts)
        masks = _beside(row, self.masks, rollouts)
        for rollout, label, token_ids, mask in zip(rollouts, labels, tokens, masks, strict=True):
            answered = asked_and_answered(rollout)[1] if is_conversation(rollout) else None
            text = text_of(rollout if answered is None else answered)
            # What several answers say is not what their tokens say: others spoke in between.
            own = _own(token_ids, mask) if answered is None or len(answered) == 1 else ()
            yield RolloutIn(text=text, token_ids=own, reward=self._reward(label))

    def _label(self, rollout: dict[str, Any]) -> Any:
        if self.label != ONLY_NUMBER:
            return _at(rollout, self.label) if self.label else None
        others = {self.step, *self.beside}
        # One that is missing here may be the label of the next row.
        found = [
            key
            for key, value in rollout.items()
            if key not in others and (value is None or isinstance(value, bool | int | float))
        ]
        if len(found) != 1:
            raise ValueError(f"which of {', '.join(found) or 'no numbers at all'} is the label? Name it")
        return rollout[found[0]]

    def _reward(self, label: Any) -> float | None:
        if label is None or label != label:  # in a table NaN stands for nothing
            return None
        if not isinstance(label, bool | int | float):
            raise ValueError(f"the label {label!r:.100} is no number")
        low, high = self.label_range
        if not low <= label <= high:
            raise ValueError(f"the label {label} is not between {low:g} and {high:g}: say what labels are between")
        return (label - low) / (high - low)


class Format(StrEnum):
    """Files that other systems write."""

    NATIVE = "native"
    ATROPOS = "atropos"
    VERL = "verl"
    PRIME_RL = "prime-rl"
    TRL = "trl"
    NEMO_GYM = "nemo-gym"


MAPPINGS: dict[Format, FieldMapping] = {
    # Scored data groups of its API and of its JSONL files (atroposlib/api/server.py).
    Format.ATROPOS: FieldMapping(
        prompt=None,
        reference=None,
        rollouts="messages",
        label="scores",
        token_ids="tokens",
        masks="masks",
        verifier=RECORDED,
    ),
    # trainer.rollout_data_dir and trainer.validation_data_dir (verl/trainer/ppo/ray_trainer.py).
    Format.VERL: FieldMapping(
        prompt="input", reference="gts", rollouts=None, text="output", label="score", step="step", verifier=RECORDED
    ),
    # results.jsonl of the verifiers library.
    Format.PRIME_RL: FieldMapping(
        prompt="prompt", reference="answer", rollouts=None, text="completion", label="reward", verifier=RECORDED
    ),
    # completions_*.parquet of log_completions (trl/trainer/grpo_trainer.py).
    Format.TRL: FieldMapping(
        prompt="prompt",
        reference=None,
        rollouts=None,
        text="completion",
        label=ONLY_NUMBER,
        beside=("advantage",),
        step="step",
        verifier=RECORDED,
    ),
    # ng_collect_rollouts (nemo_gym/rollout_collection.py).
    Format.NEMO_GYM: FieldMapping(
        prompt="responses_create_params.input",
        reference="expected_answer",
        rollouts=None,
        text="response.output.*.content",
        label="reward",
        verifier=RECORDED,
    ),
}


class MappingChange(Choice):
    """What is different from the mapping of a foreign format; None leaves it as it is."""

    verifier: str | None = None
    """Judges the rollouts anew; without one, the labels that they came with are taken."""
    reference: str | None = None
    """Path of the reference."""
    label: str | None = None
    """Path of the label."""
    lowest: float = 0.0
    """Label there can be."""
    highest: float = 1.0

    @model_validator(mode="after")
    def _can_be_used(self) -> "MappingChange":
        _check_range(self.lowest, self.highest)
        return self


def mapping_of(format: Format, change: MappingChange) -> FieldMapping | None:
    """None for rows in native form. Raises ValueError where these are to be changed."""
    if format is Format.NATIVE:
        if change != MappingChange():
            raise ValueError("rows in native form say themselves what their verifier, reference and labels are")
        return None
    said = {"verifier": change.verifier, "reference": change.reference, "label": change.label}
    given = {name: value for name, value in said.items() if value is not None}
    known = MAPPINGS[format].model_dump()
    return FieldMapping.model_validate(known | given | {"label_range": (change.lowest, change.highest)})


def group_of(row: Any, mapping: FieldMapping | None) -> GroupIn:
    """By the mapping; without one the row is in native form. Raises ValueError that names the field at fault."""
    try:
        return mapping.apply(row) if mapping else GroupIn.model_validate(row)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def joined(groups: Iterable[Numbered], mapping: FieldMapping | None) -> Iterable[Numbered]:
    """Whole groups, also where each row is a single rollout; only then all of them are held at once."""
    return merged(groups) if mapping is not None and mapping.is_single else groups


def _spelled(reference: Any) -> str:
    if reference is None:
        return ""
    return reference if isinstance(reference, str) else canonical_json(reference)


def _beside(row: dict[str, Any], path: str | None, rollouts: Sequence[Any]) -> list[Any]:
    """A value for each rollout."""
    if path is None:
        return [None] * len(rollouts)
    found = _at(row, path)
    if not isinstance(found, list) or len(found) != len(rollouts):
        raise ValueError(f"{path}: a list of {len(rollouts)} was expected, one for each rollout")
    return found


def _own(token_ids: Any, mask: Any) -> tuple[int, ...]:
    """The tokens that the policy wrote, if they are in one piece."""
    if token_ids is None:
        return ()
    if not isinstance(token_ids, list) or not isinstance(mask, list | None):
        raise ValueError("lists of tokens and masks were expected")
    if mask is None:
        return tuple(token_ids)
    if len(mask) != len(token_ids):
        raise ValueError(f"{len(mask)} masks for {len(token_ids)} tokens")
    places = [place for place, value in enumerate(mask) if value != MASKED]
    is_whole = bool(places) and places[-1] - places[0] + 1 == len(places)
    return tuple(token_ids[place] for place in places) if is_whole else ()


def _at(value: Any, path: str) -> Any:
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            raise ValueError(f"{path}: there is no field {key!r}")
        value = value[key]
    return value


def _every(value: Any, path: str) -> list[Any]:
    before, star, after = path.partition(".*.")
    if not star:
        return [_at(value, path)]
    members = _at(value, before)
    if not isinstance(members, list):
        raise ValueError(f"{before}: a list was expected")
    having = [member for member in members if _has(member, after.partition(".")[0])]
    return [found for member in having for found in _every(member, after) if found is not None]


def _has(value: Any, path: str) -> bool:
    try:
        _at(value, path)
    except ValueError:
        return False
    return True
