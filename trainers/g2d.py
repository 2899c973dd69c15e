"""G2D, "GRPO to DPO" (arXiv 2605.21266): a short GRPO warm-up, a harvest from the warm policy, then offline DPO.

Read from top to bottom. Each stage is a run of its own in a folder of its own and is done at most once, so the same
command goes on wherever it was interrupted; at the end one manifest says what was made of what.
"""

import dataclasses
from dataclasses import dataclass
from enum import StrEnum, auto
from pathlib import Path

from curation.keys import digest
from trainers import dpo, grpo
from trainers.client import Json
from trainers.dpo import DpoRun
from trainers.grpo import GrpoRun, config_of
from trainers.learning import DONE, by_one, claim, finish, finished, identity, reached
from trainers.pairs import Source
from trainers.publishing import kept, publish_checkpoint


class Start(StrEnum):
    """Which weights DPO starts from, and is compared with."""

    ORIGINAL = auto()
    """Those before the warm-up, as the paper does."""
    WARM = auto()


@dataclass(frozen=True, slots=True)
class Harvest:
    """How the warm policy is sampled for pairs."""

    name: str
    """Of the run and of the dataset."""
    n: int = 8
    temperature: float = 1.3
    max_tokens: int = 512
    passes: int = 1
    """Over the prompts of the warm-up."""
    pairs: str = "one_random_pair"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class G2dRun:
    out: Path
    warm_up: GrpoRun
    """As long as the longest of `warm_ups`, in a folder of its own."""
    warm_ups: tuple[int, ...]
    """Steps after which the policy is harvested; of several the warm-up advisor chooses."""
    harvest: Harvest
    dpo: DpoRun
    """Without its dataset, which is harvested first; in a folder of its own."""
    start: Start = Start.ORIGINAL


def train(run: G2dRun) -> Json:
    """All stages; returns what came of the last one."""
    if (done := finished(run.out, run)) is not None:
        return done
    claim(run.out, run)
    warmed = warm_up(run)
    harvested = by_one(lambda: {steps: harvest(run, steps) for steps in run.warm_ups})
    chosen, advice = by_one(lambda: choose(run, harvested))
    dataset = by_one(lambda: freeze(run, harvested[chosen]))

    learning = run.dpo.learning
    if run.start is Start.WARM and chosen:
        learning = dataclasses.replace(learning, policy=weights_after(run, chosen))
    source = Source(f"{dataset['name']}@{dataset['version']}")
    result = dpo.train(dataclasses.replace(run.dpo, datasets=(source,), learning=learning))
    return finish(
        run.out,
        run,
        {"warm_up": chosen, "dataset": source.name} | result,
        warmed=warmed,
        harvests={steps: one | {"checkpoint": weights_after(run, steps)} for steps, one in harvested.items()},
        advice=advice,
        dataset={name: dataset[name] for name in ("name", "version", "dataset_id")}
        | {"sha256": {name: file["sha256"] for name, file in dataset["manifest"]["files"].items()}},
        dpo={"started_from": learning.policy, "manifest": str(learning.out / DONE)},
    )


def warm_up(run: G2dRun) -> Json:
    """Stage 1, once for all lengths."""
    longest = max(run.warm_ups)
    if not longest:
        return {"steps": 0}
    return grpo.train(dataclasses.replace(run.warm_up, steps=longest, keep_weights_of=run.warm_ups))


def weights_after(run: G2dRun, steps: int) -> str:
    """The checkpoint of the warm-up."""
    learning = run.warm_up.learning
    return str(kept(learning.out.absolute(), steps)) if steps else learning.policy


def harvest(run: G2dRun, steps: int) -> Json:
    """Stage 2: groups of every prompt, from the policy as it was after so many steps; says which version that is."""
    told, warm = run.harvest, config_of(run.warm_up.service, run.warm_up.run)
    key = digest(identity(run.out), steps)
    with reached(run.warm_up.service) as refinery:
        published = publish_checkpoint(refinery, warm["policy"], weights_after(run, steps), steps, key)
        refinery.post(
            "/v1/runs",
            {
                "name": told.name,
                "policy": warm["policy"],
                "prompt_set": warm["prompt_set"],
                "sampling": {"n": told.n, "temperature": told.temperature, "max_tokens": told.max_tokens},
                "selector": {"kind": "all"},
                "seed": told.seed,
            },
        )
        sampled = refinery.once(f"/v1/runs/{told.name}/rollouts", {"passes": told.passes}, key=key)
    return {"version": published["version"], "funnel": sampled["funnel"]}


def choose(run: G2dRun, harvested: dict[int, Json]) -> tuple[int, Json | None]:
    """Stage 3: the advisor's warm-up, and its advice. Where it cannot tell them apart, the shortest that may be the
    best."""
    if len(harvested) == 1:
        return next(iter(harvested)), None
    with reached(run.warm_up.service) as refinery:
        advice: Json = refinery.get(f"/v1/runs/{run.harvest.name}/warmup")
    versions = {one["version"]: steps for steps, one in harvested.items()}
    if advice["best"] in versions:
        return versions[advice["best"]], advice
    ours = [one for one in advice["versions"] if one["version"] in versions]  # of an older run there may be others
    top = max(one["value"] for one in ours)
    return min(versions[one["version"]] for one in ours if one["high"] >= top), advice


def freeze(run: G2dRun, harvested: Json) -> Json:
    """Stage 4: a dataset version of the pairs of one harvest."""
    version, told = harvested["version"], run.harvest
    recipe = {
        "runs": [told.name],
        "policy_versions": [version, version],
        "pairs": {"kind": told.pairs},
        "seed": told.seed,
    }
    with reached(run.warm_up.service) as refinery:
        frozen: Json = refinery.post("/v1/datasets", {"name": told.name, "recipe": recipe})
    return frozen
