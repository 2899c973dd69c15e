"""The native import row: a prompt with rollouts that somebody else sampled."""

from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from curation.choice import Choice, Metadata, Several, parsed
from curation.keys import canonical_json

RECORDED = "recorded"
"""Named as the verifier of a row whose recorder's labels are taken for what they are: nothing is judged anew."""


TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
Logprob = Annotated[float, Field(ge=-1e6, le=1e6)]


class _Row(Choice):
    @model_validator(mode="before")
    @classmethod
    def _null_is_nothing(cls, row: Any) -> Any:
        """Tables have a cell for everything."""
        return {name: value for name, value in row.items() if value is not None} if isinstance(row, dict) else row


class RolloutIn(_Row):
    """One recorded completion."""

    text: str
    token_ids: Several[TokenId] = ()
    logprobs: Several[Logprob] = ()
    reward: float | None = Field(None, ge=0, le=1)
    """The recorder's own label. Kept for comparison; our verifier's verdict is what counts."""


class GroupIn(_Row):
    """One prompt and its recorded rollouts."""

    prompt: str = Field(min_length=1)
    reference: str = ""
    """May be empty where the verifier needs none."""
    verifier: str = "math"
    metadata: Metadata = Field(default_factory=dict)
    policy_version: int = Field(0, ge=0, lt=2**31)
    """Of the recorder's policy: its training step, say."""
    rollouts: Annotated[Several[RolloutIn], Field(min_length=1), BeforeValidator(parsed)]
    """Or their text in JSON."""


class Numbered(NamedTuple):
    """A group, and which rows it is made of."""

    rows: tuple[int, ...]
    group: GroupIn


def merged(groups: Iterable[Numbered]) -> list[Numbered]:
    """Rows that ask the same of the same policy version as one, in the order of the first of each; its rollouts in the
    order of the rows."""
    parts: dict[str, list[Numbered]] = {}
    for one in groups:
        asked = canonical_json(one.group.model_dump(mode="json", exclude={"rollouts"}))
        parts.setdefault(asked, []).append(one)
    return [
        Numbered(
            tuple(row for one in alike for row in one.rows),
            alike[0].group.model_copy(update={"rollouts": tuple(r for one in alike for r in one.group.rollouts)}),
        )
        for alike in parts.values()
    ]
