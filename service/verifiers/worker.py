"""The child process in which rules run.

It answers one message per completion, in order, so its parent always knows which one it hangs on. Messages are JSON:
nothing that comes back from here is ever unpickled.
"""

import json
import resource
import signal
import time
from math import isfinite
from multiprocessing.connection import Connection

from curation.records import Outcome
from service.verifiers.base import BadReference, Judgement, NoAnswer, Question, Rule
from service.verifiers.rules import rule_of


def work(connection: Connection, memory_bytes: int) -> None:
    """Judges until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            message = json.loads(connection.recv_bytes())
        except EOFError:
            return
        question = Question(message["verifier"], message["reference"], message["metadata"])
        rule = rule_of(question.verifier)
        connection.send_bytes(b"{}")  # imports are done: the clock of the first check starts now
        for text in message["texts"]:
            started = time.monotonic()
            judgement = judge(rule, question, text)
            reply = judgement._asdict() | {"elapsed": time.monotonic() - started}
            connection.send_bytes(json.dumps(reply).encode())


def judge(rule: Rule, question: Question, text: str) -> Judgement:
    """The outcome of one check. Whatever the rule raises becomes an outcome, and only a real score a reward."""
    try:
        reward, answer = rule(question, text)
    except NoAnswer:
        return Judgement(Outcome.NO_ANSWER, 0.0)
    except BadReference as fault:
        return Judgement(Outcome.BAD_REFERENCE, None, str(fault))
    except MemoryError:
        return Judgement(Outcome.ERROR, None, "out of memory")
    except Exception as fault:  # noqa: BLE001 - a rule may raise anything, and none of it is a zero
        return Judgement(Outcome.ERROR, None, f"{type(fault).__name__}: {fault}"[:500])
    if not isinstance(reward, float) or not isfinite(reward) or not 0.0 <= reward <= 1.0:
        return Judgement(Outcome.ERROR, None, f"the verifier gave the reward {reward!r}"[:500])
    return Judgement(Outcome.SCORED, reward, answer)
