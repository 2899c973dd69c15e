"""A disk whose power can be cut: what a process wrote, as strace saw it, and what of it would be there afterwards.

As ext4 keeps its promises, and no more: what was synced is there; a sync also makes the names durable that were made,
moved or removed before it, of whatever file. Of later names any prefix may be there, and of data that nobody synced
nothing, or some.
"""

import random
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TRACED = (
    "openat,open,creat,lseek,write,pwrite64,writev,pwritev,ftruncate,truncate,fallocate,fsync,fdatasync,"
    "rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,copy_file_range,sendfile"
)
CALL = re.compile(r"(?P<pid>\d+) +(?P<name>\w+)\((?P<arguments>.*?)(\) += (?P<result>-?\d+).*| <unfinished \.\.\.>)$")
RESUMED = re.compile(r"(?P<pid>\d+) +<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)\) += (?P<result>-?\d+).*$")
TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"|<((?:\\x[0-9a-f]{2})*)>')
NUMBER = re.compile(r", (-?\d+)")
SAID = "said: "
"""What the process writes to its standard output, and is to be true from then on, begins so."""


def strace(log: Path) -> list[str]:
    return ["strace", "-f", "-qq", "-y", "-xx", "-s", str(1 << 26), "-e", f"trace={TRACED}", "-o", str(log)]


@dataclass(slots=True)
class File:
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    unsynced: list[tuple[int, bytes]] = field(default_factory=list)
    """Writes since then, with their place."""

    def write(self, at: int, content: bytes) -> None:
        self.data.extend(bytes(max(0, at - len(self.data))))
        self.data[at : at + len(content)] = content
        self.unsynced.append((at, content))

    def truncate(self, size: int) -> None:
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))
        self.unsynced.append((size, b""))

    def sync(self) -> None:
        self.synced = bytes(self.data)
        self.unsynced = []

    def afterwards(self, rng: random.Random | None) -> bytes:
        """Of what was not synced nothing, or some."""
        if rng is None:
            return self.synced
        left = File(bytearray(self.synced))
        for at, content in self.unsynced:
            if rng.random() < 0.5:
                left.write(at, content)
        return bytes(left.data)


