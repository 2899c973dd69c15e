"""What a recipe decides on, and the rows that it makes: groups without their texts.

- Nothing here grows with the length of a completion, so millions of groups pass through without their texts.
- A row names its rollouts; whoever writes the row fetches what they say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from curation.records import Outcome


class Origin(NamedTuple):
    """Where a group comes from; origins sort in the order of the rows of a dataset."""

    prompt_id: str
    run: str
    visit: int
    group_id: str
    policy_version: int
    verifier: str
    """Label of the verdicts that count, ``math@1``."""
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class JudgedGroup:
    """What ends in ``_G`` is per rollout, in sampling order: columns, since most groups are only glanced at."""

    origin: Origin
    prompt_bytes: int
    rewards_G: Sequence[float | None]
    """None where no verifier reached one."""
    outcomes_G: Sequence[Outcome]
    truncated_G: Sequence[bool]
    tokens_G: Sequence[int]
    """0 where they were not recorded."""
    characters_G: Sequence[int]
    bytes_G: Sequence[int]
    """Of the text in UTF-8."""
    digests_G: Sequence[str] = ()
    """Names the texts of prompt and completion; empty unless asked for."""
    has_text: bool = True
    """False where retention kept the numbers only."""

    @property
    def scored_G(self) -> list[float]:
        """Rewards of the scored rollouts."""
        return [reward for reward in self.rewards_G if reward is not None]


@dataclass(frozen=True, slots=True)
class Row:
    """Of a dataset, before its texts are fetched: scored rollouts of a group, and what is known of each of them.

    There may be many times more rows than groups, so a row holds nothing that its group does.
    """

    group: JudgedGroup
    indices: tuple[int, ...]
    """Of a pair the chosen one, then the rejected one."""
    advantages: tuple[float, ...] = ()
    """Only where the shape asks for them."""

    @property
    def origin(self) -> Origin:
        return self.group.origin

    @property
    def rewards(self) -> tuple[float, ...]:
        return tuple([reward for i in self.indices if (reward := self.group.rewards_G[i]) is not None])

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple([self.group.tokens_G[i] for i in self.indices])

    @property
    def characters(self) -> tuple[int, ...]:
        return tuple([self.group.characters_G[i] for i in self.indices])

    @property
    def bytes(self) -> tuple[int, ...]:
        return tuple([self.group.bytes_G[i] for i in self.indices])

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple([self.group.digests_G[i] for i in self.indices])

    @property
    def pass_rate(self) -> float:
        """Mean reward of everything scored in the group."""
        scored_G = self.group.scored_G
        return sum(scored_G) / len(scored_G)

    @property
    def longest(self) -> int:
        """Tokens; where they were not recorded bytes, of which there are at least as many."""
        return max(tokens or size for tokens, size in zip(self.tokens, self.bytes, strict=True))


def row_of(group: JudgedGroup, indices: Sequence[int], advantages: Sequence[float] = ()) -> Row:
    """The row of these rollouts. Raises ValueError where one has no reward."""
    if any(group.rewards_G[i] is None for i in indices):
        raise ValueError(f"group {group.origin.group_id}: a row needs scored rollouts")
    return Row(group, tuple(indices), tuple(advantages))
