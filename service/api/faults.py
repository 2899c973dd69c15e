"""Prompts that can never be judged are refused when they are added, not noticed when their rollouts are scored."""

from collections.abc import Sequence

from curation.records import Prompt
from service.api.bodies import rows_rejected
from service.verifiers.panel import Panel


async def refuse_faulty(prompts: Sequence[Prompt], panel: Panel) -> None:
    """Raises Invalid with the rows, counted from 0, whose reference or metadata their verifier cannot work with."""
    faults = await panel.question_faults({prompt.id: prompt for prompt in prompts}.values())
    rejected = [{"row": row, "reason": faults[p.id]} for row, p in enumerate(prompts) if p.id in faults]
    if rejected:
        raise rows_rejected(rejected, len(prompts))
