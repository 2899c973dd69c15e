"""What the verbs that learn can be told on the command line, and what of it makes a run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # these pull in torch
    from trainers.evaluation import Evaluation
    from trainers.learning import Learning

LEARNING, EVALUATION = "Learning", "Evaluation"
Out = Annotated[Path, typer.Option(help="Folder for checkpoints and manifest; it belongs to one run.")]
Policy = Annotated[str, typer.Option(help="Checkpoint folder or Hub id to start from.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate.", rich_help_panel=LEARNING)]
Seed = Annotated[int, typer.Option(help="Decides order, dropout and every draw.", rich_help_panel=LEARNING)]
LoraRank = Annotated[int, typer.Option(help="Of LoRA adapters; 0 trains all weights.", rich_help_panel=LEARNING)]
LoraAlpha = Annotated[float | None, typer.Option(help="Twice the rank by default.", rich_help_panel=LEARNING)]
LoraDropout = Annotated[float, typer.Option(rich_help_panel=LEARNING)]
SaveEvery = Annotated[int, typer.Option(help="Steps between checkpoints.", min=1, rich_help_panel=LEARNING)]
ReportTo = Annotated[
    list[str], typer.Option(help="trackio, wandb, tensorboard, ... as TRL knows them.", rich_help_panel=LEARNING)
]
Trl = Annotated[
    list[str], typer.Option(help="NAME=VALUE: any other option of TRL's configuration.", rich_help_panel=LEARNING)
]
Losses = Annotated[list[str], typer.Option("--loss", help="TRL's name of a DPO loss.", rich_help_panel=LEARNING)]
Nll = Annotated[float, typer.Option(help="Weight of the chosen side's NLL, per token.", rich_help_panel=LEARNING)]
MaxLength = Annotated[int, typer.Option(help="Tokens of prompt and completion; longer pairs are refused.")]
EvaluateOn = Annotated[str | None, typer.Option(help="Prompt set to measure on.", rich_help_panel=EVALUATION)]
EvaluateEvery = Annotated[int, typer.Option(help="Steps; 0 only at the end.", rich_help_panel=EVALUATION)]
EvaluateN = Annotated[int, typer.Option(help="Answers a prompt; one is greedy.", min=1, rich_help_panel=EVALUATION)]
EvaluateTokens = Annotated[int, typer.Option(help="Of an answer at most.", rich_help_panel=EVALUATION)]
EvaluateAs = Annotated[
    str | None,
    typer.Option(
        help="Policy of the service that answers; by default a new one, which a fleet has no room for.",
        rich_help_panel=EVALUATION,
    ),
]
SyncEvery = Annotated[int, typer.Option(help="Steps between two publications of the weights; 0 never again.", min=0)]
MaxStaleness = Annotated[int, typer.Option(help="Versions that a group may be behind the policy.", min=0)]
Ahead = Annotated[int, typer.Option(help="Groups that the service samples ahead of the step.", min=0)]


def learning_of(
    policy: str,
    out: Path,
    rate: float,
    seed: int,
    adapters: tuple[int, float | None, float],
    save_every: int,
    report_to: list[str],
    trl: list[str],
) -> "Learning":
    from trainers.learning import Learning, Lora

    rank, alpha, dropout = adapters
    lora = Lora(rank, 2.0 * rank if alpha is None else alpha, dropout) if rank else None
    options = dict(_option(told) for told in trl)
    if Path(policy).exists():
        policy = str(Path(policy).absolute())  # the service may be told of it, and stands elsewhere
    return Learning(policy, out, rate, seed, lora, save_every, tuple(report_to), options)


def _option(told: str) -> tuple[str, Any]:
    name, _, value = told.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def evaluation_of(
    service: str, learning: "Learning", on: str | None, every: int, n: int, tokens: int, policy: str | None
) -> "Evaluation | None":
    from trainers.evaluation import Evaluation
    from trainers.leasing import consumer_of

    if on is None:
        return None
    name = consumer_of(learning)
    return Evaluation(service, policy or name, on, name, every, n, tokens, learning.seed)
