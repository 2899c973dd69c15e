"""One engine server in the fleet: where it is, what it was last seen with, how its weights are changed.

- A worker is given work only while LIVE, and is LIVE only at the version that the policy is at.
- Its weights change only while none of our requests is on it, unless it reports per token which weights it used.
- After a failed change nobody knows what it holds: it gets no work until a whole change has succeeded.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp

from curation.keys import digest
from curation.records import Completion, WeightSpan
from service.checkpoints import Checkpoint
from service.engines.addresses import Kind, WorkerSpec
from service.engines.base import WorkerState, WorkerView
from service.engines.dialects.base import Ask, Dialect, Facts, Said
from service.engines.dialects.known import DIALECTS, recognise
from service.engines.link import CONTROL_SECONDS, Fault, Link, Unreachable
from service.engines.merging import merged_folder
from service.engines.process import EngineProcess
from service.engines.tokens import CANARY_PROMPT, Tokens
from service.run_config import Sampling
from service.stages import EngineFailed, stage

logger = logging.getLogger(__name__)

QUEUE_AHEAD = 2
"""Completions in flight per completion that the engine decodes at once, so that it never waits for us."""
UNKNOWN_CAPACITY = 128
MOST_FAILURES = 3
"""Groups in a row; after them a worker rests while others can do its work."""
FIRST_REST, LONGEST_REST = 1.0, 60.0
"""Seconds; doubled with each group that fails after a rest."""
CANARY = Sampling(n=1, temperature=0, max_tokens=4)
CANARY_TOLERANCE = 0.05
"""Of a logprob, between two answers of the same weights: half-precision servers vary with what shares the batch."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a worker should hold."""

    policy: str
    checkpoint: Checkpoint
    version: int
    tokens: Tokens

    @property
    def label(self) -> str:
        """What servers call these weights. The digest keeps two services on one server apart."""
        return f"{self.policy}@{self.version}-{digest(self.checkpoint.source)[:8]}"


