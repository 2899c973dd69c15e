"""Classic environments around the library's own rubrics, and around rubrics in rubrics."""

from typing import Any

import verifiers as vf
from datasets import Dataset


def a(completion: Any) -> float:
    return 0.75


def b(completion: Any) -> float:
    return 0.25


def leaves_a_note(completion: Any, state: dict[str, Any]) -> float:
    state["note"] = completion[-1]["content"]
    return 0.0


def reads_the_note(state: dict[str, Any]) -> float:
    return float(state.get("note") == "4")


def reads_the_level(info: dict[str, Any]) -> float:
    return float(info["level"] == 3)


class Strict(vf.Rubric):
    """Nothing at all for an answer that is not right."""

    async def score_rollout(self, state: Any) -> None:
        await super().score_rollout(state)
        if state["completion"][-1]["content"] != state["answer"]:
            state["reward"] = 0.0


class Prepared(vf.SingleTurnEnv):
    async def setup_state(self, state: Any, **kwargs: Any) -> Any:
        return state


RUBRICS = {
    "math": lambda: vf.MathRubric(),
    "nested": lambda: vf.RubricGroup([vf.RubricGroup([vf.Rubric(funcs=[a])]), vf.Rubric(funcs=[b])]),
    "notes": lambda: vf.Rubric(funcs=[leaves_a_note, reads_the_note], weights=[0.0, 1.0]),
    "strict": lambda: Strict(funcs=[a, b]),
    "info": lambda: vf.Rubric(funcs=[reads_the_level]),
    "prepared": lambda: vf.Rubric(funcs=[a]),
    "rounded": lambda: vf.Rubric(funcs=[lambda completion: 1.0] * 3, weights=[1.0, 0.1, 0.1]),
}


def load_environment(kind: str) -> vf.Environment:
    environment = Prepared if kind == "prepared" else vf.SingleTurnEnv
    data = Dataset.from_list([{"question": "2 + 2 =", "answer": "4", "info": '{"level": 3}'}])
    return environment(dataset=data, rubric=RUBRICS[kind]())
