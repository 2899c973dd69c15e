"""What goes wrong between us and an engine, on a lossy line to a real one, and what a user sees of it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from service.checkpoints import EMBEDDED, open_folder
from service.engines.addresses import Kind, WorkerSpec
from service.engines.base import Engine, Sampled, WorkerState
from service.run_config import Sampling
from service.stages import EngineFailed
from tests.engines.conftest import Servers, fleet_of
from tests.engines.reference import greedy
from tests.engines.servers import Line, Trouble, line_to

T = TypeVar("T")
GREEDY = Sampling(n=1, temperature=0, max_tokens=48)
PROMPT = "361 - 220 ="


def through_lines(
    servers: Servers, scratch: Path, use: Callable[[Engine, list[Line]], Awaitable[T]], *, lines: int, **config: object
) -> T:
    """Runs `use` on a fleet that reaches one vLLM server over so many lines."""
    [server] = servers.start("vllm-plain")

    async def run() -> T:
        async with line_to(server.url) as first, line_to(server.url) as second:
            every = [first, second][:lines]
            specs = [WorkerSpec(url=line.url, dialect=Kind.OPENAI, version=1) for line in every]
            fleet = fleet_of(*specs, scratch=scratch, **config)
            try:
                await fleet.load(open_folder(EMBEDDED), 1)
                for line in every:
                    line.asked = 0
                return await use(fleet, every)
            finally:
                await fleet.close()

    return asyncio.run(run())


@pytest.mark.parametrize("trouble", [Trouble.CUT, Trouble.ERROR, Trouble.GARBLED, Trouble.SILENCE])
def test_a_group_that_fails_once_is_sampled_elsewhere(servers: Servers, tmp_path: Path, trouble: Trouble) -> None:
    async def use(engine: Engine, lines: list[Line]) -> tuple[Sampled, list[int]]:
        for line in lines:  # whichever is asked first
            line.troubles = [trouble]
        other = lines[1]
        other.troubles = []
        sampled = await engine.sample(PROMPT, GREEDY, [1])
        return sampled, [line.asked for line in lines]

    sampled, asked = through_lines(servers, tmp_path, use, lines=2, request_seconds=3.0)

    assert list(sampled.completions_G[0].token_ids_T) == greedy(EMBEDDED, PROMPT, 48)
    assert asked == [1, 1]


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (Trouble.CUT, "/v1/completions"),
        (Trouble.ERROR, "500 out of luck"),
        (Trouble.GARBLED, "answered with something else"),
        (Trouble.SILENCE, "no answer in 3 s"),
    ],
)
def test_a_group_that_fails_twice_has_failed_and_says_why(
    servers: Servers, tmp_path: Path, trouble: Trouble, said: str
) -> None:
    async def use(engine: Engine, lines: list[Line]) -> tuple[str, Sampled, int]:
        lines[0].troubles = [trouble, trouble]
        with pytest.raises(EngineFailed) as failure:
            await engine.sample(PROMPT, GREEDY, [1])
        return str(failure.value), await engine.sample(PROMPT, GREEDY, [1]), lines[0].asked

    failure, sampled, asked = through_lines(servers, tmp_path, use, lines=1, request_seconds=3.0)

    assert "failed 2 times" in failure
    assert said in failure
    assert asked == 3
    assert len(sampled.completions_G) == 1


def test_an_engine_that_says_it_is_busy_is_asked_again_and_given_less(servers: Servers, tmp_path: Path) -> None:
    async def use(engine: Engine, lines: list[Line]) -> tuple[Sampled, int, int]:
        before = engine.workers()[0].window
        lines[0].troubles = [Trouble.BUSY] * 3
        sampled = await engine.sample(PROMPT, GREEDY, [1])
        return sampled, before, engine.workers()[0].window

    sampled, before, after = through_lines(servers, tmp_path, use, lines=1)

    assert len(sampled.completions_G) == 1
    assert after < before / 4


def test_a_prompt_that_the_engine_refuses_is_asked_once(servers: Servers, tmp_path: Path) -> None:
    """Beyond the limits of the server, not of ours: top-k of more than there are tokens is fine, 10 is too hot."""

    async def use(engine: Engine, lines: list[Line]) -> tuple[str, int]:
        with pytest.raises(EngineFailed) as failure:
            await engine.sample(PROMPT, Sampling(n=1, max_tokens=300), [1])
        return str(failure.value), lines[0].asked

    failure, asked = through_lines(servers, tmp_path, use, lines=1)

    assert "exceed the context of 256" in failure
    assert asked == 0


def test_a_worker_that_stops_answering_loses_its_work_to_the_others(servers: Servers, tmp_path: Path) -> None:
    async def use(engine: Engine, lines: list[Line]) -> tuple[list[Sampled], list[WorkerState]]:
        lines[0].troubles = [Trouble.SILENCE] * 100
        groups = [asyncio.create_task(engine.sample(PROMPT, GREEDY, [i])) for i in range(20)]
        sampled = await asyncio.gather(*groups)
        return sampled, [worker.state for worker in engine.workers()]

    sampled, _ = through_lines(servers, tmp_path, use, lines=2, request_seconds=5.0)

    assert {tuple(s.completions_G[0].token_ids_T) for s in sampled} == {tuple(greedy(EMBEDDED, PROMPT, 48))}


def test_without_any_worker_work_waits_for_a_while_and_then_says_why(servers: Servers, tmp_path: Path) -> None:
    [server] = servers.start("sglang-mortal")

    async def run() -> tuple[str, str, WorkerState]:
        fleet = fleet_of(WorkerSpec(url=server.url), scratch=tmp_path, patience_seconds=3.0)
        try:
            await fleet.load(open_folder(EMBEDDED), 1)
            server.kill()
            with pytest.raises(EngineFailed) as failure:
                await fleet.sample(PROMPT, GREEDY, [1])
            with pytest.raises(EngineFailed) as unready:
                assert fleet.policy_version
            return str(failure.value), str(unready.value), fleet.workers()[0].state
        finally:
            await fleet.close()

    failure, unready, state = asyncio.run(run())

    assert "no worker was live for 3 s" in failure
    assert server.url in failure
    assert "no worker is live" in unready
    assert state is WorkerState.DOWN


def test_weights_that_somebody_else_changed_are_noticed_and_put_right(
    servers: Servers, tmp_path: Path, other_weights: Path
) -> None:
    [server] = servers.start("sglang")

    async def run() -> tuple[set[WorkerState], Sampled]:
        import aiohttp

        fleet = fleet_of(WorkerSpec(url=server.url), scratch=tmp_path)
        try:
            await fleet.load(open_folder(EMBEDDED), 1)
            body = {"model_path": str(other_weights), "weight_version": "theirs"}
            url = server.url + "/update_weights_from_disk"
            async with aiohttp.ClientSession() as somebody, somebody.post(url, json=body) as answer:
                assert answer.status == 200
            states = set()
            for _ in range(100):
                await asyncio.sleep(0.1)
                states.add(fleet.workers()[0].state)
                if WorkerState.DRAINED in states and fleet.workers()[0].state is WorkerState.LIVE:
                    break
            return states, await fleet.sample("48123 + 99120 =", GREEDY, [1])
        finally:
            await fleet.close()

    states, sampled = asyncio.run(run())

    assert states >= {WorkerState.LIVE, WorkerState.DRAINED}
    assert list(sampled.completions_G[0].token_ids_T) == greedy(EMBEDDED, "48123 + 99120 =", 48)


def test_an_address_where_nobody_answers_is_said_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        fleet = fleet_of(WorkerSpec(url="http://127.0.0.1:9"), scratch=tmp_path)
        try:
            await fleet.load(open_folder(EMBEDDED), 1)
        finally:
            await fleet.close()

    with pytest.raises(EngineFailed, match=r"127\.0\.0\.1:9.*refused"):
        asyncio.run(run())
