"""Files that are on the disk, not only in its cache."""

import hashlib
import os
from pathlib import Path


def sync(path: Path) -> None:
    """Of a file, or of a folder, without which a rename in it is not durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
