"""All verifiers together: the one thing that the rest of the service asks for verdicts.

- A completion gets one verdict, whose reward is the weighted mean of the verifiers that its prompt names.
- It has a reward only if every one of them reached one: a failure is never a zero, not even a part of one.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence

from curation.records import Outcome, Prompt, Verdict
from service.stages import VerifierFailed
from service.verifiers.catalogue import Canary, Catalogue, Local, WeightedCheck
from service.verifiers.names import joined
from service.verifiers.pool import VerifierPool
from service.verifiers.remote import Line, judgements

QUESTIONS_AT_ONCE = 1024
"""Of one request: a task for each of a million would take gigabytes."""
QUESTIONABLE = {Outcome.BAD_REFERENCE, Outcome.TIMEOUT, Outcome.ERROR}
"""What a question that can be judged does not give for an empty completion."""


class Panel:
    """Close it at the end; the pools are its own."""

    def __init__(self, catalogue: Catalogue, pool: VerifierPool, models: VerifierPool | None = None) -> None:
        """`models` is the pool for verifiers that are models; without one they use the other."""
        self.catalogue = catalogue
        self._pool = pool
        self._models = models or pool
        self._lines: dict[str, Line] = {}
        self.tally: Counter[tuple[str, Outcome]] = Counter()
        """Verdicts since the start, by outcome and by who judged, with revisions and without options and weights: of
        those there is no end."""
        self.waiting = 0
        """Completions that are being judged, or wait for it."""
        self.blind: dict[str, str] = {}
        """Why a verifier is not to be trusted now, by its name."""
        self._sighted: dict[str, asyncio.Event] = {}
        self._used: set[str] = set()

    @property
    def restarts(self) -> int:
        """Worker processes that a completion cost."""
        return self._pool.restarts + (self._models.restarts if self._models is not self._pool else 0)

    async def close(self) -> None:
        for line in self._lines.values():
            await line.close()
        await asyncio.to_thread(self._pool.close)
        await asyncio.to_thread(self._models.close)

    async def verify(self, prompt: Prompt, texts: Sequence[str], run: str = "") -> list[Verdict]:
        """One verdict per text, in their order; runs take turns. Waits while a verifier that is asked is blind. Raises
        VerifierFailed where no verdict can be reached at all."""
        self.waiting += len(texts)
        try:
            for one in self._checks(prompt):
                self._used.add(one.verifier)
                await self._sees(one.verifier).wait()
            checks = self._checks(prompt)  # of what sees by now
            verdicts = await self._judge(checks, texts, run)
        finally:
            self.waiting -= len(texts)
        judges = "+".join(one.check.label.partition("?")[0] for one in checks)
        self.tally.update((judges, verdict.outcome) for verdict in verdicts)
        return verdicts

    async def try_out(self, prompt: Prompt, texts: Sequence[str]) -> list[Verdict]:
        """`verify` ahead of everything that waits, blind or not, and not counted."""
        return await self._judge(self._checks(prompt), texts, "", first=True)

    async def question_faults(self, prompts: Collection[Prompt]) -> dict[str, str]:
        """Why a prompt can never be judged, by prompt id, for those that cannot: what an empty completion gets. Only
        local verifiers with a canary are asked."""
        asked = list(prompts)
        faults: list[str] = []
        while len(faults) < len(asked):
            part = asked[len(faults) : len(faults) + QUESTIONS_AT_ONCE]
            faults += await asyncio.gather(*map(self._question_fault, part))
        return {prompt.id: fault for prompt, fault in zip(asked, faults, strict=True) if fault}

    async def _question_fault(self, prompt: Prompt) -> str:
        for one in self._checks(prompt):
            if isinstance(one.where, Local) and one.where.canary:
                [verdict] = await self._ask(one, [""], "")
                if verdict.outcome in QUESTIONABLE:
                    return f"{verdict.outcome}: {verdict.detail}"
        return ""

    # ---- canaries

    def canaries(self) -> dict[str, Canary]:
        """Of the verifiers that have judged something."""
        found = {verifier: self.catalogue.canary(verifier) for verifier in sorted(self._used)}
        return {verifier: canary for verifier, canary in found.items() if canary}

    def close_eyes(self, verifier: str, reason: str) -> None:
        """Lets nothing be judged by it any more."""
        self.blind[verifier] = reason
        self._sees(verifier).clear()

    def open_eyes(self, verifier: str) -> None:
        del self.blind[verifier]
        self._sees(verifier).set()

    def _sees(self, verifier: str) -> asyncio.Event:
        if verifier not in self._sighted:
            self._sighted[verifier] = asyncio.Event()
            self._sighted[verifier].set()
        return self._sighted[verifier]

    # ---- judging

    def _checks(self, prompt: Prompt) -> list[WeightedCheck]:
        try:
            return self.catalogue.checks(prompt)
        except ValueError as error:
            raise VerifierFailed(f"prompt {prompt.id}: {error}") from error

    async def _judge(
        self, checks: Sequence[WeightedCheck], texts: Sequence[str], run: str, *, first: bool = False
    ) -> list[Verdict]:
        each = await asyncio.gather(*(self._ask(one, texts, run, first=first) for one in checks))
        weights = [one.weight for one in checks]
        return [combined(weights, verdicts) for verdicts in zip(*each, strict=True)]

    async def _ask(self, one: WeightedCheck, texts: Sequence[str], run: str, *, first: bool = False) -> list[Verdict]:
        if isinstance(one.where, Local):
            pool = self._models if one.where.is_model else self._pool
            return await pool.verify(one.check, texts, run, first=first)
        line = self._lines.setdefault(one.where.url, Line(one.where.url))
        if first:
            line = line.beside()
        judged = await judgements(one.where.speaks, line.of(run), one.check.question, texts)
        return [Verdict(j.outcome, j.reward, one.check.label, seconds, j.detail) for j, seconds in judged]


def combined(weights: Sequence[float], verdicts: Sequence[Verdict]) -> Verdict:
    """The weighted mean of the rewards; the first failure where there is one."""
    if len(verdicts) == 1:
        return verdicts[0]
    label = joined(zip(weights, (v.verifier for v in verdicts), strict=True))
    elapsed = sum(v.elapsed for v in verdicts)
    for failed in verdicts:
        if failed.reward is None:
            return Verdict(failed.outcome, None, label, elapsed, f"{failed.verifier}: {failed.detail}")
    rewards = [v.reward for v in verdicts if v.reward is not None]
    mean = sum(weight * reward for weight, reward in zip(weights, rewards, strict=True)) / sum(weights)
    detail = "; ".join(f"{v.verifier} {v.reward:g} ({v.detail or v.outcome})" for v in verdicts)
    answered = any(v.outcome is Outcome.SCORED for v in verdicts)
    return Verdict(Outcome.SCORED if answered else Outcome.NO_ANSWER, min(mean, 1.0), label, elapsed, detail)
