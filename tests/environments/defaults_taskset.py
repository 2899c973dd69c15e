"""A taskset whose answers are the default of their field, and which bears no field it does not know."""

from collections.abc import Iterator

import verifiers.v1 as vf
from pydantic import ConfigDict
from sums_taskset import SumConfig, SumsConfig, SumTask


class Question(vf.TaskData):
    model_config = ConfigDict(frozen=True, extra="forbid")
    answer: str = "yes"


class Asked(vf.Task[Question, vf.State, SumConfig]):
    correct = SumTask.correct
    ends = SumTask.ends


class Questions(vf.Taskset[Asked, SumsConfig]):
    def load(self) -> Iterator[Asked]:
        yield Asked(Question(prompt="Is it?"), self.config.task)


__all__ = ["Questions"]
