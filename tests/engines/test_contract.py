"""What every engine promises, whoever computes: the embedded one, vLLM, SGLang, any OpenAI-compatible server."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from curation.records import FinishReason
from service.checkpoints import EMBEDDED, open_folder
from service.engines.addresses import WorkerSpec
from service.engines.base import Engine, Sampled, WorkerState
from service.run_config import Sampling
from service.stages import EngineFailed
from tests.engines.conftest import Servers, fleet_of, with_engine, write_checkpoint
from tests.engines.reference import greedy, logprobs, worst_difference

ENGINES = ("transformers", "vllm", "sglang", "openai")
RELOADABLE = ("transformers", "vllm", "sglang")
PROMPTS = ("361 - 220 =", "12 + 16 =", "48123 + 99120 =", "7 * 8 =")
SAMPLING = Sampling(n=8, max_tokens=64)
GREEDY = Sampling(n=1, temperature=0, max_tokens=64)
LOGPROB_TOLERANCE = 1e-4
"""Single precision against double, after up to 64 tokens; measured below 2e-5."""

On = Callable[[str, Callable[[Engine], Awaitable[Any]]], Any]


@pytest.fixture
def on(servers: Servers, tmp_path: Path) -> On:
    """``on(name, use)`` runs `use` on the engine of that name."""

    def run(name: str, use: Callable[[Engine], Awaitable[Any]]) -> Any:
        return with_engine(name, servers, tmp_path / "scratch", use)

    return run


def sample(prompt: str, sampling: Sampling, seeds: range) -> Callable[[Engine], Awaitable[Sampled]]:
    async def use(engine: Engine) -> Sampled:
        return await engine.sample(prompt, sampling, seeds)

    return use


@pytest.mark.parametrize("name", ENGINES)
def test_a_group_is_one_completion_per_seed_of_one_version(on: On, name: str) -> None:
    sampled = on(name, sample(PROMPTS[2], SAMPLING, range(8)))

    assert sampled.policy_version == 1
    assert len(sampled.completions_G) == 8
    for completion in sampled.completions_G:
        [span] = completion.weight_versions
        assert (span.version, span.start, span.end) == (1, 0, len(completion.token_ids_T))
        assert len(completion.logprobs_T) == len(completion.token_ids_T)


@pytest.mark.parametrize("name", ENGINES)
def test_the_text_is_what_the_tokens_say_without_the_end(on: On, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    sampled = on(name, sample(PROMPTS[0], SAMPLING, range(8)))

    for completion in sampled.completions_G:
        assert completion.finish_reason is FinishReason.STOP
        assert completion.token_ids_T[-1] == tokenizer.eos_token_id
        assert completion.text == tokenizer.decode(completion.token_ids_T[:-1])


@pytest.mark.parametrize("name", ENGINES)
def test_a_completion_at_the_limit_is_marked_as_cut(on: On, name: str) -> None:
    sampled = on(name, sample(PROMPTS[0], Sampling(n=4, max_tokens=3), range(4)))

    assert {c.finish_reason for c in sampled.completions_G} == {FinishReason.LENGTH}
    assert {len(c.token_ids_T) for c in sampled.completions_G} == {3}


@pytest.mark.parametrize("name", ENGINES)
def test_greedy_is_what_transformers_generates(on: On, name: str) -> None:
    async def use(engine: Engine) -> list[Sampled]:
        return await asyncio.gather(*(engine.sample(prompt, GREEDY, [0]) for prompt in PROMPTS))

    for prompt, sampled in zip(PROMPTS, on(name, use), strict=True):
        assert list(sampled.completions_G[0].token_ids_T) == greedy(EMBEDDED, prompt, 64)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("name", ENGINES)
def test_logprobs_are_of_the_full_softmax_at_the_sampling_temperature(on: On, name: str, temperature: float) -> None:
    sampling = Sampling(n=8 if temperature else 1, temperature=temperature, max_tokens=64)

    sampled = on(name, sample(PROMPTS[2], sampling, range(sampling.n)))

    for completion in sampled.completions_G:
        if name == "openai" and temperature == 0.7:  # nobody says what such a server means by them
            assert completion.logprobs_T == ()
        else:
            assert worst_difference(EMBEDDED, PROMPTS[2], completion, temperature or 1.0) < LOGPROB_TOLERANCE


@pytest.mark.parametrize("name", ENGINES)
def test_truncated_sampling_has_exact_logprobs_or_none(on: On, name: str) -> None:
    sampled = on(name, sample(PROMPTS[2], Sampling(n=8, top_p=0.9, max_tokens=64), range(8)))

    for completion in sampled.completions_G:
        if name in ("vllm", "openai") and not completion.logprobs_T:
            continue
        assert worst_difference(EMBEDDED, PROMPTS[2], completion) < LOGPROB_TOLERANCE


@pytest.mark.parametrize("name", ENGINES)
def test_top_k_of_one_is_greedy_and_a_tiny_top_p_too(on: On, name: str) -> None:
    async def use(engine: Engine) -> list[Sampled]:
        top_k = await engine.sample(PROMPTS[2], Sampling(n=1, top_k=1, max_tokens=64), [0])
        top_p = await engine.sample(PROMPTS[2], Sampling(n=1, top_p=1e-6, max_tokens=64), [0])
        return [top_k, top_p]

    for sampled in on(name, use):
        assert list(sampled.completions_G[0].token_ids_T) == greedy(EMBEDDED, PROMPTS[2], 64)


@pytest.mark.parametrize("name", ENGINES)
def test_a_group_holds_no_accidental_duplicates(on: On, name: str) -> None:
    """At this temperature a long answer hardly ever comes twice by chance; with one seed for all they all would."""
    hot = Sampling(n=64, temperature=2.0, max_tokens=64)

    sampled = on(name, sample("48123 + 99120 + 11111 =", hot, range(64)))

    long = [c.token_ids_T for c in sampled.completions_G if len(c.token_ids_T) > 8]
    assert len(long) > 16
    assert len(set(long)) >= len(long) - 2


@pytest.mark.parametrize("name", ["transformers", "vllm", "openai"])
def test_the_same_seeds_give_the_same_group(on: On, name: str) -> None:
    """SGLang takes seeds only in its deterministic mode, which needs a GPU."""

    async def use(engine: Engine) -> list[Sampled]:
        return [await engine.sample(PROMPTS[2], SAMPLING, seeds) for seeds in (range(8), range(8), range(8, 16))]

    first, again, other = on(name, use)

    assert [c.token_ids_T for c in first.completions_G] == [c.token_ids_T for c in again.completions_G]
    assert [c.token_ids_T for c in first.completions_G] != [c.token_ids_T for c in other.completions_G]


@pytest.mark.parametrize("prompt", ["", "1" * 300], ids=["empty", "longer than the context"])
@pytest.mark.parametrize("name", ENGINES)
def test_a_prompt_that_cannot_be_sampled_fails_alone(on: On, name: str, prompt: str) -> None:
    async def use(engine: Engine) -> list[Sampled | BaseException]:
        asked = (engine.sample(p, SAMPLING, range(8)) for p in (PROMPTS[0], prompt))
        return await asyncio.gather(*asked, return_exceptions=True)

    good, bad = on(name, use)

    assert isinstance(good, Sampled)
    assert isinstance(bad, EngineFailed)


@pytest.mark.parametrize("name", RELOADABLE)
def test_a_token_beyond_the_embedding_never_reaches_the_engine(on: On, name: str, tmp_path: Path) -> None:
    """A tokenizer may know more than the weights; such an id ends an SGLang server."""
    wide = write_checkpoint(tmp_path / "wide", lambda _, weight: weight)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    tokenizer.add_tokens(["<beyond>"])
    tokenizer.save_pretrained(wide)

    async def use(engine: Engine) -> tuple[str, Sampled]:
        await engine.load(open_folder(wide), 2)
        with pytest.raises(EngineFailed) as refusal:
            await engine.sample("1 <beyond> 2 =", GREEDY, [0])
        return str(refusal.value), await engine.sample(PROMPTS[1], GREEDY, [0])

    refusal, sampled = on(name, use)

    assert "token 260" in refusal
    assert list(sampled.completions_G[0].token_ids_T) == greedy(EMBEDDED, PROMPTS[1], 64)


@pytest.mark.parametrize("name", RELOADABLE)
def test_a_reload_changes_the_answers_to_those_of_the_new_weights(on: On, name: str, other_weights: Path) -> None:
    async def use(engine: Engine) -> list[Sampled]:
        await engine.load(open_folder(other_weights), 2)
        return [await engine.sample(prompt, GREEDY, [0]) for prompt in PROMPTS]

    answers = on(name, use)

    said = [list(sampled.completions_G[0].token_ids_T) for sampled in answers]
    assert said == [greedy(other_weights, prompt, 64) for prompt in PROMPTS]
    assert said != [greedy(EMBEDDED, prompt, 64) for prompt in PROMPTS]
    assert {sampled.policy_version for sampled in answers} == {2}
    for prompt, sampled in zip(PROMPTS, answers, strict=True):
        assert worst_difference(other_weights, prompt, sampled.completions_G[0]) < LOGPROB_TOLERANCE


@pytest.mark.parametrize("name", RELOADABLE)
def test_weights_that_diverged_are_not_served_and_the_old_ones_are(on: On, name: str, tmp_path: Path) -> None:
    nan = write_checkpoint(tmp_path / "nan", lambda _, weight: weight * float("nan"))

    async def use(engine: Engine) -> tuple[str, Sampled]:
        with pytest.raises(EngineFailed) as failure:
            await engine.load(open_folder(nan), 2)
        return str(failure.value), await engine.sample(PROMPTS[2], GREEDY, [0])

    failure, sampled = on(name, use)

    assert str(nan) in failure
    assert sampled.policy_version == 1
    assert list(sampled.completions_G[0].token_ids_T) == greedy(EMBEDDED, PROMPTS[2], 64)


@pytest.mark.parametrize("name", RELOADABLE)
def test_a_lora_adapter_counts_as_a_checkpoint(on: On, name: str, adapter: Path, adapter_merged: Path) -> None:
    async def use(engine: Engine) -> list[Sampled]:
        before = await engine.sample(PROMPTS[2], GREEDY, [0])
        await engine.load(open_folder(adapter), 2)
        after = await engine.sample(PROMPTS[2], GREEDY, [0])
        await engine.load(open_folder(EMBEDDED), 3)
        return [before, after, await engine.sample(PROMPTS[2], GREEDY, [0])]

    before, after, again = on(name, use)

    expected = [greedy(folder, PROMPTS[2], 64) for folder in (EMBEDDED, adapter_merged, EMBEDDED)]
    assert [list(s.completions_G[0].token_ids_T) for s in (before, after, again)] == expected
    assert expected[0] != expected[1]
    assert worst_difference(adapter_merged, PROMPTS[2], after.completions_G[0]) < LOGPROB_TOLERANCE


def test_a_server_without_control_routes_serves_its_own_version_only(on: On, other_weights: Path) -> None:
    async def use(engine: Engine) -> tuple[str, list[WorkerState], Sampled]:
        with pytest.raises(EngineFailed) as failure:
            await engine.load(open_folder(other_weights), 2)
        return str(failure.value), [w.state for w in engine.workers()], await engine.sample(PROMPTS[0], GREEDY, [0])

    failure, states, sampled = on("openai", use)

    assert "serves version 1 for good" in failure
    assert states == [WorkerState.LIVE]
    assert sampled.policy_version == 1


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_a_reload_in_the_middle_mislabels_nothing(on: On, name: str, other_weights: Path) -> None:
    """200 groups in flight, and new weights: each rollout's label is checked against logprobs of both versions."""
    prompts = [f"{300 + i} + {2 * i} =" for i in range(200)]
    sampling = Sampling(n=4, max_tokens=48)

    async def use(engine: Engine) -> list[Sampled]:
        ask = partial(engine.sample, sampling=sampling)
        groups = [asyncio.create_task(ask(p, seeds=range(i, i + 4))) for i, p in enumerate(prompts)]
        await asyncio.gather(*groups[:20])
        await engine.load(open_folder(other_weights), 2)
        return await asyncio.gather(*groups)

    answers = on(name, use)

    folders = {1: EMBEDDED, 2: other_weights}
    seen = [sampled.policy_version for sampled in answers]
    assert set(seen) == {1, 2}
    for prompt, sampled in zip(prompts, answers, strict=True):
        for completion in sampled.completions_G:
            assert {span.version for span in completion.weight_versions} == {sampled.policy_version}
            right = worst_difference(folders[sampled.policy_version], prompt, completion)
            wrong = worst_difference(folders[3 - sampled.policy_version], prompt, completion)
            assert right < LOGPROB_TOLERANCE < wrong


