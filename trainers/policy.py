"""The embedded policy: a Qwen2 of under a million parameters that reads bytes, one token each.

It exists so that a laptop can run the whole loop. The checkpoint is an ordinary Hugging Face one of
Qwen2's own classes.
"""

from transformers import AddedToken, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

PAD, EOS = "<pad>", "<eos>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
CONTEXT = 256
"""Tokens of prompt and completion together."""


def byte_tokenizer() -> Qwen2Tokenizer:
    """Qwen2's own byte-level tokenizer without a single merge, plus the two answer tags as one token each.

    Loaders choose the tokenizer class by the model type, so any other class would be replaced behind our back.
    """
    alphabet = [PAD, EOS, *bytes_to_unicode().values()]
    tokenizer = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(alphabet)},
        merges=[],
        pad_token=PAD,
        eos_token=EOS,
        unk_token=None,
        model_max_length=CONTEXT,
    )
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in (ANSWER_OPEN, ANSWER_CLOSE)])
    return tokenizer


def fresh_policy(
    tokenizer: Qwen2Tokenizer, *, hidden: int = 128, intermediate: int = 320, layers: int = 4, heads: int = 4
) -> Qwen2ForCausalLM:
    """An untrained policy, by default of the embedded one's size; the caller seeds torch first."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
