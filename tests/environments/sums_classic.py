"""A classic environment of the `verifiers` library: sums, with half a reward for the form."""

from typing import Any

import verifiers as vf
from datasets import Dataset


def correct(parser: Any, completion: Any, answer: str, **kwargs: Any) -> float:
    return float(parser.parse_answer(completion) == answer)


async def ends(completion: Any, info: dict[str, str]) -> float:
    if "boom" in completion[-1]["content"]:
        raise RuntimeError("boom")
    return float(completion[-1]["content"].endswith(info["ending"]))


def length(completion: Any) -> float:
    return float(len(completion[-1]["content"]))


def of_all(completions: Any) -> list[float]:
    return [1.0 for _ in completions]


class Talk(vf.MultiTurnEnv):
    async def env_response(self, messages: Any, state: Any, **kwargs: Any) -> Any:
        return [{"role": "user", "content": "Sure?"}]


def load_environment(turns: int = 1, groups: bool = False, ending: str = ".") -> vf.Environment:
    parser = vf.Parser(extract_fn=lambda text: text.removesuffix(ending))
    rubric = vf.Rubric(funcs=[correct, ends, length], weights=[1.0, 0.5, 0.0], parser=parser)
    if groups:
        rubric.add_reward_func(of_all)
    rows = [
        {"question": f"{n} + {n} =", "answer": str(2 * n), "info": {"ending": ending}, "example_id": n}
        for n in range(5)
    ]
    data = Dataset.from_list(rows)
    if turns > 1:
        return Talk(max_turns=turns, dataset=data, rubric=rubric)
    return vf.SingleTurnEnv(dataset=data, rubric=rubric, system_prompt="Add.")
