"""The embedded policy: a Qwen2 of under a million parameters that reads printable ASCII, one token a character.

It exists so that a laptop can run the whole loop. The checkpoint is an ordinary Hugging Face one: transformers,
vLLM and SGLang load it unchanged.
"""

import string

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

PAD, EOS = "<pad>", "<eos>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
CONTEXT = 256
"""Tokens of prompt and completion together."""


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Printable ASCII, plus the two answer tags as one token each. Anything else is refused as unknown."""
    alphabet = [PAD, EOS, "<unk>", ANSWER_OPEN, ANSWER_CLOSE]
    alphabet += [c for c in string.printable if c.isprintable() or c == "\n"]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(alphabet)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in (ANSWER_OPEN, ANSWER_CLOSE)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token="<unk>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def fresh_policy(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """An untrained policy; the caller seeds torch first."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
