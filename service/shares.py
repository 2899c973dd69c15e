"""Room that several want at once: shared evenly, so that no one of them keeps another waiting for long.

- Never more is held than there is, but by one alone that wants more than all.
- Where it is said how much one may have, who has something gets no more than that: what is left is for others, however
  long those that it has are kept.
- The next piece goes to who holds the least, and of those to whose last one is longest ago; each one's own wishes keep
  their order.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class _Wish:
    size: int
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Shares:
    """Of one event loop."""

    def __init__(self, capacity: Callable[[], int], most_of_one: Callable[[], int] | None = None) -> None:
        """Both may change; they are looked at whenever something is wished for or given back."""
        self._capacity = capacity
        self._most_of_one = most_of_one
        self._held: Counter[str] = Counter()
        self._wishes: dict[str, deque[_Wish]] = {}
        self._grants = 0
        self._last: dict[str, int] = {}
        """Number of the last grant of each that has or wants something."""

    @property
    def held(self) -> int:
        """By all together."""
        return self._held.total()

    def waiting(self, owner: str) -> int:
        """Wishes of this one that are not granted yet."""
        return len(self._wishes.get(owner, ()))

    @asynccontextmanager
    async def hold(self, owner: str, size: int = 1) -> AsyncIterator[None]:
        await self.take(owner, size)
        try:
            yield
        finally:
            self.give(owner, size)

    async def take(self, owner: str, size: int) -> None:
        """Waits until there is room for it; who stops waiting has taken nothing."""
        wish = _Wish(size)
        self._wishes.setdefault(owner, deque()).append(wish)
        self._grant()
        try:
            await wish.granted
        except asyncio.CancelledError:
            if wish.granted.done() and not wish.granted.cancelled():
                self.give(owner, size)
            else:
                self._forget(owner, wish)
                self._grant()
                self._tidy(owner)
            raise

    def give(self, owner: str, size: int) -> None:
        self._held[owner] -= size
        if not self._held[owner]:
            del self._held[owner]
        self._grant()
        self._tidy(owner)

    def _tidy(self, owner: str) -> None:
        if owner not in self._held and owner not in self._wishes:
            self._last.pop(owner, None)

    def _grant(self) -> None:
        while wanting := [owner for owner in self._wishes if self._may_have(owner)]:
            owner = min(wanting, key=lambda one: (self._held[one], self._last.get(one, 0)))
            wish = self._wishes[owner][0]
            if self.held and self.held + wish.size > self._capacity():
                return
            self._forget(owner, wish)
            if not wish.granted.cancelled():
                self._held[owner] += wish.size
                self._grants += 1
                self._last[owner] = self._grants
                wish.granted.set_result(None)

    def _may_have(self, owner: str) -> bool:
        """Its next wish, as far as its own are concerned."""
        if self._most_of_one is None or not self._held[owner]:
            return True
        return self._held[owner] + self._wishes[owner][0].size <= self._most_of_one()

    def _forget(self, owner: str, wish: _Wish) -> None:
        wishes = self._wishes.get(owner, deque())
        if wish in wishes:  # else it came to its turn just when it was given up
            wishes.remove(wish)
        if not wishes:
            self._wishes.pop(owner, None)
