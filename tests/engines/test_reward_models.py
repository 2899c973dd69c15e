"""Reward models on real servers give the scores that transformers gives."""

from pathlib import Path

import pytest

from curation.records import Outcome
from service.engines.addresses import Kind
from service.verifiers.rewards import logistic
from tests.engines.servers import Server
from tests.service.test_declared import judged, random_reward_model, score_of

TEXTS = ["yes", "no, not at all", "12 + 16 = 28"]


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_reward_model(tmp_path_factory.mktemp("reward-model"))


@pytest.mark.parametrize(
    ("kind", "routes", "arguments"),
    [
        (
            Kind.VLLM,
            [
                ("vllm_classify", "rm"),
                ("vllm_classify", "rm?chat=true"),
                ("vllm_pooling", "rm"),
                ("vllm_pooling", "rm?chat=true"),
                ("vllm_score", "rm"),
            ],
            ("--runner", "pooling"),
        ),
        (Kind.SGLANG, [("sglang", "rm")], ("--is-embedding",)),
    ],
    ids=["vllm", "sglang"],
)
def test_a_server_scores_as_transformers_does(
    kind: Kind, routes: list[tuple[str, str]], arguments: tuple[str, ...], reward_model: Path, tmp_path: Path
) -> None:
    plain = [score_of(reward_model, f"Is it? {text}") for text in TEXTS]
    in_template = [score_of(reward_model, f"user: Is it? \nassistant: {text}\n") for text in TEXTS]
    server = Server.start(kind, tmp_path / "log", *arguments, folder=reward_model)
    try:
        server.wait()
        for route, verifier in routes:
            expected = in_template if "chat" in verifier else plain
            verdicts = judged(f"rm={route}:{server.url}", verifier, *TEXTS, prompt="Is it? ")

            assert [v.outcome for v in verdicts] == [Outcome.SCORED] * len(TEXTS), verdicts
            scores = [float(v.detail) for v in verdicts]
            # SGLang gives its classifier a bias that no checkpoint fills: every score is off by the same constant.
            offset = scores[0] - expected[0] if kind is Kind.SGLANG else 0.0
            assert [score - offset for score in scores] == pytest.approx(expected, abs=2e-4), (route, verifier)
            assert [v.reward for v in verdicts] == pytest.approx([logistic(score) for score in scores], abs=1e-4)
    finally:
        server.stop()
