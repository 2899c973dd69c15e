"""What trainers keep between runs, each under a name that says what it is. Nothing changes; anything may be deleted."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


def cache(kind: str) -> Path:
    """The folder for one kind of thing, in `REFINERY_CACHE`."""
    folder = Path(os.environ.get("REFINERY_CACHE", "~/.cache/refinery")).expanduser() / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A file to write, on the same disk; gone afterwards unless it was renamed."""
    with TemporaryDirectory(dir=folder) as scratch:
        yield Path(scratch) / "file"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_of(folder: Path) -> list[str]:
    """Names what the weights of a checkpoint are."""
    return [sha256_of(path) for path in sorted(folder.glob("*.safetensors"))]
