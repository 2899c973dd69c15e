"""Which process is killed, stopped or ended next, and when: a function of a seed, and of nothing else."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum, auto

from curation.keys import rng_for

EARLY_SHARE = 0.2
"""Of the faults: they do not wait until the service has come back from the one before."""
STOP_SECONDS, ENGINE_STOP_SECONDS = (0.5, 3.0), (3.0, 60.0)
"""That a stopped process stands still; an engine for as long as a probe of it may take, and longer."""


class Target(StrEnum):
    SERVICE = auto()
    VERIFIER = auto()
    """A worker process of the service that judges completions."""
    FORK_SERVER = auto()
    """The process that these are forked from; all of them end with it."""
    SQL = auto()
    """A process that answers a question, or the container around it."""
    ENGINE = auto()
    """The server that samples, where there is one."""
    REQUESTER = auto()
    TRAINER = auto()
    IMPORTER = auto()
    FREEZER = auto()
    READER = auto()


class How(StrEnum):
    KILL = auto()
    """SIGKILL."""
    END = auto()
    """SIGTERM."""
    STOP = auto()
    """SIGSTOP, and SIGCONT a few seconds later."""


@dataclass(frozen=True, slots=True)
class Fault:
    target: Target
    how: How
    gap: float
    """Seconds since the one before was over."""
    pick: float
    """Which one, where there are several such processes: as a share of their list."""
    seconds: float
    """That it stands still, if it is stopped."""
    is_early: bool
    """It comes although the service may still be starting."""


@dataclass(frozen=True, slots=True)
class Plan:
    counts: Mapping[tuple[Target, How], int]
    """In each round of faults; their order is shuffled."""
    gap: float
    """Seconds between two faults, on average."""


FULL = Plan(
    {
        (Target.SERVICE, How.KILL): 12,
        (Target.SERVICE, How.END): 3,
        (Target.SERVICE, How.STOP): 2,
        (Target.VERIFIER, How.KILL): 7,
        (Target.VERIFIER, How.STOP): 1,
        (Target.FORK_SERVER, How.KILL): 1,
        (Target.SQL, How.KILL): 6,
        (Target.SQL, How.STOP): 1,
        (Target.REQUESTER, How.KILL): 3,
        (Target.TRAINER, How.KILL): 6,
        (Target.TRAINER, How.STOP): 1,
        (Target.IMPORTER, How.KILL): 4,
        (Target.FREEZER, How.KILL): 4,
        (Target.READER, How.KILL): 3,
    },
    gap=1.2,
)
QUICK = Plan(
    {
        (Target.SERVICE, How.KILL): 2,
        (Target.SERVICE, How.END): 1,
        (Target.SERVICE, How.STOP): 1,
        (Target.VERIFIER, How.KILL): 8,
        (Target.FORK_SERVER, How.KILL): 1,
        (Target.SQL, How.KILL): 8,
        (Target.REQUESTER, How.KILL): 8,
        (Target.TRAINER, How.KILL): 8,
        (Target.IMPORTER, How.KILL): 8,
        (Target.FREEZER, How.KILL): 8,
        (Target.READER, How.KILL): 8,
    },
    gap=0.35,
)
"""What costs a second or less more often than what costs the service a start."""
OF_ENGINES = {(Target.ENGINE, How.KILL): 4, (Target.ENGINE, How.STOP): 1}


def with_engine(plan: Plan) -> Plan:
    """A server of models takes a minute to start: it and the service, with which it ends, are killed less often."""
    fewer = {(Target.SERVICE, How.KILL): 3, (Target.SERVICE, How.END): 1}
    return Plan({**plan.counts, **fewer, **OF_ENGINES}, plan.gap)


def schedule(seed: int, plan: Plan) -> Iterator[Fault]:
    """Endless: round after round, in each of which every fault comes as often as the plan says."""
    rng = rng_for(seed, "faults")
    while True:
        kinds = [kind for kind, count in plan.counts.items() for _ in range(count)]
        rng.shuffle(kinds)
        for target, how in kinds:
            yield Fault(
                target,
                how,
                gap=min(rng.expovariate(1 / plan.gap), 5 * plan.gap),
                pick=rng.random(),
                seconds=rng.uniform(*(ENGINE_STOP_SECONDS if target is Target.ENGINE else STOP_SECONDS)),
                is_early=rng.random() < EARLY_SHARE,
            )
