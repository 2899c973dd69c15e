"""An online trainer and a real engine: after every publication the engine samples from exactly what was learned."""

from pathlib import Path
from typing import Any

import pytest
import torch

from service.engines.addresses import Kind
from tests.engines.conftest import Servers
from tests.trainers.conftest import POLICY, learning
from trainers import grpo
from trainers.client import Refinery
from trainers.grpo import GrpoRun, LeasedGRPOTrainer
from trainers.launch import running_service
from trainers.tasks import LEVELS, distinct


class Watched(LeasedGRPOTrainer):
    """Notes how far the stored logprobs are from its own, in each step."""

    apart: list[float]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, torch.Tensor]:
        batch = super()._generate_and_score_completions(inputs)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        held = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        with torch.no_grad():
            own, _, _ = self._get_per_token_logps_and_entropies(self.model, ids, held, batch["completion_ids"].size(1))
        counted = batch["completion_mask"].bool()
        self.apart.append((own - batch["old_per_token_logps"])[counted].abs().max().item())
        return batch


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [Kind.VLLM, Kind.SGLANG])
def test_what_was_published_is_what_the_next_step_was_sampled_from(
    kind: Kind, servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [server] = servers.start(kind)
    monkeypatch.setattr(Watched, "apart", [], raising=False)
    monkeypatch.setattr(grpo, "LeasedGRPOTrainer", Watched)
    engine = ("--engine-url", server.url, "--policy", str(POLICY))
    with running_service(tmp_path / "data", *engine, log=tmp_path / "service.log") as url, Refinery(url) as refinery:
        problems = [p for level in LEVELS[1:4] for p in distinct(level, 10, seed=0, held_out=False)]
        refinery.add_prompts((p.as_prompt() for p in problems), "sums")
        batch = {"groups": 4, "prompts": 8, "least": 4}
        run = {"name": "r", "policy": "policy", "prompt_set": "sums", "sampling": {"n": 8, "max_tokens": 96}}
        refinery.post("/v1/runs", run | {"batch": batch})

        learned = learning(tmp_path / "out", learning_rate=1e-3)
        grpo.train(GrpoRun(learned, url, "r", steps=3, groups=4, keep=4, micro_batch=8))

    assert len(Watched.apart) == 3
    assert max(Watched.apart) < 1e-2
