"""What a prompt's metadata says of its tests."""

import re
from typing import Any, NamedTuple

from pydantic import ValidationError

from curation.choice import Choice
from service.verifiers.base import BadReference, Question


class Score(NamedTuple):
    passed: int
    total: int
    failed: str
    """The first failure, in words."""


class Tests(Choice):
    """Metadata of a prompt: tests in one of three styles."""

    test: str | None = None
    """Source that defines ``check(candidate)`` (HumanEval); needs `entry_point`."""
    entry_point: str | None = None
    test_list: tuple[str, ...] = ()
    """Assertions that call the program's functions by name (MBPP)."""
    test_setup_code: str = ""
    inputs: tuple[Any, ...] = ()
    """Standard inputs, or with `fn_name` lists of arguments (APPS)."""
    outputs: tuple[Any, ...] = ()
    fn_name: str | None = None


def tests_of(question: Question) -> Tests:
    known = {key: value for key, value in question.metadata.items() if key in Tests.model_fields}
    try:
        tests = Tests.model_validate(known)
    except ValidationError as error:
        raise BadReference(f"metadata: {error.errors()[0]['msg']}") from None
    if len(tests.inputs) != len(tests.outputs):
        raise BadReference(f"metadata has {len(tests.inputs)} inputs and {len(tests.outputs)} outputs")
    if not (tests.inputs or tests.test_list or (tests.test and tests.entry_point)):
        raise BadReference('metadata has no "test" with "entry_point", no "test_list" and no "inputs" with "outputs"')
    return tests


def defines(source: str, name: str) -> bool:
    return re.search(rf"^(?:async\s+)?def\s+{re.escape(name)}\b", source, re.MULTILINE) is not None
