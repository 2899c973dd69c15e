"""On what a figure was measured."""

import os
import platform
import subprocess
from typing import Any


def machine() -> dict[str, Any]:
    return {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}


def commit() -> str | None:
    """Of the checkout that this runs in, if it runs in one."""
    shown = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or None
