"""The arrows between the packages, as a test."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_NOT_IMPORT = {
    "curation": {"service", "trainers", "fastapi", "httpx2", "duckdb", "torch", "vllm", "sglang", "time", "socket"},
    "service": {"trainers", "trl", "datasets", "benchmarks"},
    "service/engines": {"service.store", "service.verifiers", "service.api"},
    "service/verifiers": {"service.store", "service.engines", "service.api"},
    "service/store": {"service.engines", "service.verifiers", "service.api"},
    "trainers": {"service", "fastapi", "duckdb", "vllm", "sglang"},
}


def imports(path: Path) -> set[str]:
    """Every dotted prefix of every module that the file imports, lazy imports included."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
    return {".".join(parts[: i + 1]) for name in names if (parts := name.split(".")) for i in range(len(parts))}


@pytest.mark.parametrize("package", MAY_NOT_IMPORT)
def test_arrows_point_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))

    crossed = {str(path.relative_to(ROOT)): imports(path) & MAY_NOT_IMPORT[package] for path in files}

    assert files
    assert {path: names for path, names in crossed.items() if names} == {}
