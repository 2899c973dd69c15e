"""A policy's own tokenizer, and what its weights can read.

Every engine is sent token ids, never text: the prompt is then the same tokens everywhere, and an id that the weights
do not have is refused here (it ends an SGLang server), not there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.run_config import Sampling
from service.stages import EngineFailed

CANARY_PROMPT = "1 + 1 ="
"""What new weights are asked first."""


class Tokens:
    """Turns prompts into ids and sampled ids into text."""

    def __init__(self, folder: Path) -> None:
        """`folder` holds a full checkpoint."""
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        config = AutoConfig.from_pretrained(folder)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self.vocabulary = int(config.get_text_config().vocab_size)
        """Rows of the embedding; the tokenizer may know more."""
        self.context = int(config.get_text_config().max_position_embeddings)
        """Tokens of prompt and completion together that the weights were made for."""
        self.eos = _eos(folder, GenerationConfig, config, self._tokenizer)
        self.pad = int(self._tokenizer.pad_token_id or 0)

    def prompt_ids(self, prompt: str, sampling: Sampling, context: int | None = None) -> list[int]:
        """Raises EngineFailed for a prompt that this policy cannot read, or not together with its completion.
        `context` is a narrower limit, an engine's own."""
        ids = self._tokenizer(prompt).input_ids
        unknown = self._tokenizer.unk_token_id
        if not ids or (unknown is not None and unknown in ids):
            raise EngineFailed(f"the policy's tokenizer cannot express the prompt {prompt[:100]!r}")
        if max(ids) >= self.vocabulary:
            raise EngineFailed(
                f"the prompt {prompt[:100]!r} has token {max(ids)}, the policy's embedding only {self.vocabulary} rows"
            )
        limit = min(self.context, context or self.context)
        if len(ids) + sampling.max_tokens > limit:
            raise EngineFailed(
                f"{len(ids)} prompt tokens and max_tokens {sampling.max_tokens} exceed the context of {limit}"
            )
        return list(ids)

    def text(self, token_ids_T: Sequence[int]) -> str:
        """What a completion says: everything but the token that ended it."""
        return str(self._tokenizer.decode(token_ids_T[:-1] if self.is_ended(token_ids_T) else token_ids_T))

    def is_ended(self, token_ids_T: Sequence[int]) -> bool:
        return bool(token_ids_T) and token_ids_T[-1] in self.eos


def _eos(folder: Path, generation_config: Any, config: Any, tokenizer: Any) -> frozenset[int]:
    """Every id that ends a completion: what engines read from the same files."""
    given = [config.get_text_config().eos_token_id, tokenizer.eos_token_id]
    if (folder / "generation_config.json").exists():
        given.append(generation_config.from_pretrained(folder).eos_token_id)
    return frozenset(i for ids in given for i in (ids if isinstance(ids, list) else [ids]) if i is not None)
