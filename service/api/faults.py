"""Prompts that can never be judged are refused when they are added, not noticed when their rollouts are scored."""

from collections.abc import Sequence
from typing import Any

from curation.records import Prompt
from service.api.bodies import rows_rejected
from service.verifiers.panel import Panel


async def refuse_faulty(prompts: Sequence[Prompt], panel: Panel) -> None:
    """Raises Invalid with the rows, counted from 0, whose reference or metadata their verifier cannot work with."""
    if rejected := await faulty(list(enumerate(prompts)), panel):
        raise rows_rejected(rejected, len(prompts))


async def faulty(prompts: Sequence[tuple[int, Prompt]], panel: Panel) -> list[dict[str, Any]]:
    """Those of the numbered prompts, as ``{row, reason}``."""
    faults = await panel.question_faults({prompt.id: prompt for _, prompt in prompts}.values())
    return [{"row": number, "reason": faults[p.id]} for number, p in prompts if p.id in faults]
