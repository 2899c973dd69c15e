"""The embedded engine, with the policy that ships: every completion is what its weights, prompt and seed make it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from curation.records import Completion, FinishReason
from service.checkpoints import EMBEDDED, Checkpoint, open_folder
from service.engines.base import Sampled
from service.engines.transformers_engine import TransformersEngine
from service.run_config import Sampling
from service.stages import EngineFailed

T = TypeVar("T")
SAMPLING = Sampling(n=4, max_tokens=64)
PROMPTS = ("361 - 220 =", "12 + 16 =", "48123 + 99120 =", "7 * 8 =")
SEEDS = (1, 2, 3, 4)


def with_engine(use: Callable[[TransformersEngine], Awaitable[T]], *, max_rows: int = 64) -> T:
    async def run() -> T:
        engine = TransformersEngine(max_rows=max_rows)
        try:
            await engine.load(open_folder(EMBEDDED), 1)
            return await use(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


def sample_all(*prompts: str, sampling: Sampling = SAMPLING, max_rows: int = 64) -> list[list[Completion]]:
    async def use(engine: TransformersEngine) -> list[Sampled]:
        return await asyncio.gather(*(engine.sample(p, sampling, SEEDS[: sampling.n]) for p in prompts))

    return [sampled.completions_G for sampled in with_engine(use, max_rows=max_rows)]


def test_what_shares_the_batch_changes_nothing() -> None:
    together = sample_all(*PROMPTS)
    alone = [sample_all(prompt)[0] for prompt in PROMPTS]
    in_small_batches = sample_all(*PROMPTS, max_rows=5)

    assert together == alone == in_small_batches


def test_other_seeds_give_other_completions() -> None:
    [group] = sample_all("48123 + 99120 =")

    assert len({completion.text for completion in group}) > 1


def test_logprobs_are_those_of_the_full_softmax_at_the_sampling_temperature() -> None:
    sampling = SAMPLING.model_copy(update={"temperature": 0.7})
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED).double()
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)

    [group] = sample_all(PROMPTS[0], sampling=sampling)

    for completion in group:
        prompt = tokenizer(PROMPTS[0]).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *completion.token_ids_T]])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits / 0.7, dim=-1)
        said = [expected[i, token].item() for i, token in enumerate(completion.token_ids_T)]
        assert completion.logprobs_T == pytest.approx(said, abs=2e-6)


def test_greedy_is_what_transformers_generates() -> None:
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED).double()
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    greedy = Sampling(n=1, temperature=0, max_tokens=64)

    ours = [group[0].token_ids_T for group in sample_all(*PROMPTS, sampling=greedy)]

    for prompt, token_ids in zip(PROMPTS, ours, strict=True):
        asked = tokenizer(prompt, return_tensors="pt")
        theirs = model.generate(**asked, max_new_tokens=64, do_sample=False)[0, asked.input_ids.shape[1] :]
        assert list(token_ids) == theirs.tolist()


def test_a_completion_ends_by_itself_or_is_marked_as_cut() -> None:
    [whole] = sample_all(PROMPTS[0])
    [cut] = sample_all(PROMPTS[0], sampling=Sampling(n=4, max_tokens=3))

    assert {c.finish_reason for c in whole} == {FinishReason.STOP}
    assert {c.finish_reason for c in cut} == {FinishReason.LENGTH}
    assert {len(c.token_ids_T) for c in cut} == {3}


def test_top_k_of_one_is_greedy_and_a_tiny_top_p_too() -> None:
    greedy = sample_all(PROMPTS[2], sampling=Sampling(n=1, temperature=0, max_tokens=64))
    top_k = sample_all(PROMPTS[2], sampling=Sampling(n=1, top_k=1, max_tokens=64))
    top_p = sample_all(PROMPTS[2], sampling=Sampling(n=1, top_p=1e-9, max_tokens=64))

    assert greedy[0][0].text == top_k[0][0].text == top_p[0][0].text


def test_sampling_frequencies_follow_the_probabilities() -> None:
    """The first token of 2,000 samples against the model's own distribution."""
    sampling = Sampling(n=1000, max_tokens=1)
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED).double()
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    with torch.no_grad():
        logits = model(**tokenizer(PROMPTS[0], return_tensors="pt")).logits[0, -1]
    expected = torch.softmax(logits, dim=-1)

    async def use(engine: TransformersEngine) -> Sampled:
        return await engine.sample(PROMPTS[0], sampling, range(2000))

    drawn = torch.tensor([c.token_ids_T[0] for c in with_engine(use, max_rows=4096).completions_G])

    observed = torch.bincount(drawn, minlength=len(expected)) / len(drawn)
    assert (observed - expected).abs().max() < 5 * 0.5 / len(drawn) ** 0.5


def test_a_reload_relabels_what_comes_after_it_and_nothing_before(tmp_path: Path) -> None:
    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    with torch.no_grad():
        model.model.norm.weight.mul_(0.0)
    model.save_pretrained(other)
    AutoTokenizer.from_pretrained(EMBEDDED).save_pretrained(other)

    async def use(engine: TransformersEngine) -> list[Sampled]:
        before = asyncio.create_task(engine.sample(PROMPTS[0], SAMPLING, SEEDS))
        await asyncio.sleep(0)
        await engine.load(open_folder(other), 2)
        after = await engine.sample(PROMPTS[0], SAMPLING, SEEDS)
        return [await before, after]

    before, after = with_engine(use)

    assert (before.policy_version, after.policy_version) == (1, 2)
    assert before.completions_G != after.completions_G
    for sampled in (before, after):
        for completion in sampled.completions_G:
            [span] = completion.weight_versions
            assert (span.version, span.start, span.end) == (
                sampled.policy_version,
                0,
                len(completion.token_ids_T),
            )


def test_a_broken_checkpoint_leaves_the_old_weights_serving(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(b"{}")

    async def use(engine: TransformersEngine) -> tuple[int, Sampled]:
        with pytest.raises(EngineFailed, match="loading"):
            await engine.load(Checkpoint(str(tmp_path), tmp_path), 2)
        return engine.policy_version, await engine.sample(PROMPTS[0], SAMPLING, SEEDS)

    version, sampled = with_engine(use)

    assert version == 1
    assert sampled.completions_G == sample_all(PROMPTS[0])[0]


@pytest.mark.parametrize("prompt", ["", "1" * 300], ids=["empty", "longer than the context"])
def test_a_prompt_that_cannot_be_sampled_fails_alone(prompt: str) -> None:
    async def use(engine: TransformersEngine) -> list[Sampled | BaseException]:
        asked = (engine.sample(p, SAMPLING, SEEDS) for p in (PROMPTS[0], prompt))
        return await asyncio.gather(*asked, return_exceptions=True)

    good, bad = with_engine(use)

    assert isinstance(good, Sampled)
    assert isinstance(bad, EngineFailed)