def test_a_reload_under_running_requests_labels_every_token(
    servers: Servers, tmp_path: Path, other_weights: Path
) -> None:
    """SGLang says which weights each token came from, so nothing has to wait for a reload."""
    [server] = servers.start("sglang")
    prompts = [f"{48000 + 7 * i} + {99120 - i} =" for i in range(120)]
    hot = Sampling(n=4, temperature=2.0, max_tokens=200)

    async def run() -> list[Sampled]:
        fleet = fleet_of(WorkerSpec(url=server.url), scratch=tmp_path, in_flight_reload=True)
        try:
            await fleet.load(open_folder(EMBEDDED), 1)
            groups = [asyncio.create_task(fleet.sample(p, hot, range(i, i + 4))) for i, p in enumerate(prompts)]
            for version, folder in ((2, other_weights), (3, EMBEDDED), (4, other_weights)):
                await asyncio.gather(*groups[version * 6 : version * 6 + 4])
                await fleet.load(open_folder(folder), version)
            return await asyncio.gather(*groups)
        finally:
            await fleet.close()

    answers = asyncio.run(run())

    folders = {1: EMBEDDED, 2: other_weights, 3: EMBEDDED, 4: other_weights}
    across = 0
    for prompt, sampled in zip(prompts, answers, strict=True):
        for completion in sampled.completions_G:
            spans = completion.weight_versions
            across += len(spans) > 1
            assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
            assert spans[-1].end == len(completion.token_ids_T)
            for span in spans:
                expected = logprobs(folders[span.version], prompt, completion.token_ids_T, 2.0)[span.start : span.end]
                reported = torch.tensor(completion.logprobs_T[span.start : span.end], dtype=torch.float64)
                assert (expected - reported).abs().max() < 10 * LOGPROB_TOLERANCE  # 200 tokens at temperature 2
    assert across > 0


def test_generation_through_a_router_and_control_to_every_server(
    servers: Servers, tmp_path: Path, other_weights: Path
) -> None:
    first, second = servers.start("sglang", "sglang-2")
    router = servers.router(first, second)

    async def run() -> tuple[list[Sampled], list[Sampled]]:
        spec = WorkerSpec(url=router, admin_urls=(first.url, second.url))
        fleet = fleet_of(spec, scratch=tmp_path)
        try:
            await fleet.load(open_folder(EMBEDDED), 1)
            before = await asyncio.gather(*(fleet.sample(PROMPTS[2], GREEDY, [i]) for i in range(40)))
            await fleet.load(open_folder(other_weights), 2)
            return before, await asyncio.gather(*(fleet.sample(PROMPTS[2], GREEDY, [i]) for i in range(40)))
        finally:
            await fleet.close()

    for folder, version, answers in zip((EMBEDDED, other_weights), (1, 2), asyncio.run(run()), strict=True):
        assert {sampled.policy_version for sampled in answers} == {version}
        said = {sampled.completions_G[0].token_ids_T for sampled in answers}
        assert said == {tuple(greedy(folder, PROMPTS[2], 64))}
    assert [server.answered() > 10 for server in (first, second)] == [True, True]
