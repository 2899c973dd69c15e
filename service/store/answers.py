"""What requests with an idempotency key were answered. Rows are for ever: a key is good for as long as the store is."""

from dataclasses import asdict, dataclass
from datetime import datetime

from service.store.duck import Duck


@dataclass(frozen=True, slots=True)
class Answer:
    answer: str
    """Its id: who asked, where, and with which key."""
    request: str
    """Digest of what was asked."""
    status: int
    body: str
    told_at: datetime


class Answers:
    def __init__(self, duck: Duck) -> None:
        self._duck = duck

    async def find(self, answer_id: str) -> Answer | None:
        rows = await self._duck.read("select * from answers where answer = ?", [answer_id])
        return Answer(**rows[0]) if rows else None

    async def add(self, answer: Answer) -> None:
        await self._duck.write(lambda tx: tx.insert("answers", [asdict(answer)]))
