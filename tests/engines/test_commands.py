"""What operators write down, and what becomes of it: addresses, command lines, which logprobs are kept."""

from pathlib import Path

import pytest

from service.engines.addresses import Kind, WorkerSpec, parse_worker
from service.engines.dialects.base import LogprobsOf
from service.engines.process import Launch, command, environment
from service.run_config import Sampling

FOLDER = Path("/checkpoints/policy")


def launch(kind: Kind, *, image: str | None = None, api_key: str | None = None) -> Launch:
    python = None if image else Path("/venv/bin/python")
    return Launch(kind, python, image, ("--max-model-len", "4096"), Path("log"), api_key)


def test_an_address_names_a_router_and_what_is_behind_it() -> None:
    spec = parse_worker("http://router:30000/,admin=http://a:1,admin=http://b:2/,dialect=sglang")

    assert spec == WorkerSpec(
        url="http://router:30000", admin_urls=("http://a:1", "http://b:2"), dialect=Kind.SGLANG, version=None
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://a",
        "http://",
        "http://a b",
        "http://a?x=1",
        "http://a,version=1",
        "http://a,dialect=openai",
        "http://a,dialect=tgi",
        "http://a,port=1",
        "http://a,dialect=openai,version=0",
        "http://a,admin=nowhere",
    ],
)
def test_an_address_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_worker(text)


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("kind", [Kind.VLLM, Kind.SGLANG])
def test_a_launched_engine_listens_on_loopback_and_the_operator_has_the_last_word(kind: Kind, gpu: bool) -> None:
    line = command(launch(kind), FOLDER, 8123, gpu=gpu)

    assert line[0] == "/venv/bin/python"
    assert line[line.index("--host") + 1] == "127.0.0.1"
    assert line[line.index("--port") + 1] == "8123"
    assert line[-2:] == ["--max-model-len", "4096"]


def test_an_image_gets_the_gpus_and_the_checkpoint_and_no_more() -> None:
    line = command(launch(Kind.VLLM, image="vllm/vllm-openai:v0.31.0"), FOLDER, 8123, gpu=True)

    assert line[:3] == ["docker", "run", "--rm"]
    assert line[line.index("--volume") + 1] == "/checkpoints/policy:/checkpoints/policy:ro"
    assert line[line.index("--gpus") + 1] == "all"
    assert line.index("vllm/vllm-openai:v0.31.0") < line.index("--model")
    assert "--privileged" not in line


def test_a_key_is_asked_for_and_not_on_vllms_command_line() -> None:
    secret = launch(Kind.VLLM, api_key="s3cret")

    assert "s3cret" not in command(secret, FOLDER, 1, gpu=True)
    assert environment(secret, {}, gpu=True)["VLLM_API_KEY"] == "s3cret"


def test_what_the_operator_set_in_the_environment_stays() -> None:
    given = environment(launch(Kind.VLLM), {"VLLM_CPU_KVCACHE_SPACE": "7", "PYTHONPATH": "/mine"}, gpu=False)

    assert given["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert given["PYTHONPATH"].endswith(":/mine")
    assert given["VLLM_SERVER_DEV_MODE"] == "1"


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k", "kept_by"),
    [
        (0.0, 1.0, 0, {"tempered", "processed", "raw", "unknown"}),
        (0.0, 0.5, 3, {"tempered", "processed", "raw", "unknown"}),
        (1.0, 1.0, 0, {"tempered", "processed", "raw", "unknown"}),
        (1.0, 0.9, 0, {"tempered", "raw"}),
        (1.0, 1.0, 20, {"tempered", "raw"}),
        (0.7, 1.0, 0, {"tempered", "processed"}),
        (0.7, 0.9, 0, {"tempered"}),
    ],
)
def test_logprobs_are_kept_exactly_where_they_are_what_a_trainer_needs(
    temperature: float, top_p: float, top_k: int, kept_by: set[str]
) -> None:
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)

    assert {of.value for of in LogprobsOf if of.is_exact(sampling)} == kept_by
