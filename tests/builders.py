"""What tests are made of: a builder takes what matters and fills in the rest."""

from typing import Any

from curation.judged import JudgedGroup, Origin
from curation.keys import digest, prompt_id
from curation.records import Completion, FinishReason, Group, Outcome, Prompt, Rollout, Verdict


def a_prompt(text: str = "2 + 2?", reference: str = "4", verifier: str = "math", **metadata: Any) -> Prompt:
    return Prompt(prompt_id(text, reference, verifier, metadata), text, reference, verifier, metadata)


def a_rollout(
    reward: float | None = 1.0, text: str = "4", *, outcome: Outcome | None = None, truncated: bool = False
) -> Rollout:
    """Without a reward it is a timeout, unless another outcome is named."""
    scored = Outcome.TIMEOUT if reward is None else Outcome.SCORED
    finish_reason = FinishReason.LENGTH if truncated else FinishReason.STOP
    return Rollout(Completion(text, finish_reason=finish_reason), Verdict(outcome or scored, reward, "math@1"))


def a_group(
    *rewards: float | Rollout | None,
    prompt: Prompt | None = None,
    run: str = "run",
    visit: int = 0,
    policy_version: int = 0,
) -> Group:
    """Each rollout by its reward, or whole where more than the reward matters."""
    prompt = prompt or a_prompt()
    rollouts_G = tuple(r if isinstance(r, Rollout) else a_rollout(r, f"text-{i}") for i, r in enumerate(rewards))
    return Group("g_" + digest(run, prompt.id, visit), run, prompt, visit, policy_version, rollouts_G)


def judged(group: Group) -> JudgedGroup:
    """As curation reads it, texts measured."""
    verifier = group.rollouts_G[0].verdict.verifier if group.rollouts_G else "math@1"
    texts_G = [rollout.text for rollout in group.rollouts_G]
    return JudgedGroup(
        Origin(group.prompt.id, group.run, group.visit, group.id, group.policy_version, verifier),
        len(group.prompt.text.encode()),
        [rollout.reward for rollout in group.rollouts_G],
        [rollout.verdict.outcome for rollout in group.rollouts_G],
        [rollout.truncated for rollout in group.rollouts_G],
        [len(rollout.completion.token_ids_T) for rollout in group.rollouts_G],
        [len(text) for text in texts_G],
        [len(text.encode()) for text in texts_G],
        [digest(group.prompt.text, text) for text in texts_G],
    )
