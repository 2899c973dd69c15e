"""Keeping the store in shape while it serves: hot rows are sealed into segments, and small segments become large ones.

- Nothing is ever gone from the one place before it is on disk in the other; nobody who asks meanwhile sees it twice.
- Sealing takes a new generation of tables for the rows to come, so that no writer waits for it.
"""

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import groupby

import pyarrow as pa

from service.stages import StoreFailed
from service.store.duck import Duck, OutcomeUnknown
from service.store.layout import SCHEMA_VERSION, rows_of
from service.store.segments import Manifest, Segment
from service.store.transaction import Transaction

log = logging.getLogger(__name__)

SEAL_BYTES = 2**27
"""Of hot rows, as Arrow counts, that are worth a segment."""
SEAL_SECONDS = 300.0
"""That rows stay hot at most: as much as a damaged database can cost."""
RETRY_SECONDS = 30.0
"""After a failure, before what failed fills the disk."""
WIDE_ROWS_PER_BATCH = 2048
FAN_IN = 8
"""Segments of about the same size that become one."""
SMALL_BYTES, LARGE_BYTES = 2**22, 2**27
"""Segments below the one are all of about the same size; those above the other are left alone."""


class Sealer:
    """Of one store. Its methods block, and may be called from any thread."""

    def __init__(self, duck: Duck) -> None:
        self._duck = duck
        self._sealing = threading.Lock()
        self._compacting = threading.Lock()
        self._sealed_at = -math.inf
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="store-sealer")

    def start(self) -> None:
        """Seals and merges from now on without being asked."""
        self._thread.start()

    def stop(self) -> None:
        """Begins nothing new; what is half done is nobody's, and done again another time."""
        self._ended.set()

    def end(self) -> None:
        """Once the store is closed."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join()

    def seal(self, *, younger_than: float = 0.0) -> None:
        """Afterwards every row that is stored now is in a segment; with a number of seconds, every older one."""
        asked = time.monotonic()
        with self._sealing:
            if self._sealed_at >= asked - younger_than or self._is_all_sealed():
                return
            began = time.monotonic()
            # After a failure there are rows to seal although there are no new ones.
            old = self._duck.layout.generations[:-1]
            generations = self._duck.write_now(_rotate) if self._duck.hot_bytes or not old else old
            tables = {table: self._rows(table, generations) for table in self._duck.tables}
            segment = self._duck.segments.write(SCHEMA_VERSION, tables)
            self._publish((), [segment] if segment else [], sealed=generations)
            self._sealed_at = began

    def compact(self) -> int:
        """Merges small segments until none are left to merge; how many were merged away."""
        with self._compacting:
            merged = 0
            while alike := mergeable(self._duck.layout.manifest):
                self._merge(alike)
                merged += len(alike) - 1
            return merged

    def _is_all_sealed(self) -> bool:
        return not self._duck.hot_bytes and len(self._duck.layout.generations) == 1

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            is_due = self._sealed_at < time.monotonic() - SEAL_SECONDS or self._duck.hot_bytes > SEAL_BYTES
            try:
                if is_due:
                    self.seal()
                self.compact()
            except Exception as error:  # noqa: BLE001 - the thread must live, and try again
                if not self._ended.is_set():
                    log.warning("the store was not sealed, and that is tried again: %s", error)
                    self._ended.wait(RETRY_SECONDS)

    def _merge(self, old: Sequence[Segment]) -> None:
        manifest = Manifest(segments=tuple(old))
        if damages := list(self._duck.segments.damages(manifest)):
            raise StoreFailed(f"{damages[0]}: it is not merged with others")
        tables = sorted({table for segment in old for table in segment.files})
        rows = {table: self._scan(rows_of(table, (), manifest, self._duck.segments.path)) for table in tables}
        segment = self._duck.segments.write(SCHEMA_VERSION, rows)
        if segment is None:
            raise StoreFailed(f"segments {[s.number for s in old]} hold no rows: the store is damaged")
        self._publish(old, [segment])

    def _publish(self, old: Sequence[Segment], new: Sequence[Segment], *, sealed: Sequence[int] = ()) -> None:
        try:
            self._duck.write_now(lambda tx: tx.replace(old, new, sealed=sealed))
        except OutcomeUnknown:
            raise
        except BaseException:
            for segment in new:
                self._duck.segments.remove(segment)
            raise

    def _rows(self, table: str, generations: Sequence[int]) -> Iterator[pa.RecordBatch]:
        return self._scan(rows_of(table, generations, Manifest(), self._duck.segments.path))

    def _scan(self, sql: str) -> Iterator[pa.RecordBatch]:
        return self._duck.scan(sql, rows_per_batch=WIDE_ROWS_PER_BATCH)


def mergeable(manifest: Manifest) -> Sequence[Segment]:
    """Neighbours of about the same size, if there are enough of them."""
    for most in range(_tier(LARGE_BYTES) + 1):
        for is_small, neighbours in groupby(manifest.segments, key=lambda segment: _is_small(segment, most)):
            found = list(neighbours)
            if is_small and len(found) >= FAN_IN:
                return found[:FAN_IN]
    return ()


def _is_small(segment: Segment, tier: int) -> bool:
    return segment.bytes < LARGE_BYTES and _tier(segment.bytes) <= tier


def _tier(size: int) -> int:
    tier = 0
    while size >= SMALL_BYTES:
        size, tier = size // FAN_IN, tier + 1
    return tier


def _rotate(tx: Transaction) -> tuple[int, ...]:
    tx.rotate()
    return tx.layout.generations[:-1]
