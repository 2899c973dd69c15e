"""What requests with an idempotency key were answered, and what they were about to make before that. Rows are for ever:
a key is good for as long as the store is."""

from dataclasses import asdict, dataclass
from datetime import datetime

from service.store.duck import Duck

BEGUN = 102
"""Status of what is no answer yet: its body is the name of what is about to be made."""


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
        rows = await self._duck.read("select * from answers where answer = ? and status != ?", [answer_id, BEGUN])
        return Answer(**rows[0]) if rows else None

    async def begun(self, answer_id: str, request: str) -> list[str]:
        """Names of what this very request was about to make, the oldest first."""
        sql = "select body from answers where answer = ? and request = ? and status = ? order by told_at"
        return [row["body"] for row in await self._duck.read(sql, [answer_id, request, BEGUN])]

    async def add(self, answer: Answer) -> None:
        await self._duck.write(lambda tx: tx.insert("answers", [asdict(answer)]))
