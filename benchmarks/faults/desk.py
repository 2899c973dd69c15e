"""What every client works with: the service, patience with it, and the journal.

- A request is asked again, with the same key, until it is answered: whoever was killed in between goes on with it.
- A few are given up with the first answer that does not come: then nobody knows.
"""

import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx2

from benchmarks.faults.journal import Event, Journal, Json, Line
from curation.keys import canonical_json, rng_for
from trainers.client import Refinery, RefineryError

TIMEOUT_SECONDS = 60.0
AGAIN_SECONDS = 0.2
PASSING = {0, 429, 503}
"""What is asked again: nobody answered, or the answer was to come again."""
STOP = "stop"
"""A file of this name in the folder ends the clients."""


class Stopped(Exception):
    """The bench is over, and the service does not answer."""


class Answer(NamedTuple):
    event: Event
    told: Json

    @property
    def is_good(self) -> bool:
        return self.event is Event.ACKNOWLEDGED


class Desk:
    """Of one client."""

    def __init__(self, name: str, url: str, folder: Path, seed: int, pace: float) -> None:
        self.name = name
        self.folder = folder
        self.journal = Journal(folder / f"{name}.jsonl")
        self.refinery = Refinery(url, timeout=TIMEOUT_SECONDS)
        self._plain = httpx2.Client(base_url=url, timeout=TIMEOUT_SECONDS)
        self._seed = seed
        self._pace = pace

    @property
    def is_over(self) -> bool:
        return (self.folder / STOP).exists()

    def operations(self) -> Iterator[int]:
        """Numbers of operations, from the one that was not done when the client was killed."""
        op = sum(line.event is Event.DONE for line in self.journal.lines)
        while not self.is_over:
            yield op
            self.write(op, "", Event.DONE, {})
            op += 1
            time.sleep(self._pace * self.rng(op, "pace").random() * 2)

    def rng(self, *parts: object) -> random.Random:
        """For a part of an operation: the same after a restart."""
        return rng_for(self._seed, self.name, *parts)

    # ---- the journal

    def write(self, op: int, what: str, event: Event, told: Json) -> None:
        self.journal.write(Line(op, what, event, told))

    def find(self, op: int, what: str, *events: Event) -> Json | None:
        """What was written of a part of an operation, the last of these events."""
        for line in reversed(self.journal.lines):
            if (line.op, line.what) == (op, what) and line.event in events:
                return line.told
        return None

    def broken(self, op: int, line: str) -> None:
        self.write(op, "", Event.BROKEN, {"line": f"{self.name}, operation {op}: {line}"})

    def note_once(self, op: int, what: str, told: Json) -> bool:
        """Whether it was new."""
        is_new = self.find(op, what, Event.NOTED) is None
        if is_new:
            self.write(op, what, Event.NOTED, told)
        return is_new

    def die(self, op: int) -> None:
        """As if somebody had killed it just here; once."""
        if self.note_once(op, "death", {}):
            os.kill(os.getpid(), signal.SIGKILL)

    # ---- the service

    def tell(
        self,
        op: int,
        what: str,
        request: Json,
        ask: Callable[[Json], Json],
        *,
        keep: Callable[[Json], Json] = lambda told: told,
        is_given_up: bool = False,
    ) -> Answer:
        """Asks, unless it is known what became of it; `keep` is what is written down of the answer."""
        for event in (Event.ACKNOWLEDGED, Event.REFUSED, Event.GIVEN_UP):
            if (told := self.find(op, what, event)) is not None:
                return Answer(event, told)
        before = self.find(op, what, Event.SENT)
        if before is None:
            self.write(op, what, Event.SENT, request)
        elif is_given_up:
            return self._ended(op, what, Event.GIVEN_UP, {})
        asked = before or request
        try:
            told = ask(asked) if is_given_up else self.patiently(lambda: ask(asked))
        except RefineryError as error:
            if is_given_up and error.status in PASSING:
                return self._ended(op, what, Event.GIVEN_UP, {"why": str(error)})
            self._look_at(op, error)
            return self._ended(op, what, Event.REFUSED, {"status": error.status, "code": error.code})
        return self._ended(op, what, Event.ACKNOWLEDGED, keep(told))

    def _ended(self, op: int, what: str, event: Event, told: Json) -> Answer:
        self.write(op, what, event, told)
        return Answer(event, told)

    def _look_at(self, op: int, error: RefineryError) -> None:
        if error.status >= 500:
            self.broken(op, f"the service answered {error.status}: {error}")

    def patiently(self, ask: Callable[[], Json]) -> Json:
        """Asks until there is an answer. Raises RefineryError for one that stays."""
        while True:
            try:
                return ask()
            except RefineryError as error:
                if error.status not in PASSING:
                    raise
                seconds = float(error.problem.get("retry_after", AGAIN_SECONDS))
            if self.is_over:
                raise Stopped
            time.sleep(seconds)

    def post(self, request: Json) -> Json:
        """A request ``{path, body, key, query}``."""
        told: Json = self.refinery.post(request["path"], request["body"], key=request["key"], **request["query"])
        return told

    def sum_of(self, path: str) -> Json:
        """sha256 of a file."""

        def download() -> Json:
            summed = hashlib.sha256()
            try:
                with self._plain.stream("GET", path) as response:
                    if response.status_code >= 400:
                        response.read()
                        raise RefineryError(response.status_code, {"detail": response.text})
                    for chunk in response.iter_raw():
                        summed.update(chunk)
            except httpx2.TransportError as error:
                raise RefineryError(0, {"code": "broke_off", "detail": str(error)}) from None
            return {"sha256": summed.hexdigest()}

        return self.patiently(download)

    def repeat(self, op: int, what: str) -> None:
        """Sends an acknowledged request again, with its key: it must be answered as it was."""
        told = [line for line in self.journal.lines if (line.what, line.event) == (what, Event.ACKNOWLEDGED)]
        if not told:
            return
        line = self.rng(op, "repeated").choice(told)
        request = self.find(line.op, what, Event.SENT)
        assert request is not None
        try:
            again = self.patiently(lambda: self.post(request))
        except RefineryError as error:
            self.broken(op, f"{what} {line.op} was acknowledged, and asked again it is {error.code}")
            return
        if again != line.told:
            self.broken(op, f"{what} {line.op} is answered otherwise when it is asked again")


def request(path: str, body: object, key: str, **query: str) -> Json:
    return {"path": path, "body": body, "key": key, "query": query}


def digest_of(value: object) -> str:
    """sha256 of what it reads as JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def settings(folder: Path) -> Json:
    """What the driver tells the clients."""
    told: Json = json.loads((folder / SETTINGS).read_text())
    return told


SETTINGS = "settings.json"
