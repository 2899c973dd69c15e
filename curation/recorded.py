"""The native import row: a prompt with rollouts that somebody else sampled."""

from collections.abc import Iterable

from pydantic import Field

from curation.choice import Choice, Metadata
from curation.keys import canonical_json

RECORDED = "recorded"
"""Named as the verifier of a row whose recorder's labels are taken for what they are: nothing is judged anew."""


class RolloutIn(Choice):
    """One recorded completion."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    reward: float | None = Field(None, ge=0, le=1)
    """The recorder's own label. Kept for comparison; our verifier's verdict is what counts."""


class GroupIn(Choice):
    """One prompt and its recorded rollouts."""

    prompt: str = Field(min_length=1)
    reference: str = ""
    """May be empty where the verifier needs none."""
    verifier: str = "math"
    metadata: Metadata = Field(default_factory=dict)
    policy_version: int = Field(0, ge=0, lt=2**31)
    """Of the recorder's policy: its training step, say."""
    rollouts: tuple[RolloutIn, ...] = Field(min_length=1)


def merged(groups: Iterable[tuple[int, GroupIn]]) -> list[tuple[int, GroupIn]]:
    """Rows that ask the same of the same policy version as one, in the order and with the number of the first of each;
    its rollouts in the order of the rows."""
    parts: dict[str, tuple[int, list[GroupIn]]] = {}
    for number, group in groups:
        asked = canonical_json(group.model_dump(mode="json", exclude={"rollouts"}))
        parts.setdefault(asked, (number, []))[1].append(group)
    return [
        (number, alike[0].model_copy(update={"rollouts": tuple(r for group in alike for r in group.rollouts)}))
        for number, alike in parts.values()
    ]
