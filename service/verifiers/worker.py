"""The child process in which rules run.

- It answers one message per completion, in order, so its parent always knows which one it hangs on.
- A check has so many seconds of *CPU*: on a busy machine it takes longer and still ends with the same verdict. The
  kernel keeps that clock and ends the process, whatever code it is in by then.
- Messages are JSON: nothing that comes back from here is ever unpickled.
"""

import ctypes
import json
import resource
import signal
import time
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from math import isfinite
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from curation.records import Outcome
from service.verifiers.base import BadReference, Judgement, NoAnswer, OutOfTime, Question, Rule, storable

OUT_OF_MEMORY = "out of memory"
NO_LIMIT = resource.RLIM_INFINITY
RELOAD_SECONDS = 10.0
"""Until a rule that failed to load is tried again."""
PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


class Limits(NamedTuple):
    """What one check may use."""

    wall_seconds: float
    """Kept by the parent; far above the CPU time, so that it decides only where a check waits instead of computing."""
    cpu_seconds: float
    memory_bytes: int
    """Address space of the whole process."""
    load_seconds: float = 120.0
    """Until a worker has started and loaded what a verifier needs, on a busy machine too."""


def work(connection: Connection, limits: Limits) -> None:
    """Judges until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            message = json.loads(connection.recv_bytes())
        except EOFError:
            return
        question = Question(**message["question"])
        rule = _loaded(**message["rule"])
        connection.send_bytes(b"{}")  # whatever had to be loaded is: the clock of the first check starts now
        for text in message["texts"]:
            started = time.monotonic()
            signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)
            judgement = judge(rule, question, text)
            signal.setitimer(signal.ITIMER_PROF, 0)
            reply = judgement._asdict() | {
                "detail": storable(judgement.detail),
                "elapsed": time.monotonic() - started,
            }
            connection.send_bytes(json.dumps(reply).encode())


@lru_cache(maxsize=64)
def rule_of(path: str, operator: str | None) -> Rule:
    """The rule at a path, or what the function there makes from the operator's choices (JSON)."""
    found = function_at(path)
    rule: Rule = found if operator is None else found(**json.loads(operator))
    return rule


def function_at(path: str) -> Callable[..., Any]:
    """The function at ``package.module:name``."""
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def judge(rule: Rule, question: Question, text: str) -> Judgement:
    """The outcome of one check. Whatever the rule raises becomes an outcome, and only a real score a reward."""
    try:
        reward, answer = rule(question, text)
    except NoAnswer:
        return Judgement(Outcome.NO_ANSWER, 0.0)
    except BadReference as fault:
        return Judgement(Outcome.BAD_REFERENCE, None, str(fault)[:500])
    except OutOfTime as fault:
        return Judgement(Outcome.TIMEOUT, None, str(fault)[:500])
    except MemoryError:
        return Judgement(Outcome.ERROR, None, OUT_OF_MEMORY)
    except Exception as fault:  # noqa: BLE001 - a rule may raise anything, and none of it is a zero
        return Judgement(Outcome.ERROR, None, f"{type(fault).__name__}: {fault}"[:500])
    if not isinstance(reward, float) or not isfinite(reward) or not 0.0 <= reward <= 1.0:
        return Judgement(
            Outcome.ERROR, None, f"the verifier gave the reward {reward!r}, which is not from 0 to 1"[:500]
        )
    return Judgement(Outcome.SCORED, reward, answer)


def _loaded(path: str, operator: str | None) -> Rule:
    """The rule, or one that tells every completion what is wrong with it: somebody's plug-in may fail to load, and is
    not tried again for a while."""
    fault, since = _faults.get((path, operator), (None, 0.0))
    if fault is None or time.monotonic() - since > RELOAD_SECONDS:
        try:
            return rule_of(path, operator)
        except MemoryError:
            fault = RuntimeError(f"loading {path} ran out of memory")
        except Exception as error:  # noqa: BLE001 - whatever it is
            fault = error
        finally:
            # Libraries install handlers of their own while they load.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _faults[path, operator] = fault, time.monotonic()
    return _raising(fault)


_faults: dict[tuple[str, str | None], tuple[Exception, float]] = {}
"""Why a rule could not be loaded, and when."""


def _raising(fault: Exception) -> Rule:
    def rule(question: Question, text: str) -> tuple[float, str]:
        raise fault

    return rule
