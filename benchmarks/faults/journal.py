"""What a client was about to ask and what it was told, a line each, on disk before the client goes on.

A line that was being written when the client was killed is no line.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum, auto
from pathlib import Path
from typing import Any

Json = dict[str, Any]


class Event(StrEnum):
    SENT = auto()
    """About to ask; `told` is the request."""
    ACKNOWLEDGED = auto()
    """The service said that it is done; `told` is its answer."""
    REFUSED = auto()
    """The service said that nothing was done; `told` is why."""
    GIVEN_UP = auto()
    """No answer came, and it is never asked for again."""
    NOTED = auto()
    """Something seen that must be so again later."""
    BROKEN = auto()
    """A promise that is not kept; `told` has a line about it."""
    DONE = auto()
    """The next operation is the one after this."""


@dataclass(frozen=True, slots=True)
class Line:
    op: int
    """Operations of a client are counted from 0."""
    what: str
    """Which part of the operation."""
    event: Event
    told: Json


class Journal:
    """Open for the one process that writes it."""

    def __init__(self, path: Path) -> None:
        path.touch()
        os.truncate(path, len(_whole(path)))
        self.lines = read(path)
        self._file = path.open("a")

    def write(self, line: Line) -> None:
        self._file.write(json.dumps(asdict(line)) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.lines.append(line)

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[Line]:
    """Every whole line."""
    every = map(json.loads, _whole(path).splitlines())
    return [Line(told["op"], told["what"], Event(told["event"]), told["told"]) for told in every]


def _whole(path: Path) -> bytes:
    lines, newline, _ = path.read_bytes().rpartition(b"\n")
    return lines + newline


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """A request, with what became of it."""

    client: str
    op: int
    what: str
    request: Json
    outcome: Event | None
    """None where the client was ended before it was told."""
    answer: Json

    @property
    def is_unknown(self) -> bool:
        """It may have been carried out or not."""
        return self.outcome in (None, Event.GIVEN_UP)


def sent(client: str, lines: Sequence[Line]) -> list[Sent]:
    """Every request of a client, in the order in which they were first sent."""
    requests = {(line.op, line.what): line.told for line in lines if line.event is Event.SENT}
    ends = {
        (line.op, line.what): line
        for line in lines
        if line.event in (Event.ACKNOWLEDGED, Event.REFUSED, Event.GIVEN_UP)
    }
    return [
        Sent(client, op, what, request, end.event if end else None, end.told if end else {})
        for (op, what), request in requests.items()
        for end in [ends.get((op, what))]
    ]
