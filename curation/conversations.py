"""Texts as chat messages and back.

A prompt is one text in this product, since that is what an engine continues. One that came as chat messages keeps the
role and the text of each in its metadata, and whoever wants messages gets these back. What is no text, an image say,
is refused rather than left away.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any

from curation.keys import canonical_json

Message = dict[str, str]
MESSAGES = "messages"
"""Key of the metadata of a prompt under which its messages stand where they say more than its text."""
ANSWERING = {"assistant", "agent", "model", "gpt"}
"""Roles whose messages a policy wrote."""


def is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def asked_and_answered(conversation: Sequence[Mapping[str, Any]]) -> tuple[list[Message], list[Message]]:
    """The messages before the first one that the policy wrote, and those from there to its last one. Raises ValueError
    for a conversation without such messages, and for messages that are no text."""
    messages = messages_of(conversation)
    asked = list(takewhile(lambda message: message["role"] not in ANSWERING, messages))
    answered = messages[len(asked) :]
    while answered and answered[-1]["role"] not in ANSWERING:
        answered.pop()
    if not answered:
        raise ValueError(f"no message of {' or '.join(sorted(ANSWERING))} in it")
    return asked, answered


def messages_of(conversation: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Raises ValueError for messages that are no text."""
    return [{"role": text_of(message["role"]), "content": _content(message)} for message in conversation]


def _content(message: Mapping[str, Any]) -> str:
    """Calls of tools are told as JSON behind what the message says."""
    content, calls = message.get("content"), message.get("tool_calls")
    return ("" if content is None else text_of(content)) + (canonical_json(calls) if calls else "")


def text_of(value: Any) -> str:
    """What a text, a list of its parts or a list of messages says: a single message says its content, several say who
    says what. Raises ValueError for anything else."""
    if isinstance(value, str):
        return value
    if is_conversation(value):
        messages = messages_of(value)
        return (
            messages[0]["content"]
            if len(messages) == 1
            else "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)
        )
    if isinstance(value, list):
        return "".join(text_of(part["text"] if isinstance(part, dict) and "text" in part else part) for part in value)
    raise ValueError(f"a text was expected, and this is {value!r:.100}")


def as_messages(prompt: str, metadata: Mapping[str, Any]) -> list[Message]:
    """Of a prompt: those that it came as, else one of a user. Whoever adds a prompt may keep anything under their name:
    only what says the prompt itself are its messages."""
    kept: Any = metadata.get(MESSAGES)
    with suppress(ValueError):
        if is_conversation(kept) and text_of(kept) == prompt:
            return messages_of(kept)
    return [{"role": "user", "content": prompt}]