Names = dict[str, File | None]
"""A folder is None."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A moment at which the power goes."""

    said: tuple[str, ...]
    durable: Names
    names: tuple[Names, ...]
    """As they were after each later change, up to now."""

    def restore(self, root: Path, folder: Path, rng: random.Random | None) -> None:
        """The disk as it is found afterwards; without randomness, what is sure to be there and nothing else."""
        names = self.durable if rng is None else rng.choice([self.durable, *self.names])
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in sorted(names):
            path = folder / Path(name).relative_to(root)
            file = names[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            if file is None:
                path.mkdir(exist_ok=True)
            else:
                path.write_bytes(file.afterwards(rng))


class Disk:
    """The folder `root`, as it changed."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._names: Names = {}
        self._durable: Names = {}
        self._later: list[Names] = []
        self._said: list[str] = []
        self._places: dict[tuple[str, str], int] = {}
        """Where a descriptor stands, by its number and its file."""
        self._appends: dict[tuple[str, str], bool] = {}

    def cuts(self, calls: Sequence[tuple[str, list[bytes], list[int], int, str]]) -> Iterator[Cut]:
        """One after every call that changed something."""
        for name, texts, numbers, result, descriptor in calls:
            if self._happened(
                name, [text.decode(errors="replace") for text in texts], texts, numbers, result, descriptor
            ):
                yield self._now()

    def _now(self) -> Cut:
        copies: dict[int, File] = {}

        def copied(names: Names) -> Names:
            return {
                name: file and copies.setdefault(id(file), File(bytearray(file.data), file.synced, list(file.unsynced)))
                for name, file in names.items()
            }

        return Cut(tuple(self._said), copied(self._durable), tuple(map(copied, self._later[-4:])))

    def _is_ours(self, path: str) -> bool:
        return path.startswith(self._root + "/") or path == self._root

    def _happened(
        self, name: str, paths: list[str], texts: list[bytes], numbers: list[int], result: int, descriptor: str
    ) -> bool:
        if name in {"write", "pwrite64"} and descriptor == "1" and texts[-1].startswith(SAID.encode()):
            self._said.append(texts[-1].decode().strip().removeprefix(SAID))
            return False
        if result < 0 or not any(map(self._is_ours, paths)):
            return False
        match name:
            case "openat" | "open" | "creat":
                changed = self._opened(paths[-1], numbers[0])
                self._places[str(result), paths[-1]] = 0
                self._appends[str(result), paths[-1]] = bool(numbers[0] & APPENDS)
                return changed
            case "lseek":
                self._places[descriptor, paths[0]] = result
                return False
            case "write":
                file = self._file(paths[0])
                assert file is not None
                at = self._places.get((descriptor, paths[0]), len(file.data))  # of a copy: where it was opened
                if self._appends.get((descriptor, paths[0])):
                    at = len(file.data)
                self._places[descriptor, paths[0]] = at + result
                return self._written(paths[0], at, texts[-1][:result])
            case "pwrite64":
                return self._written(paths[0], numbers[-1], texts[-1][:result])
            case "ftruncate" | "truncate":
                file = self._file(paths[0])
                assert file is not None
                file.truncate(numbers[-1])
                return True
            case "fsync" | "fdatasync":
                if file := self._file(paths[0]):
                    file.sync()
                self._durable, self._later = dict(self._names), []
                return True
            case "rename" | "renameat" | "renameat2":
                old, new = [path for path in paths if self._is_ours(path)][-2:]
                return self._moved(old, new)
            case "unlink" | "unlinkat" | "rmdir":
                return self._renamed({n: f for n, f in self._names.items() if n != paths[-1]})
            case "mkdir" | "mkdirat":
                return self._renamed({**self._names, paths[-1]: None})
        raise AssertionError(f"nobody knows what {name} does to {paths}")

    def _file(self, path: str) -> File | None:
        return self._names.get(path)

    def _opened(self, path: str, flags: int) -> bool:
        known = self._names.get(path)
        if path not in self._names:
            if flags & CREATES:
                return self._renamed({**self._names, path: File()})
            return False
        if flags & TRUNCATES and known:
            known.truncate(0)
            return True
        return False

    def _written(self, path: str, at: int, content: bytes) -> bool:
        file = self._file(path)
        assert file is not None, path
        file.write(at, content)
        return True

    def _moved(self, old: str, new: str) -> bool:
        names = {n: f for n, f in self._names.items() if n != new and not n.startswith(f"{new}/")}
        moved = {n: f for n, f in names.items() if n == old or n.startswith(f"{old}/")}
        kept = {n: f for n, f in names.items() if n not in moved}
        return self._renamed(kept | {new + n[len(old) :]: f for n, f in moved.items()})

    def _renamed(self, names: Names) -> bool:
        self._names = names
        self._later.append(names)
        return True


CREATES, TRUNCATES, APPENDS = 1, 2, 4


def calls_in(log: Path) -> Iterator[tuple[str, list[bytes], list[int], int, str]]:
    """Name, texts and paths, numbers, result and descriptor of every call, in the order in which they ended."""
    begun: dict[str, str] = {}
    for line in log.read_text().splitlines():
        if call := CALL.match(line):
            if call["result"] is None:
                begun[call["pid"]] = call["arguments"]
                continue
            name, arguments, result = call["name"], call["arguments"], int(call["result"])
        elif resumed := RESUMED.match(line):
            name, arguments, result = (
                resumed["name"],
                begun.pop(resumed["pid"]) + resumed["rest"],
                int(resumed["result"]),
            )
        else:
            continue
        texts = [bytes.fromhex((a or b).replace("\\x", "")) for a, b in TEXT.findall(arguments)]
        bare = TEXT.sub("", arguments)
        numbers = [int(number) for number in NUMBER.findall(bare)]
        if name in {"openat", "open", "creat"}:
            flags = {CREATES: "O_CREAT", TRUNCATES: "O_TRUNC", APPENDS: "O_APPEND"}
            numbers = [sum(flag for flag, spelled in flags.items() if spelled in bare)]
            if result < 0:
                continue
        yield name, texts, numbers, result, bare.partition(",")[0].strip()
