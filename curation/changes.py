"""What another verifier, or another revision of one, changes about groups that were judged before.

Every rollout is in exactly one class before and one after; the matrix of both says all there is to say.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from curation.records import Group, Outcome, Verdict

EXAMPLES = 5
"""Kept of each kind of change."""


def class_of(verdict: Verdict) -> str:
    """``right``, ``wrong``, ``between``, or the outcome of a verdict without a real score."""
    if verdict.outcome is not Outcome.SCORED or verdict.reward is None:
        return verdict.outcome.value
    if verdict.reward >= 1.0:
        return "right"
    return "wrong" if verdict.reward <= 0.0 else "between"


class Changes:
    """Adds up pairs of one group before and after."""

    def __init__(self) -> None:
        self._groups = 0
        self._matrix: Counter[tuple[str, str]] = Counter()
        self._kinds: Counter[tuple[str, str]] = Counter()
        self._changed_rewards = 0
        self._examples: dict[str, list[dict[str, Any]]] = {}

    @property
    def groups(self) -> int:
        return self._groups

    def add_all(self, before: Sequence[Group], after: Sequence[Group]) -> None:
        for old, new in zip(before, after, strict=True):
            self.add(old, new)

    def add(self, before: Group, after: Group) -> None:
        self._groups += 1
        self._kinds[before.kind.value, after.kind.value] += 1
        for index, (old, new) in enumerate(zip(before.rollouts_G, after.rollouts_G, strict=True)):
            move = class_of(old.verdict), class_of(new.verdict)
            self._matrix[move] += 1
            self._changed_rewards += old.reward != new.reward
            if old.reward != new.reward or move[0] != move[1]:
                self._keep(_named(move), before, index, old.verdict, new.verdict)

    def counts(self) -> dict[str, Any]:
        return {
            "groups": self._groups,
            "rollouts": self._matrix.total(),
            "changed": self._changed_rewards,
            "classes": {_named(move): n for move, n in sorted(self._matrix.items())},
            "kinds": {_named(move): n for move, n in sorted(self._kinds.items())},
        }

    def report(self) -> dict[str, Any]:
        """`counts` with up to `EXAMPLES` rollouts of each change."""
        return self.counts() | {"examples": dict(sorted(self._examples.items()))}

    def _keep(self, move: str, group: Group, index: int, old: Verdict, new: Verdict) -> None:
        kept = self._examples.setdefault(move, [])
        if len(kept) < EXAMPLES:
            where = {"group_id": group.id, "prompt_id": group.prompt.id, "index": index}
            kept.append(where | {"before": _told(old), "after": _told(new)})


def _named(move: Iterable[str]) -> str:
    return " -> ".join(move)


def _told(verdict: Verdict) -> dict[str, Any]:
    return {"verifier": verdict.verifier, "reward": verdict.reward, "detail": verdict.detail[:200]}
