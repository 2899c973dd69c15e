"""Where in a completion the answer stands."""

import re

BOXED = re.compile(r"\\f?boxed\s*\{")
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


def boxed_answer(text: str) -> str | None:
    """What stands in the last ``\\boxed{}``, or None without one that ends."""
    for start in reversed([found.end() for found in BOXED.finditer(text)]):
        depth = 1
        for end in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start:end].strip()
    return None
