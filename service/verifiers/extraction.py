"""Where in a completion the answer stands."""

import re

TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def tagged_answer(text: str) -> str | None:
    """What stands in the last ``<answer>`` tag, or None without one."""
    found = TAGGED.findall(text)
    return found[-1].strip() if found else None


def plain_answer(text: str) -> str:
    """The tagged answer, else the last line that is not blank; empty if there is none."""
    tagged = tagged_answer(text)
    if tagged is not None:
        return tagged
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
