"""Texts as chat messages and back.

A prompt is one text in this product, since that is what an engine continues. One that came as chat messages keeps them
beside it, in its metadata, and whoever wants messages gets the very same ones back.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

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
    return [{"role": str(message["role"]), "content": text_of(message.get("content"))} for message in conversation]


def text_of(value: Any) -> str:
    """What a text, a list of its parts or a list of messages says: a single message says its content, several say who
    says what. Raises ValueError for anything else."""
    if value is None or isinstance(value, str):
        return value or ""
    if is_conversation(value):
        messages = messages_of(value)
        return (
            messages[0]["content"]
            if len(messages) == 1
            else "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)
        )
    if isinstance(value, list):
        return "".join(text_of(part.get("text") if isinstance(part, dict) else part) for part in value)
    raise ValueError(f"a text was expected, and this is {value!r:.100}")


def as_messages(prompt: str, metadata: Mapping[str, Any]) -> list[Message]:
    """Of a prompt: those that it came as, else one of a user."""
    kept: Any = metadata.get(MESSAGES)
    return messages_of(kept) if is_conversation(kept) else [{"role": "user", "content": prompt}]
