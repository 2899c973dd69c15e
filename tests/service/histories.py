"""What state machines over a real store share."""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine

from curation.records import Action, Decision, Group, Visit
from service.parts import Store
from service.run_config import Retain, RunConfig
from service.store.groups import PlannedVisit, StoredGroup
from service.store.policies import PolicyVersion
from tests.builders import a_group, a_prompt

T = TypeVar("T")
NOW = datetime(2026, 1, 1)  # noqa: DTZ001 - as the store has them
SETTINGS = settings(
    max_examples=20,
    stateful_step_count=25,
    phases=[Phase.generate],  # a shorter history would take minutes
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class History(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.loop = asyncio.new_event_loop()
        self.store = Store.open(self.folder / "data")

    def do(self, what: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(what)

    def add_runs(self, *names: str) -> None:
        self.do(self.store.policies.add(PolicyVersion("policy", 1, "", None, NOW)))
        for name in names:
            self.do(self.store.runs.add(RunConfig(name=name, policy="policy", prompt_set="s"), NOW))

    def add_group(self, run: str, number: int, *rewards: float) -> Group:
        """Of a prompt with that number, which is sampled for the first time."""
        prompt = a_prompt(f"{number} + 1?")
        group = a_group(*rewards, prompt=prompt, run=run, policy_version=1)
        visit = Visit(prompt.id, 0, 0, Decision(Action.SAMPLED, 1.0, ""))
        self.do(self.store.prompts.add([prompt], "s", NOW))
        self.do(self.store.groups.plan([PlannedVisit(run, "j", 0, 0, visit, len(rewards))], NOW))
        self.do(self.store.groups.append(StoredGroup(group, "j", "policy", 1.0, 0.0, 0.0), Retain.ALL, NOW))
        return group

    def reopen(self, *, sealed: bool) -> None:
        """The store alone; what works on it is made anew by whoever calls this."""
        if sealed:
            self.store.sealer.seal()
        self.store.close()
        self.store = Store.open(self.folder / "data")

    def teardown(self) -> None:
        self.store.close()
        self.loop.close()
        shutil.rmtree(self.folder)
