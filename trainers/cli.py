"""Verbs that learn: ``refinery train`` and ``refinery demo``. Their libraries are imported when a verb runs."""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from trainers.arguments import (
    EvaluationTold,
    HarvestTold,
    LearningTold,
    OfflineTold,
    Out,
    Policy,
    PreferenceTold,
    SupplyTold,
    learned,
    spread,
)
from trainers.client import DEFAULT_SERVICE, RefineryError
from trainers.options import AsJson, Service, tell

if find_spec("trl") is None:
    raise ModuleNotFoundError("the trainers extra is not installed", name="trl")

train = typer.Typer(help="Train a policy. The same command again goes on where it stopped.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(train, name="train")
    if find_spec("fastapi") is not None:  # the demo starts a service of its own
        app.command()(demo)


@train.command()
def sft(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    seed: Annotated[int, typer.Option(help="Decides weights and corpus.")] = 0,
    steps: Annotated[int, typer.Option(help="Optimizer steps of 128 examples.")] = 3_000,
    worked: Annotated[float, typer.Option(min=0, max=1, help="Share of sums that show their working.")] = 0.3,
) -> None:
    """Makes the embedded policy from scratch."""
    from trainers.sft import SftRun, train

    train(SftRun(out=out, seed=seed, steps=steps, worked=worked))


@train.command()
@spread
def dpo(
    dataset: Annotated[
        list[str],
        typer.Option(help="NAME@VERSION of the service, or a URL or path of Parquet or JSONL; again for more."),
    ],
    policy: Policy,
    out: Out,
    learning: LearningTold,
    preference: PreferenceTold,
    offline: OfflineTold,
    evaluation: EvaluationTold,
    weight: Annotated[list[float] | None, typer.Option(help="Of each dataset in a mix, in their order.")] = None,
    precompute: Annotated[bool, learned("Ask the reference before training, once for ever.")] = True,
    service: Service = DEFAULT_SERVICE,
    as_json: AsJson = False,
) -> None:
    """Trains by DPO on frozen datasets."""
    from trainers.dpo import DpoRun, train
    from trainers.pairs import Source

    if weight and len(weight) != len(dataset):
        sys.exit(f"refinery train dpo: {len(dataset)} datasets and {len(weight)} weights: give one for each or none")
    learns = learning.learning(policy, out)
    run = DpoRun(
        datasets=tuple(Source(*told) for told in zip_longest(dataset, weight or [])),
        learning=learns,
        service=service,
        precompute=precompute,
        evaluation=evaluation.evaluation(service, learning.seed),
        **preference.told,
        **offline.told,
    )
    _run("dpo", train, run, as_json)


@train.command()
@spread
def grpo(
    run: Annotated[str, typer.Option(help="Run of the service that samples the groups.")],
    policy: Policy,
    out: Out,
    steps: Annotated[int, typer.Option(help="Optimizer steps.", min=1)],
    supply: SupplyTold,
    learning: LearningTold,
    evaluation: EvaluationTold,
    groups: Annotated[int, typer.Option(help="Of a step, over all devices.", min=1)] = 32,
    keep: Annotated[int, typer.Option(help="Rollouts of each group that are learned from.", min=2)] = 8,
    down_sampling: Annotated[str, typer.Option(help="Which: a kind of down-sampling of a recipe.")] = "max_variance",
    zero_variance: Annotated[
        bool, typer.Option("--zero-variance", help="Learn from whatever was sampled, as plain GRPO does.")
    ] = False,
    micro_batch: Annotated[int, learned("Rollouts at once on a device.", min=1)] = 32,
    beta: Annotated[float, learned("Weight of the KL divergence.", min=0)] = 0.0,
    loss: Annotated[str, learned("TRL's name of a GRPO loss.")] = "dapo",
    service: Service = DEFAULT_SERVICE,
    as_json: AsJson = False,
) -> None:
    """Trains by GRPO on groups that a run of the service samples, and publishes the weights back to it."""
    from trainers.grpo import GrpoRun, train

    learns = learning.learning(policy, out)
    told = GrpoRun(
        learning=learns,
        service=service,
        run=run,
        steps=steps,
        groups=groups,
        keep=keep,
        down_sampling=down_sampling,
        zero_variance=zero_variance,
        micro_batch=micro_batch,
        beta=beta,
        loss=loss,
        evaluation=evaluation.evaluation(service, learning.seed),
        **asdict(supply),
    )
    _run("grpo", train, told, as_json)


@train.command("semi-online")
@spread
def semi_online(
    run: Annotated[list[str], typer.Option(help="Run of the service that samples; NAME=WEIGHT for more than one.")],
    policy: Policy,
    out: Out,
    steps: Annotated[int, typer.Option(help="Optimizer steps.", min=1)],
    supply: SupplyTold,
    learning: LearningTold,
    preference: PreferenceTold,
    evaluation: EvaluationTold,
    by_reward: Annotated[
        list[str] | None, typer.Option(help="Runs whose pairs are the best with the worst answer, for graded rewards.")
    ] = None,
    batch: Annotated[int, learned("Pairs of a micro-batch, over all devices.", min=1)] = 32,
    micro_batches: Annotated[int, learned("Of a step.", min=1)] = 1,
    sync_reference_every: Annotated[
        int, learned("Steps after which the reference becomes the policy; 0 keeps the first.", min=0)
    ] = 0,
    entropy: Annotated[float, learned("Weight of the entropy over the chosen side.", min=0)] = 0.0,
    service: Service = DEFAULT_SERVICE,
    as_json: AsJson = False,
) -> None:
    """Trains by DPO on pairs that runs of the service sample, and publishes the weights every so many steps."""
    from trainers.semi_online import SemiOnlineRun, Task, train

    try:
        named = [(name, float(weight or 1)) for name, _, weight in (told.partition("=") for told in run)]
    except ValueError as error:
        sys.exit(f"refinery train semi-online: --run NAME=WEIGHT: {error}")
    rules = dict.fromkeys(by_reward or [], "best_with_worst")
    if strangers := sorted(rules.keys() - {name for name, _ in named}):
        sys.exit(f"refinery train semi-online: --by-reward {', '.join(strangers)}: no --run has that name")
    learns = learning.learning(policy, out)
    told = SemiOnlineRun(
        learning=learns,
        service=service,
        tasks=tuple(Task(name, weight, rules.get(name, "first_right_first_wrong")) for name, weight in named),
        steps=steps,
        batch=batch,
        micro_batches=micro_batches,
        sync_reference_every=sync_reference_every,
        entropy=entropy,
        evaluation=evaluation.evaluation(service, learning.seed),
        **preference.told,
        **asdict(supply),
    )
    _run("semi-online", train, told, as_json)


@train.command()
@spread
def g2d(
    run: Annotated[str, typer.Option(help="Run of the service that samples the warm-up.")],
    policy: Policy,
    out: Out,
    warm_up: Annotated[
        list[int], typer.Option(help="Steps of GRPO before the harvest; of several the warm-up advisor chooses.", min=0)
    ],
    name: Annotated[str, typer.Option(help="Of the harvest's run and of its dataset.")],
    learning: LearningTold,
    preference: PreferenceTold,
    offline: OfflineTold,
    harvest: HarvestTold,
    evaluation: EvaluationTold,
    groups: Annotated[int, typer.Option(help="Of a warm-up step.", min=1)] = 32,
    keep: Annotated[int, typer.Option(help="Rollouts of each group that the warm-up learns from.", min=2)] = 8,
    zero_variance: Annotated[
        bool, typer.Option("--zero-variance", help="Warm up on whatever was sampled, as plain GRPO does.")
    ] = False,
    warm_up_rate: Annotated[float, learned("Of the warm-up.")] = 1e-6,
    micro_batch: Annotated[int, learned("Rollouts at once on a device, in the warm-up.", min=1)] = 32,
    start: Annotated[Literal["original", "warm"], typer.Option(help="Policy that DPO starts from.")] = "original",
    service: Service = DEFAULT_SERVICE,
    as_json: AsJson = False,
) -> None:
    """GRPO for a while, then DPO on what the warm policy gives."""
    from trainers.dpo import DpoRun
    from trainers.g2d import G2dRun, Harvest, Start, train
    from trainers.grpo import GrpoRun

    learns = learning.learning(policy, out / "dpo")
    told = G2dRun(
        out=out,
        warm_up=GrpoRun(
            learning=learning.learning(policy, out / "warm-up", learning_rate=warm_up_rate, options={}),
            service=service,
            run=run,
            steps=max(warm_up),
            groups=groups,
            keep=keep,
            zero_variance=zero_variance,
            micro_batch=micro_batch,
        ),
        warm_ups=tuple(sorted(set(warm_up))),
        harvest=Harvest(name, **asdict(harvest), seed=learning.seed),
        dpo=DpoRun(
            datasets=(),
            learning=learns,
            service=service,
            evaluation=evaluation.evaluation(service, learning.seed),
            **preference.told,
            **offline.told,
        ),
        start=Start(start),
    )
    _run("g2d", train, told, as_json)


def _run(verb: str, train: Callable[[Any], dict[str, Any]], run: Any, as_json: bool) -> None:
    """Trains and tells what came of it, once for all processes. What trainer or service refuses ends it with a line."""
    from trainers.learning import Unfit, team

    try:
        with redirect_stdout(sys.stderr):  # what TRL tells while it learns
            result = train(run)
    except (Unfit, RefineryError) as refusal:
        sys.exit(f"refinery train {verb}: {refusal}")
    except KeyboardInterrupt:
        print(f"refinery train {verb}: stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
    if team().is_main_process:
        tell(result, as_json)
    team().destroy_process_group()


def demo(
    out: Annotated[Path | None, typer.Option(help="Folder for data, checkpoints and report.")] = None,
    seed: Annotated[int, typer.Option(help="Decides problems, samples and training.")] = 0,
    engine: Annotated[str | None, typer.Option(help="vllm or sglang instead of the embedded engine.")] = None,
    engine_python: Annotated[Path | None, typer.Option(help="Python of the engine's own environment.")] = None,
    keep_serving: Annotated[bool, typer.Option(help="Leave the service running at the end, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """The whole loop on this machine: prompts, GRESO, rollouts, verdicts, pairs, DPO, and a better policy."""
    from trainers.demo import run_demo
    from trainers.launch import NotStarted

    choice = ["--engine", engine] if engine else []
    choice += ["--engine-python", str(engine_python)] if engine_python else []
    try:
        run_demo(out, seed=seed, engine=choice, keep_serving=keep_serving, as_json=as_json)
    except NotStarted as failure:
        sys.exit(f"refinery demo: {failure}")
