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


def replace(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """The whole file or the one before it, whenever the power goes."""
    unfinished = path.with_name(f"{path.name}.part")
    with unfinished.open("wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
    sync(unfinished)
    unfinished.rename(path)
    sync(path.parent)


def sha256_of(path: Path) -> str:
    """Of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
