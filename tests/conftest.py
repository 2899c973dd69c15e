"""The suite runs in two processes: a file stays in one of them, and so do all that share the real engines."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        together = "engines" if item.path.parent.name == "engines" else str(item.path)
        item.add_marker(pytest.mark.xdist_group(together))