class Worker:
    def __init__(
        self,
        spec: WorkerSpec,
        session: aiohttp.ClientSession,
        *,
        api_key: str | None,
        scratch: Path,
        request_seconds: float,
        process: EngineProcess | None = None,
    ) -> None:
        self.spec = spec
        self.process = process
        self.state = WorkerState.DOWN
        self.reason = "not reached yet"
        self.in_flight = 0
        self.window = UNKNOWN_CAPACITY
        self._widest = UNKNOWN_CAPACITY
        self._link = Link(session, spec.url, api_key)
        self._admins = [Link(session, url, api_key) for url in spec.admin_urls or (spec.url,)]
        self._scratch = scratch
        self._request_seconds = request_seconds
        self._dialect: Dialect | None = DIALECTS[spec.dialect] if spec.dialect else None
        self._facts: Facts | None = None
        self._held: Target | None = None
        self._model = ""
        self._versions: dict[str, int] = {}
        """Version of every label that this worker was given."""
        self._canaries: dict[str, list[float]] = {}
        """What it answered to the canary with each of them."""
        self._answered = 0
        self.answered_at = -math.inf
        """Monotonic seconds of its last completed group."""
        self.failures = 0
        """Groups that it failed in a row, although it seems to be alive."""
        self._last_failure = ""
        self._rest = FIRST_REST / 2
        self._rests_until = -math.inf
        self._idle = asyncio.Event()
        self._idle.set()
        self._requests: set[asyncio.Task[list[Said]]] = set()
        self._changing = asyncio.Lock()

    def __str__(self) -> str:
        return self.spec.url

    @property
    def view(self) -> WorkerView:
        return WorkerView(
            url=self.spec.url,
            admin_urls=tuple(link.url for link in self._admins),
            dialect=self._dialect.kind if self._dialect else "",
            server=self._facts.server if self._facts else "",
            state=self.state,
            reason=self.reason or self._sickness,
            version=self._held.version if self._held else None,
            in_flight=self.in_flight,
            window=self.window,
            answered=self._answered,
            logprobs=self._facts.logprobs if self._facts else "",
            pid=self.process.pid if self.process else None,
        )

    @property
    def context(self) -> int | None:
        return self._facts.context if self._facts else None

    # ---- sampling

    def has_room(self, completions: int) -> bool:
        return self.state is WorkerState.LIVE and (self.in_flight == 0 or self.in_flight + completions <= self.window)

    def reserve(self, completions: int) -> None:
        self.in_flight += completions
        self._idle.clear()

    def release(self, completions: int) -> None:
        self.in_flight -= completions
        if self.in_flight == 0:
            self._idle.set()

    @property
    def is_sick(self) -> bool:
        """It looks alive, and fails what it is given."""
        return self.failures >= MOST_FAILURES

    @property
    def may_be_tried(self) -> bool:
        """It has rested, and one group will tell whether it is well again."""
        return self.in_flight == 0 and time.monotonic() >= self._rests_until

    @property
    def _sickness(self) -> str:
        return f"failed {self.failures} groups in a row, the last: {self._last_failure}" if self.is_sick else ""

    def failed(self, failure: Fault) -> None:
        """One group more. What was in flight when it fell sick makes its rest no longer."""
        was_resting = time.monotonic() < self._rests_until
        self.failures += 1
        self._last_failure = str(failure)
        if self.is_sick and not was_resting:
            self._rest = min(2 * self._rest, LONGEST_REST)
            self._rests_until = time.monotonic() + self._rest

    def narrow(self) -> None:
        """It said that it takes no more: give it half."""
        self.window = max(1, self.window // 2)

    async def sample(
        self, prompt_ids: list[int], sampling: Sampling, seeds: Sequence[int]
    ) -> tuple[list[Completion], int]:
        """The completions and the version the worker had when it was asked. Raises what `Link` raises."""
        assert self._held is not None
        held = self._held
        request = asyncio.create_task(self._ask(prompt_ids, sampling, seeds))
        self._requests.add(request)
        try:
            await asyncio.wait({request})
        finally:
            self._requests.discard(request)
            request.cancel()
        if request.cancelled():
            raise Unreachable(f"{self} was taken out of the fleet: {self.reason}")
        said_G = request.result()
        self.answered_at = time.monotonic()
        self._answered += len(said_G)
        if len(said_G) != len(seeds):
            raise Fault(f"{self} answered {len(said_G)} completions where {len(seeds)} were asked for")
        completions_G = [self._completion(said, held, sampling) for said in said_G]
        self.window = min(self._widest, self.window + 1)
        self.failures, self._rest = 0, FIRST_REST / 2
        return completions_G, held.version

    async def _ask(self, prompt_ids: list[int], sampling: Sampling, seeds: Sequence[int]) -> list[Said]:
        assert self._dialect is not None
        assert self._facts is not None
        ask = Ask(self._model, prompt_ids, sampling, seeds, seeded=self._facts.takes_seeds)
        return await self._dialect.sample(self._link, ask, seconds=self._request_seconds)

    def _completion(self, said: Said, held: Target, sampling: Sampling) -> Completion:
        """Raises Fault for an answer that does not hold together."""
        ids_T = self._token_ids(said, held.tokens)
        exact = self._facts is not None and self._facts.logprobs.is_exact(sampling)
        logprobs_T = said.logprobs_T if exact else []
        if not all(map(math.isfinite, logprobs_T)):
            raise Fault(f"{self} answered logprobs that are no numbers: have the weights of {held.label} diverged?")
        if logprobs_T and ids_T is not None and len(logprobs_T) != len(ids_T):
            raise Fault(f"{self} answered {len(logprobs_T)} logprobs for {len(ids_T)} tokens")
        if ids_T is None:
            return Completion(said.text, finish_reason=said.finish_reason)
        return Completion(
            text=held.tokens.text(ids_T),
            token_ids_T=tuple(ids_T),
            logprobs_T=tuple(logprobs_T),
            finish_reason=said.finish_reason,
            weight_versions=self._spans(said, held, len(ids_T)),
        )

    def _token_ids(self, said: Said, tokens: Tokens) -> list[int] | None:
        ids_T = said.token_ids_T
        if ids_T is not None and any(not 0 <= token < tokens.vocabulary for token in ids_T):
            raise Fault(f"{self} answered tokens that the policy does not have: does it serve another model?")
        return ids_T

    def _spans(self, said: Said, held: Target, length: int) -> tuple[WeightSpan, ...]:
        if not said.spans:
            return (WeightSpan(held.version, 0, length),)
        unknown = {span.version for span in said.spans} - self._versions.keys()
        if unknown:
            raise Fault(f"{self} sampled from weights {sorted(unknown)} that this service did not load")
        return tuple(WeightSpan(self._versions[span.version], span.start, span.end) for span in said.spans)

    # ---- changing weights

    async def bring(self, target: Target, *, in_flight: bool) -> None:
        """Makes the worker hold `target`; it stays LOADING until `admit`. Raises EngineFailed, with the worker
        DRAINED or DOWN. With `in_flight`, requests on a worker that labels tokens go on across the change."""
        async with self._changing:
            self._become(WorkerState.LOADING, f"loading {target.label}")
            try:
                if not (in_flight and self._labels_tokens):
                    await self._idle.wait()
                with stage(EngineFailed, f"loading {target.label} into {self}"):
                    await self._load(target)
            except Unreachable as failure:
                self.down(str(failure))
                raise
            except BaseException as failure:
                self.drain(str(failure) or f"loading {target.label} was interrupted")
                raise

    def admit(self) -> None:
        """It holds what it should: give it work."""
        self._become(WorkerState.LIVE, "")

    def drain(self, reason: str) -> None:
        """It answers, but nobody knows with which weights: take its work away."""
        self._drop(WorkerState.DRAINED, reason)

    def down(self, reason: str) -> None:
        """It does not answer: take its work away."""
        self._drop(WorkerState.DOWN, reason)

    def _drop(self, state: WorkerState, reason: str) -> None:
        self._held = None
        self._become(state, reason)
        for request in self._requests:
            request.cancel()

    async def knock(self) -> None:
        """Raises Fault where nobody is at home, or only somebody who says that the engine is not well."""
        seconds = min(CONTROL_SECONDS, self._request_seconds)
        await self._admins[0].ping("/v1/models", seconds=seconds)
        if self._dialect is not None:
            await self._dialect.check(self._admins[0], seconds=seconds)

    async def probe(self) -> None:
        """Raises EngineFailed unless the engine is alive and still has the weights we gave it."""
        if self.process:
            self.process.check()
        if self._held is not None:
            await self._each(lambda admin, dialect: dialect.check(admin), self._held.label)

    async def close(self) -> None:
        if self.process:
            await self.process.stop()

    @property
    def _labels_tokens(self) -> bool:
        """Whether answers tell the weights of each token, across a change."""
        return self._dialect is not None and self._dialect.kind is Kind.SGLANG

    async def _load(self, target: Target) -> None:
        was, self._held = self._held, None
        fresh = self.process is not None and (was is None or not self.process.is_running)
        if fresh:  # a process that failed before may be anything by now
            await self._start(target)
        if self._dialect is None:
            self._dialect = DIALECTS[await recognise(self._admins[0])]
        self._facts = _weakest([await self._dialect.describe(admin) for admin in self._admins])
        self._widest = self.window = QUEUE_AHEAD * (self._facts.capacity or UNKNOWN_CAPACITY)
        self._model = self._facts.model
        self._versions[target.label] = target.version  # answers may carry it before we hear of our success
        if self._dialect.kind is Kind.OPENAI:
            self._check_pinned(target)
        elif fresh and target.checkpoint.base is None:
            await self._each(lambda admin, dialect: dialect.set_label(admin, target.label), target.label)
        elif target.checkpoint.base is not None and self._facts.takes_adapters:
            await self._swap_adapter(target, was, fresh=fresh)
        else:
            await self._swap(target)
        self._held = target
        await self._canary(target)

    async def _start(self, target: Target) -> None:
        """Starts our own server with the target's weights, and waits until it answers."""
        assert self.process is not None
        launch = self.process.launch
        logger.info("starting %s at %s; it logs to %s", launch.kind, self, launch.log)
        await self.process.start(target.checkpoint.full.folder)
        await self.process.ready(self._admins[0])

    def _check_pinned(self, target: Target) -> None:
        if self.spec.version is None:
            raise EngineFailed(f"{self} has no control routes: attach it with the version of its weights")
        if self.spec.version != target.version:
            raise EngineFailed(f"{self} serves version {self.spec.version} for good, the policy is at {target.version}")

    async def _swap(self, target: Target) -> None:
        assert self._facts is not None
        if not self._facts.reloads_tied_head and target.checkpoint.config.get("tie_word_embeddings"):
            raise EngineFailed(
                f"{self} is a vLLM on a CPU, which keeps the old output head when tied weights are reloaded: start it "
                "with --worker-extension-cls refinery_vllm.ReloadExtension and service/engines/vllm_extension on its "
                "PYTHONPATH, or let the service launch it"
            )
        folder = target.checkpoint.folder
        if target.checkpoint.base is not None:
            folder = await asyncio.to_thread(merged_folder, target.checkpoint, self._scratch)
        await self._each(lambda admin, dialect: dialect.swap(admin, folder, target.label), target.label)

    async def _swap_adapter(self, target: Target, was: Target | None, *, fresh: bool) -> None:
        """Adapters are models beside their base, so only a new base is a change of weights."""
        base, folder = target.checkpoint.full, target.checkpoint.folder
        if not fresh and (was is None or was.checkpoint.full.source != base.source):
            await self._each(lambda admin, dialect: dialect.swap(admin, base.folder, target.label), target.label)
        await self._each(lambda admin, dialect: dialect.add_adapter(admin, folder, target.label), target.label)
        self._model = target.label
        if was is not None and was.checkpoint.base is not None and was.label != target.label:
            await self._each(lambda admin, dialect: dialect.drop_adapter(admin, was.label), target.label)

    async def _each(self, change: Callable[[Link, Dialect], Awaitable[None]], label: str) -> None:
        """Does something to every server at once, and hears from each that it holds the label."""
        dialect = self._dialect
        assert dialect is not None

        async def one(admin: Link) -> None:
            await change(admin, dialect)
            reported = await dialect.label(admin)
            if reported is not None and reported != label:
                raise EngineFailed(
                    f"{admin.url} reports weights {reported!r} where {label!r} belong: does somebody else change them?"
                )

        await asyncio.gather(*map(one, self._admins))

    async def _canary(self, target: Target) -> None:
        """Asks something after every change: the answer must be sound, and the same whenever the weights are."""
        ids = target.tokens.prompt_ids(CANARY_PROMPT, CANARY, self.context)
        [said] = await self._ask(ids, CANARY, [0])
        self._completion(said, target, CANARY)
        before = self._canaries.setdefault(target.label, said.logprobs_T)
        if max((abs(a - b) for a, b in zip(before, said.logprobs_T, strict=False)), default=0) > CANARY_TOLERANCE:
            raise EngineFailed(f"{self} reports {target.label} but does not answer as it did with these weights before")

    def _become(self, state: WorkerState, reason: str) -> None:
        if state is not self.state:
            logger.info("worker %s: %s -> %s %s", self, self.state, state, reason)
        self.state, self.reason = state, reason


def _weakest(facts: Sequence[Facts]) -> Facts:
    """What can be relied on when any of these servers may answer."""
    if len({(f.model, f.logprobs) for f in facts}) > 1:
        raise EngineFailed("servers behind one router must serve one model with one kind of logprobs")
    capacities = [f.capacity for f in facts]
    contexts = [f.context for f in facts if f.context]
    return replace(
        facts[0],
        capacity=sum(c for c in capacities if c) if all(capacities) else None,
        context=min(contexts, default=None),
        reloads_tied_head=all(f.reloads_tied_head for f in facts),
        takes_adapters=all(f.takes_adapters for f in facts),
        takes_seeds=all(f.takes_seeds for f in facts),
    )
