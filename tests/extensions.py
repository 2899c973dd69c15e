"""Extensions of DuckDB, as their wheels bring them: with a network it fetches them by itself."""

from importlib.resources import files
from pathlib import Path


def extension(package: str) -> Path:
    [path] = Path(str(files(package))).rglob("*.duckdb_extension")
    return path
