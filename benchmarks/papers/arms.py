"""What is compared: four experiments, the arms of each, and the numbers that all of its arms share.

- An arm is a run of the service and a trainer; whatever an arm does not say is the same for all arms of its experiment.
- No arm is tuned alone: within an experiment all arms with the same loss have the same learning rate. It was looked for
  once, in one arm or two and with a seed of its own; docs/papers.md has what was tried.
- The prompts are sums that the policy always, sometimes and never solves.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Any

GRPO_RATE, GRPO_TRIED = 1e-4, (1e-4, 2e-4, 5e-4)
OFFLINE_DPO_RATE, OFFLINE_DPO_TRIED = 1e-4, (5e-5, 1e-4, 2e-4, 4e-4)
SYNCED_DPO_RATE, SYNCED_DPO_TRIED = 3e-5, (3e-5, 5e-5, 1e-4)
"""The rate that ended with the best accuracy, of those that were tried: see docs/papers.md."""
MAX_TOKENS = 96
"""Of an answer; the longest sums take about 60."""
GROUP_SIZE = 8
FEW_SOLVED = {"sum of 2 digits": 120, "sum of 4 digits": 60, "sum of 5 digits": 60, "sum of 6 digits": 240}
"""Prompts of each level: most of them the policy always or never solves, as selection is for."""
MIXED = {
    "sum of 2 digits": 60,
    "sum of 3 digits": 60,
    "sum of 4 digits": 120,
    "sum of 5 digits": 120,
    "sum of 6 digits": 60,
}
"""The same of a pool in which most groups are informative."""


class Experiment(StrEnum):
    GRESO = auto()
    PODS = auto()
    G2D = auto()
    SEMI_ONLINE = auto()


class Verb(StrEnum):
    """Of `refinery train`."""

    GRPO = "grpo"
    G2D = "g2d"
    SEMI_ONLINE = "semi-online"


Options = Mapping[str, str | float | bool]
"""By name; a flag is True."""


@dataclass(frozen=True, slots=True)
class Arm:
    verb: Verb
    options: Options
    """Of the verb."""
    n: int = GROUP_SIZE
    """Rollouts of a group."""
    selector: Mapping[str, Any] = field(default_factory=lambda: {"kind": "all"})
    batch: Mapping[str, Any] = field(default_factory=dict)
    """Of the run: how its rounds are sized."""


@dataclass(frozen=True, slots=True)
class Plan:
    """An experiment with its numbers."""

    pool: Mapping[str, int]
    """Prompts of each level to learn from."""
    held_out: int
    """Prompts of each level to measure on."""
    arms: Mapping[str, Arm]


def plan_of(experiment: Experiment, *, quick: bool) -> Plan:
    """The real thing, or one that is only good for trying whether everything works."""
    make = {
        Experiment.GRESO: _greso,
        Experiment.PODS: _pods,
        Experiment.G2D: _g2d,
        Experiment.SEMI_ONLINE: _semi_online,
    }[experiment]
    return make(quick)


def _plan(pool: Mapping[str, int], arms: Mapping[str, Arm], *, quick: bool) -> Plan:
    if quick:
        return Plan({level: size // 10 for level, size in pool.items()}, 4, arms)
    return Plan(pool, 50, arms)


def _greso(quick: bool) -> Plan:
    """GRESO skips before sampling what dynamic sampling throws away after it."""
    steps, groups, every = (3, 4, 1) if quick else (30, 32, 2)
    options = _grpo(steps, groups, GROUP_SIZE, every)
    rounds = {"groups": groups, "prompts": groups * 3 // 2}
    arms = {
        "grpo": Arm(Verb.GRPO, options | {"zero-variance": True}, batch=_exactly(groups)),
        "dynamic_sampling": Arm(Verb.GRPO, options, batch=rounds | {"adaptive": False}),
        "greso": Arm(Verb.GRPO, options, selector={"kind": "greso", "floor": 0.01}, batch=rounds | {"least": 4}),
        "posterior": Arm(Verb.GRPO, options, selector={"kind": "posterior"}, batch=rounds | {"least": 1}),
    }
    return _plan(FEW_SOLVED, arms, quick=quick)


def _pods(quick: bool) -> Plan:
    """PODS samples n and learns from m; plain GRPO learns from as many and samples no more."""
    steps, groups, every = (3, 4, 1) if quick else (36, 16, 2)
    n, m = (16, 4) if quick else (32, 8)
    options = _grpo(steps, groups, m, every) | {"zero-variance": True}

    def of(n: int, down_sampling: str) -> Arm:
        return Arm(Verb.GRPO, options | {"down-sampling": down_sampling}, n=n, batch=_exactly(groups))

    arms = {
        "grpo": of(m, "max_variance"),
        "pods": of(n, "max_variance"),
        "random": of(n, "random"),
        "max_reward": of(n, "max_reward"),
    }
    return _plan(MIXED, arms, quick=quick)


def _g2d(quick: bool) -> Plan:
    """A few steps of GRPO, a harvest, and offline DPO from where the policy was before, against GRPO to the end. The
    paper's GRPO has groups of two, which is weak: beside it stands one with groups as large as the harvest's."""
    steps, groups, every = (4, 4, 2) if quick else (60, 32, 5)
    warm_ups = (0, 2) if quick else (0, 4, 8)

    def grpo(n: int) -> Arm:
        options = _grpo(steps, groups, n, every) | {"zero-variance": True}
        return Arm(Verb.GRPO, options, n=n, batch=_exactly(groups))

    def g2d(warm_up: int) -> Arm:
        options: Options = {
            "warm-up": warm_up,
            "warm-up-rate": GRPO_RATE,
            "name": "harvest",
            "groups": groups,
            "keep": GROUP_SIZE,
            "zero-variance": True,
            "micro-batch": groups * GROUP_SIZE // 2,
            "n": GROUP_SIZE,
            "temperature": 1.3,
            "max-tokens": MAX_TOKENS,
            "learning-rate": OFFLINE_DPO_RATE,
            "batch": 16,
            "epochs": 3,
            "max-length": 256,
        }
        return Arm(Verb.G2D, options, batch=_exactly(groups))

    arms = {"grpo": grpo(GROUP_SIZE), "grpo_n2": grpo(2)} | {f"g2d_{steps}": g2d(steps) for steps in warm_ups}
    return _plan(MIXED, arms, quick=quick)


def _semi_online(quick: bool) -> Plan:
    """DPO on what a policy says that is 1, 10, 100 or all steps old, and GRPO on groups of the same kind."""
    steps, groups, every = (4, 4, 2) if quick else (150, 8, 10)
    syncs = (1, 2, 0) if quick else (1, 10, 100, 0)
    batch = {"groups": groups, "prompts": groups * 3 // 2, "least": 4}
    options: dict[str, str | float | bool] = {
        "steps": steps,
        "batch": groups,
        "learning-rate": SYNCED_DPO_RATE,
        "evaluate-every": every,
    }
    arms = {f"s_{sync or 'inf'}": Arm(Verb.SEMI_ONLINE, options | {"sync-every": sync}, batch=batch) for sync in syncs}
    return _plan(
        MIXED, arms | {"grpo": Arm(Verb.GRPO, _grpo(steps, groups, GROUP_SIZE, every), batch=batch)}, quick=quick
    )


def _grpo(steps: int, groups: int, keep: int, every: int) -> dict[str, str | float | bool]:
    return {
        "steps": steps,
        "groups": groups,
        "keep": keep,
        "micro-batch": groups * keep,
        "learning-rate": GRPO_RATE,
        "evaluate-every": every,
    }


def _exactly(groups: int) -> dict[str, Any]:
    """One round a step, of as many prompts as it has groups."""
    return {"groups": groups, "prompts": groups, "adaptive": False}
