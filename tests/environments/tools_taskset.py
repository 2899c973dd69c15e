"""A taskset that no completion can be judged by alone."""

from collections.abc import Iterator
from typing import Any

import verifiers.v1 as vf


class Search(vf.Toolset):
    @vf.tool
    async def search(self, query: str) -> str:
        return query


class SearchTask(vf.Task[vf.TaskData]):
    async def setup(self, trace: vf.Trace, runtime: Any) -> None:
        trace.info["ready"] = True

    @vf.reward
    async def found(self, trace: vf.Trace, runtime: Any) -> float:
        return float(bool(trace.info["ready"]))

    @classmethod
    def toolsets(cls, config: vf.TaskConfig) -> list[vf.Toolset]:
        return [Search(vf.ToolsetConfig())]


class Searches(vf.Taskset[SearchTask, vf.TasksetConfig]):
    def load(self) -> Iterator[SearchTask]:
        yield SearchTask(vf.TaskData(prompt="?"))


__all__ = ["Searches"]
