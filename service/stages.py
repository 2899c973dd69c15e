"""Where work can go wrong.

::

    StageError            something outside our control failed, and we know where
    ├── EngineFailed      sampling or loading: engine down, prompt too long, broken checkpoint
    ├── VerifierFailed    the verifier pool itself is gone; a failed check is a verdict, not an error
    ├── StoreFailed       storing: disk full, store closed
    └── HubFailed         pushing: no network, no right to

    Refused               the request cannot be carried out, and nothing was changed
    ├── Unknown           whoever asks did not say who it is, or is nobody we know
    ├── Forbidden         whoever asks may not
    ├── Busy              whoever asks has too much waiting already
    ├── Overloaded        everybody together has
    ├── NotFound
    ├── Gone              there was such a thing
    ├── Conflict          it contradicts what is already there
    └── Invalid           it makes no sense, now or later

Engines and verifiers raise whatever they like. `stage` is the single place that files it under one of these names;
an error that already has a name passes through untouched.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StageError(Exception):
    """Something outside our control failed."""


class EngineFailed(StageError):
    """Sampling or loading weights failed."""


class VerifierFailed(StageError):
    """No verdict can be reached at all."""


class StoreFailed(StageError):
    """The store could not take or give the rows."""


class HubFailed(StageError):
    """The Hugging Face Hub did not take a dataset."""


class Refused(Exception):
    """The request cannot be carried out; nothing was changed."""

    def __init__(self, code: str, message: str, **extra: Any) -> None:
        super().__init__(message)
        self.code = code
        """Stable, for programs."""
        self.extra = extra
        """More members of the problem document."""


class Unknown(Refused):
    """Whoever asks did not say who it is, or is nobody we know."""


class Forbidden(Refused):
    """Whoever asks may not."""


class Busy(Refused):
    """Whoever asks has too much waiting already: the same later."""


class Overloaded(Refused):
    """Everybody together has too much waiting: the same later."""


class Gone(Refused):
    """There was such a thing, and somebody deleted it."""


class NotFound(Refused):
    """There is no such thing."""


class Conflict(Refused):
    """It contradicts what is already there."""


class Invalid(Refused):
    """It makes no sense, now or later."""


@contextmanager
def stage(failure: type[StageError], doing: str) -> Iterator[None]:
    try:
        yield
    except (StageError, Refused):
        raise
    except Exception as cause:
        raise failure(f"{doing}: {cause!r}") from cause
