"""A taskset of the `verifiers` library: sums, with half a reward for the form."""

from collections.abc import Iterator

import verifiers.v1 as vf


class Sum(vf.TaskData):
    answer: str


class SumConfig(vf.TaskConfig):
    ending: str = "."


class SumTask(vf.Task[Sum, vf.State, SumConfig]):
    @vf.reward(weight=1.0)
    async def correct(self, trace: vf.Trace) -> float:
        return float(trace.last_reply.removesuffix(self.config.ending) == self.data.answer)

    @vf.reward(weight=0.5)
    async def ends(self, trace: vf.Trace) -> float:
        if "boom" in trace.last_reply:
            raise RuntimeError("boom")
        return float(trace.last_reply.endswith(self.config.ending))

    @vf.metric
    async def length(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply))


class SumsConfig(vf.TasksetConfig):
    task: SumConfig = SumConfig()


class Sums(vf.Taskset[SumTask, SumsConfig]):
    def load(self) -> Iterator[SumTask]:
        for n in range(5):
            yield SumTask(Sum(prompt=f"{n} + {n} =", answer=str(2 * n)), self.config.task)


__all__ = ["Sums"]
