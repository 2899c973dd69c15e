"""Verbs that learn: ``refinery train`` and ``refinery demo``. Their libraries are imported when a verb runs."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from trainers.client import DEFAULT_SERVICE
from trainers.options import AsJson, Service, service_at

if find_spec("trl") is None:
    raise ModuleNotFoundError("the trainers extra is not installed", name="trl")

train = typer.Typer(help="Train a policy.", no_args_is_help=True)


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
def dpo(
    dataset: Annotated[
        list[str], typer.Option(help="URL or path of the pairs, as Parquet or JSONL; again for each file of a split.")
    ],
    policy: Annotated[str, typer.Option(help="Checkpoint folder to start from.")],
    out: Annotated[Path, typer.Option(help="Folder for the new checkpoint.")],
    learning_rate: float = 1e-6,
    beta: float = 0.1,
    epochs: float = 1.0,
    batch: int = 16,
    max_length: Annotated[int, typer.Option(help="Tokens of prompt and completion; longer pairs are refused.")] = 1024,
    seed: int = 0,
    publish: Annotated[bool, typer.Option("--publish", help="Publish the result to the service.")] = False,
    publish_to: Annotated[str, typer.Option(help="Name of the policy to publish to.")] = "policy",
    service: Service = DEFAULT_SERVICE,
    as_json: AsJson = False,
) -> None:
    """Trains by DPO on a frozen dataset."""
    from trainers.dpo import DpoRun, Unfit, train

    run = DpoRun(tuple(dataset), policy, out, learning_rate, beta, epochs, batch, max_length, seed)
    try:
        result = train(run)
    except Unfit as refusal:
        sys.exit(f"refinery train dpo: {refusal}")
    if publish:
        with service_at(service) as refinery:
            body = {"checkpoint": str(out.resolve()), "step": result["steps"]}
            result |= refinery.wait(refinery.post(f"/v1/policies/{publish_to}/versions", body))["result"]
    print(json.dumps(result) if as_json else f"{result['pairs']} pairs, {result['steps']} steps: {out}")


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
