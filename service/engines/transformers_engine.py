"""The embedded engine: transformers in this process, so that a laptop needs nothing else.

- One thread owns the model. It takes all requests that wait, samples them as one batch, then looks again.
- Weights change between batches only, so every completion is of one version, the one it is labelled with.
- A completion depends on weights, prompt, sampling and its seed, not on what shares its batch. Batching changes the
  last bits of a matrix product; small policies therefore run in float64, where those bits decide no token.
"""

import asyncio
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from curation.records import Completion, FinishReason, WeightSpan
from service.checkpoints import Checkpoint
from service.engines.base import Sampled, WorkerState, WorkerView
from service.engines.merging import merged
from service.engines.sampling import Row, generate
from service.engines.tokens import CANARY_PROMPT, Tokens
from service.run_config import Sampling
from service.stages import EngineFailed, stage

transformers.utils.logging.disable_progress_bar()  # it would write between the lines of the log
SMALL = 20_000_000
"""Parameters up to which weights are held in float64."""
CANARY = Sampling(n=1, max_tokens=1)


@dataclass(frozen=True, slots=True)
class _Request:
    prompt: str
    sampling: Sampling
    seeds: Sequence[int]
    future: Future[Sampled]


@dataclass(frozen=True, slots=True)
class _Load:
    checkpoint: Checkpoint
    version: int
    future: Future[None]


@dataclass(frozen=True, slots=True)
class _Policy:
    """Loaded weights with everything that goes with them."""

    model: Any
    tokens: Tokens
    version: int


class TransformersEngine:
    """See `service.engines.base.Engine`."""

    def __init__(self, *, max_rows: int) -> None:
        """`max_rows` is the number of completions in one batch."""
        self._max_rows = max_rows
        self._policy: _Policy | None = None
        self._in_flight = 0
        self._answered = 0
        self._inbox: queue.SimpleQueue[_Request | _Load | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    @property
    def policy_version(self) -> int:
        if self._policy is None:
            raise EngineFailed("no checkpoint is loaded")
        return self._policy.version

    async def sample(self, prompt: str, sampling: Sampling, seeds: Sequence[int]) -> Sampled:
        future: Future[Sampled] = Future()
        self._in_flight += len(seeds)
        try:
            self._inbox.put(_Request(prompt, sampling, seeds, future))
            sampled = await asyncio.wrap_future(future)
            self._answered += len(seeds)
            return sampled
        finally:
            self._in_flight -= len(seeds)

    async def load(self, checkpoint: Checkpoint, version: int) -> None:
        future: Future[None] = Future()
        self._inbox.put(_Load(checkpoint, version, future))
        with stage(EngineFailed, f"loading {checkpoint.source}"):
            await asyncio.wrap_future(future)

    def workers(self) -> list[WorkerView]:
        return [
            WorkerView(
                url="embedded:",
                admin_urls=(),
                dialect="transformers",
                server=f"transformers {transformers.__version__}",
                state=WorkerState.LIVE if self._policy else WorkerState.LOADING,
                reason="",
                version=self._policy.version if self._policy else None,
                in_flight=self._in_flight,
                window=self._max_rows,
                answered=self._answered,
                logprobs="tempered",
            )
        ]

    async def close(self) -> None:
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    def _serve(self) -> None:
        torch.set_grad_enabled(False)  # of this thread only
        held: _Request | _Load | None = None
        while True:
            item, held = held or self._inbox.get(), None
            if item is None:
                return
            if isinstance(item, _Load):
                _answer(item.future, lambda load=item: self._swap(load))
                continue
            batch, rows = [item], len(item.seeds)
            while rows < self._max_rows and not self._inbox.empty():
                following = self._inbox.get()
                # A load waits for the requests before it; a request that no longer fits opens the next batch.
                if not isinstance(following, _Request) or rows + len(following.seeds) > self._max_rows:
                    held = following
                    if following is None:
                        self._inbox.put(None)
                    break
                batch.append(following)
                rows += len(following.seeds)
            self._sample_batch(batch)

    def _swap(self, load: _Load) -> None:
        tokens = Tokens(load.checkpoint.full.folder)
        if load.checkpoint.base is None:
            model = AutoModelForCausalLM.from_pretrained(load.checkpoint.folder, use_safetensors=True)
        else:
            model = merged(load.checkpoint)
        model = model.eval()
        if not model(input_ids=torch.tensor([tokens.prompt_ids(CANARY_PROMPT, CANARY)])).logits.isfinite().all():
            raise EngineFailed(f"{load.checkpoint.source} answers no numbers: have the weights diverged?")
        if model.num_parameters() <= SMALL:
            model = model.double()
            torch.set_num_threads(1)  # threads of so small a product only wait for each other
        self._policy = _Policy(model, tokens, load.version)

    def _sample_batch(self, batch: list[_Request]) -> None:
        ready: list[tuple[_Request, list[Row]]] = []
        for request in batch:
            try:
                ready.append((request, self._rows(request)))
            except Exception as error:  # noqa: BLE001 - it is the caller's
                _fail(request.future, error)
        try:
            generate(self._loaded.model, self._loaded.tokens, [row for _, rows in ready for row in rows])
        except Exception as error:  # noqa: BLE001 - every caller of the batch gets it
            for request, _ in ready:
                _fail(request.future, EngineFailed(f"sampling: {error!r}"))
            return
        for request, rows in ready:
            completions = [self._completion(row) for row in rows]
            _answer(request.future, lambda c=completions: Sampled(c, self._loaded.version))

    @property
    def _loaded(self) -> _Policy:
        if self._policy is None:
            raise EngineFailed("no checkpoint is loaded")
        return self._policy

    def _rows(self, request: _Request) -> list[Row]:
        """Raises EngineFailed for a prompt that the policy cannot read."""
        prompt_ids = self._loaded.tokens.prompt_ids(request.prompt, request.sampling)
        return [Row.drawn(prompt_ids, request.sampling, seed) for seed in request.seeds]

    def _completion(self, row: Row) -> Completion:
        policy = self._loaded
        stopped = policy.tokens.is_ended(row.token_ids)
        return Completion(
            text=policy.tokens.text(row.token_ids),
            token_ids_T=tuple(row.token_ids),
            logprobs_T=tuple(row.logprobs),
            finish_reason=FinishReason.STOP if stopped else FinishReason.LENGTH,
            weight_versions=(WeightSpan(policy.version, 0, len(row.token_ids)),),
        )


def _answer(future: Future[Any], make: Any) -> None:
    """Resolves a future with what `make` gives or raises, unless its caller has gone."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(make())
    except Exception as error:  # noqa: BLE001 - it is the caller's
        future.set_exception(error)


def _fail(future: Future[Any], error: Exception) -> None:
    def throw() -> None:
        raise error

    _answer(future, throw)
