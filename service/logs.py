"""Log lines that say which job and which group they are about, as text for people or as JSON for machines.

No line holds a key, a prompt or a completion. Nothing that others said makes a line of its own, or moves a cursor.
"""

import json
import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum, auto
from typing import Any

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_ABOUT: ContextVar[dict[str, str]] = ContextVar("about", default={})  # noqa: B039 - nobody changes it


class LogFormat(StrEnum):
    TEXT = auto()
    JSON = auto()
    """One object a line."""


@contextmanager
def about(**ids: str) -> Iterator[None]:
    """Every line that is logged meanwhile, by this task or those it starts, says so."""
    token = _ABOUT.set(_ABOUT.get() | ids)
    try:
        yield
    finally:
        _ABOUT.reset(token)


def configure(format: LogFormat, level: str = "INFO") -> None:
    """For the whole process."""
    handler = logging.StreamHandler()
    handler.addFilter(_tell_what_about)
    handler.setFormatter(_Lines() if format is LogFormat.JSON else _Text())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _tell_what_about(record: logging.LogRecord) -> bool:
    record.about = _ABOUT.get()
    return True


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        ids = {**getattr(record, "about", {}), **_extra(record)}
        return _in_a_line(super().formatMessage(record) + "".join(f" {name}={value}" for name, value in ids.items()))

    def formatException(self, info: Any) -> str:
        """Indented: an error may say anything, also what looks like another line."""
        return "\n".join(f"  {_in_a_line(line)}" for line in super().formatException(info).split("\n"))


def _in_a_line(text: str) -> str:
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {**getattr(record, "about", {}), **_extra(record)}
        if record.exc_info:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, default=str)


_STANDARD = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "about", "taskName", "color_message"}


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """What was given with ``extra``."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}
