"""How much runs and datasets can teach, and which policy version to harvest from."""

import asyncio
from pathlib import Path
from typing import Annotated

import polars as pl
from fastapi import APIRouter, Query
from pydantic import BaseModel

from curation.warmup import Measure, advise
from service.api.datasets import find
from service.api.routes import READS, PartsDep
from service.api.turns import TAKES_LONG
from service.stages import Invalid
from service.store.transaction import Row

router = APIRouter(prefix="/v1", tags=["reports"])
Price = Annotated[float | None, Query(ge=0, le=1e9, description="Of a million sampled tokens, in any currency.")]


class InformativenessOut(BaseModel):
    """Of groups: all of a run where `policy_version` is null, all there are where `run` is, too. Shares and means are
    over the groups in which something was scored; null where there is nothing to take them of."""

    run: str | None
    policy_version: int | None
    groups: int
    informative: int
    easy: int
    hard: int
    unscored: int
    mean_reward: float | None
    reward_variance: float | None
    """Mean over groups of the population variance."""
    outcome_entropy: float | None
    """Mean over groups of H(mean reward), nats."""
    outcome_entropy_of_pairs: float | None
    """The same over informative groups."""
    goldilocks_share: float | None
    """Share of groups with a mean reward from 0.2 to 0.8."""
    pass_rate_histogram: list[int]
    """Groups by tenth of their mean reward."""
    margin_histogram: list[int]
    """Informative groups by tenth of the distance between highest and lowest reward."""
    wasted_again: float | None
    """P(zero-variance | the prompt's group before was zero-variance)."""
    wasted_after_informative: float | None
    unique_answer_share: float | None
    """Different answers in a group, over answers."""
    duplicate_completion_share: float | None
    """Completions that stand in their group already."""
    tokens_right: float | None
    tokens_wrong: float | None
    """Mean length of right and of wrong completions."""
    token_entropy: float | None
    """Mean of -log p of the sampled tokens whose logprobs are kept, nats: over informative groups only, unless the run
    retains all. Without top_p and top_k it estimates the policy's entropy at its temperature there."""
    truncated_share: float | None
    tokens: int
    sampling_seconds: float
    verifying_seconds: float
    tokens_per_informative_group: float | None
    """All tokens of these groups over the informative ones. Of a run that is with its waste; of a dataset only of the
    groups in it, and what all groups took is `spent` in its manifest."""
    price_per_informative_group: float | None = None

    @classmethod
    def of(cls, row: Row, price: float | None) -> "InformativenessOut":
        tokens = row["tokens_per_informative_group"]
        told = None if price is None or tokens is None else price * tokens / 1e6
        return cls(**row, price_per_informative_group=told)


class MeasuredOut(BaseModel):
    version: int
    groups: int
    value: float
    low: float
    high: float
    best: float
    """Share of the bootstrap draws in which it is the best."""


class AdviceOut(BaseModel):
    measure: Measure
    versions: list[MeasuredOut]
    best: int | None
    """Null where the evidence is thin."""
    reason: str


@router.get("/runs/{run}/informativeness", dependencies=[READS, TAKES_LONG])
async def run_informativeness(run: str, parts: PartsDep, price: Price = None) -> list[InformativenessOut]:
    """The whole run first, then each policy version. The same as the SQL view `informativeness`."""
    await parts.store.runs.get(run)
    return [InformativenessOut.of(row, price) for row in await parts.store.reports.of_run(run)]


@router.get("/datasets/{name}@{version}/informativeness", dependencies=[READS, TAKES_LONG])
async def dataset_informativeness(
    name: str, version: str, parts: PartsDep, price: Price = None
) -> list[InformativenessOut]:
    """Of the groups that gave rows, as they are judged now: all together, then by run, then by policy version."""
    dataset = await find(name, version, parts)
    folder = parts.dataset_root / dataset.dataset_id
    files = [folder / name for split in dataset.splits for name in dataset.shards(split)]
    group_ids = await asyncio.to_thread(_group_ids, files)
    return [InformativenessOut.of(row, price) for row in await parts.store.reports.of_groups(group_ids)]


@router.get("/runs/{run}/warmup", dependencies=[READS, TAKES_LONG])
async def advise_warmup(run: str, parts: PartsDep, measure: Measure = Measure.PAIR_ENTROPY, seed: int = 0) -> AdviceOut:
    """Which of the policy versions that the run sampled gives the most informative pairs, and how sure that is."""
    await parts.store.runs.get(run)
    harvests = await parts.store.reports.rewards_by_version(run)
    try:
        advice = await asyncio.to_thread(advise, harvests, measure, seed=seed)
    except ValueError as error:
        raise Invalid("one_policy_version", f"run {run!r}: {error}") from None
    versions = [MeasuredOut(**one._asdict()) for one in advice.versions]
    return AdviceOut(measure=advice.measure, versions=versions, best=advice.best, reason=advice.reason)


def _group_ids(files: list[Path]) -> list[str]:
    frame = pl.scan_parquet(files)
    if "group_id" not in frame.collect_schema():
        raise Invalid("no_groups", "a dataset of prompts has no groups; ask for the informativeness of its runs")
    return frame.select(pl.col("group_id").unique()).collect()["group_id"].to_list()
