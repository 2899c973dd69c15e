# ruff: noqa: UP006, UP035 - runs on older Pythons, too
"""What runs inside a sandbox, in two roles: the program under test, and the tests.

- It is started from its source text, alone, by whatever Python the sandbox has (3.8 or newer, standard library only).
- The program never sees an expected value: calls go in, results come out. The tests see results only as plain values
  that they build themselves, so nothing a program returns can pretend to be equal to something.
- Whatever the program writes on the line counts as its answer and as nothing else.
"""

import ast
import builtins
import json
import os
import random
import sys
from typing import Any, Callable, Dict, TextIO, Tuple

PLAIN = (bool, type(None), str)


def packed(value: Any) -> Any:
    """A value as JSON that remembers its exact type; what is not made of builtins becomes its name."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind is int:
        return {"int": hex(value)}
    if kind is float:
        return {"float": value.hex()}
    if kind is complex:
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if kind in (bytes, bytearray):
        return {kind.__name__: value.hex()}
    if kind in (list, tuple, set, frozenset):
        return {kind.__name__: [packed(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[packed(key), packed(item)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list" if isinstance(value, list) else "tuple": [packed(item) for item in value]}
    return {"foreign": kind.__name__}


class Foreign:
    """A result that the tests cannot look into. Equal to nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return id(self)


def unpacked(value: Any) -> Any:
    """The value again. Raises ValueError for what `packed` does not make."""
    if type(value) in PLAIN:
        return value
    if type(value) is not dict or len(value) != 1:
        raise ValueError("not a packed value")
    [(kind, inside)] = value.items()
    if kind == "int":
        return int(inside, 16)
    if kind == "float":
        return float.fromhex(inside)
    if kind == "complex":
        return complex(*map(float.fromhex, inside))
    if kind in ("bytes", "bytearray"):
        return getattr(builtins, kind).fromhex(inside)
    if kind in ("list", "tuple", "set", "frozenset"):
        return getattr(builtins, kind)([unpacked(item) for item in inside])
    if kind == "dict":
        return {unpacked(key): unpacked(item) for key, item in inside}
    if kind == "foreign":
        return Foreign(str(inside))
    raise ValueError("not a packed value")


def line() -> Tuple[TextIO, TextIO]:
    """Two ends of the line to the outside, while the program's own input is empty and its output goes nowhere."""
    incoming, outgoing = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    return incoming, outgoing


def send(outgoing: TextIO, message: Any) -> None:
    outgoing.write(json.dumps(message) + "\n")
    outgoing.flush()


def program() -> None:
    """First line: the source. Then one call per line."""
    incoming, outgoing = line()
    names: Dict[str, Any] = {"__name__": "__main__"}
    try:
        exec(compile(json.loads(incoming.readline()), "program.py", "exec"), names)
    except BaseException as error:  # noqa: BLE001 - it may raise anything, exits included
        send(outgoing, {"raised": type(error).__name__, "said": str(error)[:200]})
        return
    send(outgoing, {"value": None})
    for text in incoming:
        call = json.loads(text)
        try:
            args, kwargs = unpacked(call["args"]), unpacked(call["kwargs"])
            answer = {"value": packed(names[call["call"]](*args, **kwargs))}
        except BaseException as error:  # noqa: BLE001 - it may raise anything, exits included
            answer = {"raised": type(error).__name__, "said": str(error)[:200]}
        send(outgoing, answer)


class Enough(BaseException):
    """The first failed assertion decides."""


class Score:
    """Counts assertions; each is the body of one ``with``."""

    def __init__(self, partial: bool) -> None:
        self.partial = partial
        self.total = 0
        self.passed = 0
        self.failed = ""
        self.raised = False
        """Whether the program raised something."""

    def __enter__(self) -> None:
        self.total += 1

    def __exit__(self, kind: Any, error: Any, _: Any) -> bool:
        if kind is None:
            self.passed += 1
            return False
        if not issubclass(kind, Exception):
            return False
        if issubclass(kind, (NameError, ImportError)) and not self.raised:
            return False  # the tests themselves are broken
        self.failed = self.failed or f"{kind.__name__}: {str(error)[:200]}"
        if not self.partial:
            raise Enough
        return True


class Counted(ast.NodeTransformer):
    """Wraps every assertion into a ``with``."""

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        item = ast.withitem(context_expr=ast.Name(id="__score__", ctx=ast.Load()), optional_vars=None)
        return ast.copy_location(ast.With(items=[item], body=[node]), node)


def proxy(name: str, score: Score, incoming: TextIO, outgoing: TextIO) -> Callable[..., Any]:
    """Stands for the program's function of this name."""

    def call(*args: Any, **kwargs: Any) -> Any:
        send(outgoing, {"call": name, "args": packed(args), "kwargs": packed(kwargs)})
        answer = json.loads(incoming.readline())
        if "raised" in answer:
            score.raised = True
            error = getattr(builtins, str(answer["raised"]), None)
            if isinstance(error, type) and issubclass(error, Exception):
                raise error(str(answer.get("said")))
            raise RuntimeError(f"{answer['raised']}: {answer.get('said')}")
        return unpacked(answer["value"])

    call.__name__ = name
    return call


def tests() -> None:
    """One line per program: the tests and what they call. Calls go out; at the end the score does."""
    incoming, outgoing = line()
    for text in incoming:
        task = json.loads(text)
        score = Score(task["partial"])
        random.seed(0)
        names: Dict[str, Any] = {"__name__": "tests", "__score__": score}
        for name in task["functions"]:
            names[name] = proxy(name, score, incoming, outgoing)
        broken = ""
        try:
            exec(compile(task["setup"], "setup.py", "exec"), names)
            for name in task["functions"]:
                names[name] = proxy(name, score, incoming, outgoing)
            tree = ast.fix_missing_locations(Counted().visit(ast.parse(task["tests"])))
            exec(compile(tree, "tests.py", "exec"), names)
            if task["check"]:
                names["check"](names[task["functions"][0]])
        except Enough:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            said = f"{type(error).__name__}: {str(error)[:200]}"
            if score.raised:
                score.total, score.failed = score.total + 1, score.failed or said
            else:
                broken = said
        send(outgoing, {"passed": score.passed, "total": score.total, "failed": score.failed, "broken": broken})


if __name__ == "__main__":
    {"program": program, "tests": tests}[sys.argv[1]]()
