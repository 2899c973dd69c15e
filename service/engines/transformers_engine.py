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
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

from curation.records import Completion, FinishReason, WeightSpan
from service.checkpoints import Checkpoint
from service.engines.base import Sampled, WorkerState, WorkerView
from service.engines.merging import merged
from service.engines.tokens import CANARY_PROMPT, Tokens
from service.run_config import Sampling
from service.stages import EngineFailed, stage

SMALL = 20_000_000
"""Parameters up to which weights are held in float64."""
CANARY = Sampling(n=1, max_tokens=1)
LOGPROB_DECIMALS = 6
"""Logprobs are rounded to what batching cannot change."""


@dataclass(slots=True)
class _Row:
    """One completion in the making."""

    prompt_ids: list[int]
    sampling: Sampling
    draws: np.ndarray
    """One uniform number per token, drawn up front from the row's own seed."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


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
        ready: list[tuple[_Request, list[_Row]]] = []
        for request in batch:
            try:
                ready.append((request, self._rows(request)))
            except Exception as error:  # noqa: BLE001 - it is the caller's
                _fail(request.future, error)
        try:
            _generate(self._loaded, [row for _, rows in ready for row in rows])
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

    def _rows(self, request: _Request) -> list[_Row]:
        """Raises EngineFailed for a prompt that the policy cannot read."""
        prompt_ids, limit = (
            self._loaded.tokens.prompt_ids(request.prompt, request.sampling),
            request.sampling.max_tokens,
        )
        return [
            _Row(prompt_ids, request.sampling, np.random.Generator(np.random.Philox(key=seed)).random(limit))
            for seed in request.seeds
        ]

    def _completion(self, row: _Row) -> Completion:
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


def _generate(policy: _Policy, rows: list[_Row]) -> None:
    """Samples all rows to their end. Finished rows leave the batch as soon as they make up half of it."""
    if not rows:
        return
    width = max(len(row.prompt_ids) for row in rows)
    ids_BT = torch.tensor([[policy.tokens.pad] * (width - len(row.prompt_ids)) + row.prompt_ids for row in rows])
    mask_BT = torch.tensor([[0] * (width - len(row.prompt_ids)) + [1] * len(row.prompt_ids) for row in rows])
    position_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=policy.model.config)
    alive = list(range(len(rows)))  # position in the batch -> row

    while True:
        output = policy.model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=position_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens_B, logprobs_B = _draw(output.logits[:, -1].double(), [rows[i] for i in alive])
        for i, token, logprob in zip(alive, tokens_B.tolist(), logprobs_B.tolist(), strict=True):
            if not _is_finished(rows[i], policy):
                rows[i].token_ids.append(token)
                rows[i].logprobs.append(round(logprob, LOGPROB_DECIMALS))

        going = [b for b, i in enumerate(alive) if not _is_finished(rows[i], policy)]
        if not going:
            return
        position_B = position_BT[:, -1] + 1
        if len(going) <= len(alive) // 2:
            keep = torch.tensor(going)
            cache.batch_select_indices(keep)
            mask_BT, tokens_B, position_B = mask_BT[keep], tokens_B[keep], position_B[keep]
            alive = [alive[b] for b in going]
        ids_BT, position_BT = tokens_B[:, None], position_B[:, None]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(alive), 1)], dim=1)


def _is_finished(row: _Row, policy: _Policy) -> bool:
    return len(row.token_ids) == row.sampling.max_tokens or policy.tokens.is_ended(row.token_ids)


def _draw(logits_BV: torch.Tensor, rows: list[_Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of each row with its logprob under the full softmax at the row's temperature.

    Inverse transform sampling: one uniform number decides each token, so the draw needs no generator state.
    """
    greedy_B = torch.tensor([row.sampling.temperature == 0 for row in rows])
    temperature_B = torch.tensor([row.sampling.temperature or 1.0 for row in rows], dtype=torch.float64)
    logprobs_BV = torch.log_softmax(logits_BV / temperature_B[:, None], dim=-1)
    draws = [row.draws[min(len(row.token_ids), len(row.draws) - 1)] for row in rows]
    drawn_B = _inverse_transform(_truncate(logprobs_BV.exp(), rows), torch.tensor(draws, dtype=torch.float64))
    tokens_B = torch.where(greedy_B, logprobs_BV.argmax(dim=-1), drawn_B)
    return tokens_B, logprobs_BV.gather(1, tokens_B[:, None])[:, 0]


def _inverse_transform(probabilities_BV: torch.Tensor, draws_B: torch.Tensor) -> torch.Tensor:
    cumulative_BV = probabilities_BV.cumsum(dim=-1)
    # Scaled by the total, so that probabilities that do not add up to exactly 1 leave no gap at the end.
    reached_BV = cumulative_BV > draws_B[:, None] * cumulative_BV[:, -1:]
    return reached_BV.int().argmax(dim=-1)


def _truncate(probabilities_BV: torch.Tensor, rows: list[_Row]) -> torch.Tensor:
    """Zeroes what top-k and top-p leave out; the most likely token always stays."""
    size = probabilities_BV.shape[-1]
    if all(row.sampling.top_p == 1.0 and row.sampling.top_k in (0, size) for row in rows):
        return probabilities_BV
    top_p_B = torch.tensor([row.sampling.top_p for row in rows], dtype=torch.float64)
    top_k_B = torch.tensor([row.sampling.top_k or size for row in rows])
    sorted_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    out_BV = (before_BV >= top_p_B[:, None]) | (torch.arange(size) >= top_k_B[:, None])
    out_BV[:, 0] = False
    return probabilities_BV.masked_fill(out_BV.gather(1, order_BV.argsort(dim=-1)), 0.0)
