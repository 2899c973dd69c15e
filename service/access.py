"""Who may do what: API keys, their roles, and the names that they are limited to.

- A key is shown once, when it is made. The file has the SHA-256 of it, which is as good as it is random.
- Whatever happens to the file is true from the next request on. While it cannot be read, or once it is gone, nobody
  gets in.
- Where there never was a file there are no keys: whoever reaches the service is its operator.
"""

import fcntl
import hmac
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum, auto
from fnmatch import fnmatchcase
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError

from curation.choice import Choice, reason_of
from service.run_config import NAME
from service.stages import Conflict, Invalid, NotFound, StageError
from service.store.durable import replace

FILE = "keys.json"
PREFIX = "rr"
Pattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9*][A-Za-z0-9._*-]{0,99}$")]
"""A name, with ``*`` for any characters."""


class Role(StrEnum):
    """Each may do what those before it may."""

    READ = auto()
    """Everything that is asked for with GET."""
    SQL = auto()
    """Questions in SQL."""
    WRITE = auto()
    """Prompts, policies, runs, rollouts, leases, datasets."""
    ADMIN = auto()
    """Backup, deleting datasets, and pushing them in the service's name."""

    def includes(self, other: "Role") -> bool:
        ladder = list(Role)
        return ladder.index(self) >= ladder.index(other)


@dataclass(frozen=True, slots=True)
class Caller:
    name: str
    role: Role
    names: tuple[str, ...] = ()
    """Patterns of the runs, policies and datasets that it is limited to; empty for no limit."""

    def reaches(self, *named: str) -> bool:
        return not self.names or all(any(fnmatchcase(one, pattern) for pattern in self.names) for one in named)


OPERATOR = Caller("operator", Role.ADMIN)


class Key(Choice):
    id: str = Field(pattern="^[0-9a-f]{8}$")
    name: str = Field(pattern=NAME)
    role: Role
    names: tuple[Pattern, ...] = ()
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None


_KEYS = TypeAdapter(tuple[Key, ...])
_NOBODY = sha256(secrets.token_bytes()).hexdigest()


class KeysUnreadable(StageError):
    """Nobody can be let in."""


class Keyring:
    """The keys of a data folder, as they are now."""

    def __init__(self, data: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.path = data / FILE
        self._now = now
        self._was_there = os.path.lexists(self.path)
        self._read: tuple[tuple[int, int, int] | None, tuple[Key, ...] | None] = (None, None)

    @property
    def keys(self) -> tuple[Key, ...] | None:
        """None where there never was a file while this keyring looked. Raises KeysUnreadable."""
        try:
            status = self.path.stat()
            self._was_there = True
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self._read[0] != seen:
                self._read = seen, _KEYS.validate_json(self.path.read_bytes())
        except FileNotFoundError as error:
            if self._was_there:  # a disk that went away makes nobody the operator
                raise KeysUnreadable(f"{self.path} is gone, so nobody is let in until the next start") from error
            return None
        except OSError as error:
            raise KeysUnreadable(f"{self.path} cannot be read, so nobody is let in: {error}") from error
        except ValidationError as error:  # whose own words quote the file
            raise KeysUnreadable(f"{self.path} holds no keys, so nobody is let in: {reason_of(error)}") from error
        return self._read[1]

    def caller(self, token: str) -> Caller | None:
        """Whose key this is; None if it is nobody's, or its time is over. Takes as long for a wrong one as for a right
        one."""
        prefix, _, rest = token.partition("_")
        key_id = rest.partition("_")[0]
        key = next((one for one in self.keys or () if one.id == key_id), None)
        same = hmac.compare_digest(_hashed(token), key.sha256 if key else _NOBODY)
        if not same or key is None or prefix != PREFIX or (key.expires_at and key.expires_at <= self._now()):
            return None
        return Caller(key.name, key.role, key.names)

    def add(
        self, name: str, role: Role, names: tuple[str, ...] = (), expires_at: datetime | None = None
    ) -> tuple[Key, str]:
        """A new key and what its owner sends, which is kept nowhere. Raises Conflict for a name that is taken, Invalid
        for a name or a pattern that is none, and for a limit on a role that has none."""
        if names and role is Role.ADMIN:
            raise Invalid("unlimited_role", "a backup holds everything: a key of role admin has no limits")
        key_id = secrets.token_hex(4)
        token = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
        try:
            key = Key(
                id=key_id,
                name=name,
                role=role,
                names=names,
                sha256=_hashed(token),
                created_at=self._now(),
                expires_at=expires_at,
            )
        except ValidationError as error:
            raise Invalid("bad_key", reason_of(error)) from None
        with self._changing() as keys:
            if any(one.name == name for one in keys):
                raise Conflict("key_exists", f"there is a key {name!r}: remove it first, or choose another name")
            keys.append(key)
        return key, token

    def remove(self, name: str) -> None:
        """Raises NotFound. The last key that goes leaves a service that lets nobody in."""
        with self._changing() as keys:
            left = [key for key in keys if key.name != name]
            if len(left) == len(keys):
                raise NotFound("key_not_found", f"there is no key {name!r} in {self.path}")
            keys[:] = left

    @contextmanager
    def _changing(self) -> Iterator[list[Key]]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = list(self.keys or ())
            yield keys
            replace(self.path, _KEYS.dump_json(tuple(keys), indent=1), mode=0o600)


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_open_door(keyring: Keyring, host: str, *, unsafe: bool) -> None:
    """Raises Conflict where anybody of the network could do everything; KeysUnreadable, too."""
    if keyring.keys is None and not is_loopback(host) and not unsafe:
        raise Conflict(
            "no_keys",
            f"{host} is no loopback address, and there are no keys: whoever reaches it could do everything. Make one "
            f"with `refinery keys add NAME --role admin --data {keyring.path.parent}`",
        )


def _hashed(token: str) -> str:
    return sha256(token.encode(errors="surrogateescape")).hexdigest()
