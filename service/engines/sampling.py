"""Sampling many completions from one model at once.

A completion is decided by weights, prompt, sampling and its own draws, made up front from its seed; batching changes
nothing but the last bits of a matrix product.
"""

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from transformers import DynamicCache

from service.engines.tokens import Tokens
from service.run_config import Sampling

LOGPROB_DECIMALS = 6
"""Logprobs are rounded to what batching cannot change."""


@dataclass(slots=True)
class Row:
    """One completion in the making."""

    prompt_ids: list[int]
    sampling: Sampling
    draws: np.ndarray
    """One uniform number per token, drawn up front from the row's own seed."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @classmethod
    def drawn(cls, prompt_ids: list[int], sampling: Sampling, seed: int) -> Self:
        draws = np.random.Generator(np.random.Philox(key=seed)).random(sampling.max_tokens)
        return cls(prompt_ids, sampling, draws)


def generate(model: Any, tokens: Tokens, rows: list[Row]) -> None:
    """Samples all rows to their end. Finished rows leave the batch as soon as they make up half of it."""
    if not rows:
        return
    width = max(len(row.prompt_ids) for row in rows)
    ids_BT = torch.tensor([[tokens.pad] * (width - len(row.prompt_ids)) + row.prompt_ids for row in rows])
    mask_BT = torch.tensor([[0] * (width - len(row.prompt_ids)) + [1] * len(row.prompt_ids) for row in rows])
    position_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    alive = list(range(len(rows)))  # position in the batch -> row

    while True:
        output = model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=position_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens_B, logprobs_B = _draw(output.logits[:, -1].double(), [rows[i] for i in alive])
        for i, token, logprob in zip(alive, tokens_B.tolist(), logprobs_B.tolist(), strict=True):
            if not _is_finished(rows[i], tokens):
                rows[i].token_ids.append(token)
                rows[i].logprobs.append(round(logprob, LOGPROB_DECIMALS))

        going = [b for b, i in enumerate(alive) if not _is_finished(rows[i], tokens)]
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


def _is_finished(row: Row, tokens: Tokens) -> bool:
    return len(row.token_ids) == row.sampling.max_tokens or tokens.is_ended(row.token_ids)


def _draw(logits_BV: torch.Tensor, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
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


def _truncate(probabilities_BV: torch.Tensor, rows: list[Row]) -> torch.Tensor:
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
