"""Verifiers that are servers. Each judges all completions of a prompt at once; the operator names their addresses.

- Whatever goes wrong on the way is an outcome of every completion it concerned, never a reward.
- A request that failed for the server's own reasons is sent once more.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from typing import Any, Protocol

import aiohttp

from curation.records import Outcome
from service.shares import Shares
from service.urls import shown
from service.verifiers.base import Judgement, OutOfTime, Question, dialogue, storable
from service.verifiers.rewards import ChatRewardOptions, number, rewarded, scored

AT_ONCE = 64
"""Requests to one server."""
SECONDS = 120.0
"""Until a request counts as lost."""
MOST_BYTES = 64 << 20
"""Of an answer."""
RETRY_PAUSE = 1.0


class Failed(Exception):
    """The server did not judge."""


class Speaks(Protocol):
    """How a kind of server is asked."""

    async def judge(self, line: "Line", question: Question, texts: Sequence[str]) -> list[Judgement]:
        """One judgement per text, whatever happens."""


class Line:
    """One server, and no other: no redirection is followed."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self.url = shown(self._url)
        """As it is told."""
        self._turns = Shares(lambda: AT_ONCE)
        self._run = ""
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON it answers. Raises Failed, OutOfTime."""
        async with self._turns.hold(self._run):
            try:
                return await self._post(path, body)
            except Failed:
                await asyncio.sleep(RETRY_PAUSE)
                return await self._post(path, body)

    def of(self, run: str) -> "Line":
        """The same, where this run takes its turns."""
        line = copy(self)
        line._run = run
        line._session = self._session = self._session or _session()
        return line

    def beside(self) -> "Line":
        """The same server, past everything that waits for it. Needs no closing."""
        other = Line(self._url)
        other._session = self._session = self._session or _session()
        return other

    async def close(self) -> None:
        if self._session:
            await self._session.close()

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        where = f"POST {self.url}{path}"
        self._session = self._session or _session()
        try:
            async with (
                asyncio.timeout(SECONDS),
                self._session.post(self._url + path, json=body, allow_redirects=False) as response,
            ):
                if response.status >= 300:
                    said = (await response.content.read(300)).decode(errors="replace")
                    raise Failed(f"{where}: {response.status} {said}")
                content = bytearray()
                async for chunk in response.content.iter_any():
                    content += chunk
                    if len(content) > MOST_BYTES:
                        raise Failed(f"{where}: an answer of more than {MOST_BYTES >> 20} MiB")
                return json.loads(content)
        except TimeoutError:
            raise OutOfTime(f"{where}: no answer in {SECONDS:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Failed(f"{where}: {error or type(error).__name__}") from error


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(keepalive_timeout=2.0))


async def judgements(
    speaks: Speaks, line: Line, question: Question, texts: Sequence[str]
) -> list[tuple[Judgement, float]]:
    """With the seconds that they took."""
    started = time.monotonic()
    judged = await speaks.judge(line, question, texts)
    seconds = (time.monotonic() - started) / max(1, len(texts))
    return [(j._replace(detail=storable(j.detail)), seconds) for j in judged]


async def one_by_one(line: Line, texts: Sequence[str], judge: Callable[[str], Awaitable[Judgement]]) -> list[Judgement]:
    """A request for each text; what goes wrong with one is the outcome of that one."""

    async def one(text: str) -> Judgement:
        try:
            return await judge(text)
        except OutOfTime as failure:
            return Judgement(Outcome.TIMEOUT, None, str(failure))
        except Failed as failure:
            return Judgement(Outcome.ERROR, None, str(failure)[:500])
        except (KeyError, TypeError, ValueError) as failure:
            detail = f"{line.url} answered with something else: {type(failure).__name__}: {failure}"
            return Judgement(Outcome.ERROR, None, detail[:500])

    return list(await asyncio.gather(*map(one, texts)))


class NemoGym:
    """NeMo Gym's resource servers: ``POST /verify`` with the task's own fields and a response of the Responses API
    (``nemo_gym/base_resources_server.py``)."""

    async def judge(self, line: Line, question: Question, texts: Sequence[str]) -> list[Judgement]:
        return await one_by_one(line, texts, lambda text: self._one(line, question, text))

    async def _one(self, line: Line, question: Question, text: str) -> Judgement:
        said = {"type": "output_text", "text": text, "annotations": []}
        message = {"id": "msg", "type": "message", "role": "assistant", "status": "completed", "content": [said]}
        response = {
            "id": "resp",
            "created_at": 0.0,
            "model": "policy",
            "object": "response",
            "output": [message],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }
        asked = {"input": [{"role": "user", "content": question.prompt, "type": "message"}]}
        body = {"expected_answer": question.reference} | question.metadata
        answer = await line.post("/verify", body | {"responses_create_params": asked, "response": response})
        return scored(number(answer["reward"]), str(answer.get("extracted_answer") or ""))


class RewardModel:
    """A reward model on a server, asked for its raw score of prompt and completion together."""

    def __init__(self, route: str, asked: Callable[[str, Sequence[str]], dict[str, Any]], **extra: Any) -> None:
        """`asked` is the part of the request's body that holds a prompt and its completions."""
        self._route = route
        self._asked = asked
        self._extra = extra

    async def judge(self, line: Line, question: Question, texts: Sequence[str]) -> list[Judgement]:
        if question.options.get("chat"):  # a request takes one conversation
            return await one_by_one(line, texts, lambda text: self._alone(line, question, text))
        try:
            return await self._together(line, question, texts)
        except OutOfTime as failure:
            return [Judgement(Outcome.TIMEOUT, None, str(failure))] * len(texts)
        except (Failed, KeyError, TypeError, ValueError):
            # One that the server cannot take must not cost the others their rewards.
            return await one_by_one(line, texts, lambda text: self._alone(line, question, text))

    async def _alone(self, line: Line, question: Question, text: str) -> Judgement:
        [judgement] = await self._together(line, question, [text])
        return judgement

    async def _together(self, line: Line, question: Question, texts: Sequence[str]) -> list[Judgement]:
        options = ChatRewardOptions.model_validate(question.options)
        if options.chat:
            asked: dict[str, Any] = {"messages": dialogue(question.prompt, *texts)}
        else:
            asked = self._asked(question.prompt, texts)
        answer = await line.post(self._route, asked | self._extra)
        entries = answer["data"] if isinstance(answer, dict) else answer
        if len(entries) != len(texts):
            raise Failed(f"{line.url} gave {len(entries)} scores for {len(texts)} completions")
        return [rewarded(_score(entry), text, options) for entry, text in zip(entries, texts, strict=True)]


def _joined(field: str) -> Callable[[str, Sequence[str]], dict[str, Any]]:
    return lambda prompt, texts: {field: [prompt + text for text in texts]}


def _paired(prompt: str, texts: Sequence[str]) -> dict[str, Any]:
    return {"text_1": prompt, "text_2": list(texts)}


SPEAKS: dict[str, Speaks] = {
    "nemo_gym": NemoGym(),
    "vllm_classify": RewardModel("/classify", _joined("input"), use_activation=False),
    "vllm_pooling": RewardModel("/pooling", _joined("input"), task="classify", use_activation=False),
    "vllm_score": RewardModel("/score", _paired, use_activation=False),
    "sglang": RewardModel("/classify", _joined("text")),
}


def _score(entry: Any) -> float:
    """The one number that the server gives for a text, under whichever name. Raises ValueError for several."""
    [value] = [entry[key] for key in ("data", "probs", "embedding", "score") if key in entry]
    while isinstance(value, list):
        [value] = value
    return number(value)
