"""Many small batches of rows as fewer large tables."""

from collections.abc import Iterable, Iterator

import pyarrow as pa


def gathered(batches: Iterable[pa.RecordBatch], rows: int, size: int) -> Iterator[pa.Table]:
    """Tables of at least so many rows or bytes, but for the last one; none of them is empty."""
    held: list[pa.RecordBatch] = []
    held_rows = held_bytes = 0
    for batch in batches:
        held.append(batch)
        held_rows, held_bytes = held_rows + batch.num_rows, held_bytes + batch.nbytes
        if held_rows >= rows or held_bytes >= size:
            yield pa.Table.from_batches(held)
            held, held_rows, held_bytes = [], 0, 0
    if held_rows:
        yield pa.Table.from_batches(held)
