"""``python -m benchmarks.faults CLIENT``: one client, for as long as the bench lets it."""

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults import freezer, importer, reader, requester, trainer
from benchmarks.faults.desk import Desk, Stopped

ACTS: dict[str, Callable[[Desk, int], None]] = {
    "requester": requester.act,
    "trainer-1": trainer.act,
    "trainer-2": trainer.act,
    "importer": importer.act,
    "freezer": freezer.act,
    "reader": reader.act,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("client", choices=ACTS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--pace", type=float, required=True)
    told = parser.parse_args()
    desk = Desk(told.client, told.url, told.folder, told.seed, told.pace)
    try:
        for op in desk.operations():
            ACTS[told.client](desk, op)
    except Stopped:
        pass


if __name__ == "__main__":
    main()
