"""Completions whose verdict is known, judged again and again: they notice a verifier that has gone blind.

- Every verifier that judges rollouts is tried with a right and a wrong completion, several times a minute, ahead of
  everything that waits.
- From the first wrong verdict on, or the second that is none, nothing more is judged by it until its canaries are right
  again: completions wait, and no reward is made up.
"""

import asyncio
import logging
from collections import Counter

from curation.records import Outcome, Prompt
from service.stages import VerifierFailed
from service.verifiers import names
from service.verifiers.catalogue import Canary
from service.verifiers.panel import Panel

logger = logging.getLogger(__name__)

MISSES = 2
"""Trials in a row without a verdict, until the verifier counts as blind; a wrong verdict counts at once."""


async def watch(panel: Panel, *, seconds: float) -> None:
    """Tries the verifiers in use, for as long as it runs."""
    missed: Counter[str] = Counter()
    while True:
        await asyncio.sleep(seconds)
        tried = panel.canaries()
        trials = await asyncio.gather(*(_trial(panel, name, canary) for name, canary in tried.items()))
        for name, (reason, misses) in zip(tried, trials, strict=True):
            missed[name] = missed[name] + 1 if misses else 0
            if reason and (not misses or missed[name] >= MISSES):
                if name not in panel.blind:
                    logger.error("verifier %s is blind: %s; what it should judge waits", name, reason)
                panel.close_eyes(name, reason)
            elif not reason and name in panel.blind:
                logger.warning("verifier %s sees again", name)
                panel.open_eyes(name)


async def _trial(panel: Panel, name: str, canary: Canary) -> tuple[str, bool]:
    """(what is wrong, whether that is only a verdict that is missing)"""
    spelled = names.spelled(name, canary.options)
    prompt = Prompt("canary", canary.prompt, canary.reference, spelled, dict(canary.metadata))
    try:
        verdicts = await panel.try_out(prompt, [canary.right, canary.wrong])
    except VerifierFailed as failure:
        return str(failure), True
    for verdict, text in zip(verdicts, (canary.right, canary.wrong), strict=True):
        if verdict.reward is None:
            misses = verdict.outcome in (Outcome.TIMEOUT, Outcome.ERROR)
            return f"{verdict.outcome} for {text!r}: {verdict.detail}", misses
    right, wrong = (verdict.reward or 0.0 for verdict in verdicts)
    if right <= wrong:
        return f"{right:g} for {canary.right!r}, which is right, and {wrong:g} for {canary.wrong!r}", False
    return "", False
