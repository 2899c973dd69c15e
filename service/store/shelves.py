"""Wide rows in the order of their place, without ever holding them all.

DuckDB sorts 2,048 rows at a time, which for rollouts of many tokens is more than it may hold. So the rows of a scan,
in whatever order they come, are put on shelves on disk, each for a range of places, and each shelf is ordered when its
turn comes.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from math import ceil
from pathlib import Path

import numpy as np
import pyarrow as pa

from service.stages import StoreFailed
from service.store.batches import gathered

SHELVES = 256
"""Files that are open at once."""
ROWS_AT_ONCE, BYTES_AT_ONCE = 65_536, 2**26
"""Put on the shelves together, so that what one shelf gets is worth writing."""
COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")


def in_order(batches: Iterable[pa.RecordBatch], ends: Sequence[int], folder: Path) -> Iterator[pa.Table]:
    """A table for each end: the rows whose column `place` is below it and not below the end before, in their order and
    without it. Raises StoreFailed unless every place below the last end is there exactly once."""
    each = ceil(len(ends) / SHELVES)
    shelves = [ends[start : start + each] for start in range(0, len(ends), each)]
    _put(batches, [shelf[-1] for shelf in shelves], folder)
    begin = 0
    for number, shelf in enumerate(shelves):
        table = _taken(folder / str(number), range(begin, shelf[-1]))
        for end in shelf:
            yield table.slice(0, end - begin)
            table, begin = table.slice(end - begin), end


def _put(batches: Iterable[pa.RecordBatch], ends: Sequence[int], folder: Path) -> None:
    with ExitStack() as closing:
        writers: dict[int, pa.RecordBatchStreamWriter] = {}
        for load in gathered(batches, ROWS_AT_ONCE, BYTES_AT_ONCE):
            ordered = load.take(np.argsort(load["place"], kind="stable"))
            cuts = np.searchsorted(ordered["place"], [0, *ends])
            for number, (first, last) in enumerate(pairwise(cuts)):
                if first == last:
                    continue
                if number not in writers:
                    writer = pa.ipc.new_stream(str(folder / str(number)), load.schema, options=COMPRESSED)
                    writers[number] = closing.enter_context(writer)
                writers[number].write_table(ordered.slice(first, last - first))


def _taken(path: Path, places: range) -> pa.Table:
    """The rows of a shelf by place; the shelf is gone afterwards."""
    if path.exists():
        with pa.ipc.open_stream(str(path)) as reader:
            table = reader.read_all()
        path.unlink()
        order = np.argsort(table["place"])
        if np.array_equal(table["place"].take(order), places):
            # In one piece, whatever pieces it came in: the bytes of a Parquet file depend on them.
            return table.drop_columns("place").take(order).combine_chunks()
    raise StoreFailed(f"of {len(places)} texts that the store held a moment ago some are gone or there twice")
