"""What the verbs that learn can be told on the command line, and what of it makes a run.

What several verbs can be told is a dataclass with an option for each field; `spread` makes a command of a function that
takes such dataclasses.
"""

import inspect
import json
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:  # these pull in torch
    from trainers.evaluation import Evaluation
    from trainers.learning import Learning

LEARNING, EVALUATION, SUPPLY, PREFERENCE = "Learning", "Evaluation", "Groups", "Preferences"
Policy = Annotated[str, typer.Option(help="Checkpoint folder or Hub id to start from.")]
Out = Annotated[Path, typer.Option(help="Folder for checkpoints and manifest; it belongs to one run.")]


def learned(help: str, **more: Any) -> Any:
    return typer.Option(help=help, rich_help_panel=LEARNING, **more)


def measured(help: str, **more: Any) -> Any:
    return typer.Option(help=help, rich_help_panel=EVALUATION, **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningTold:
    learning_rate: Annotated[float, learned("Peak learning rate.")] = 1e-6
    seed: Annotated[int, learned("Decides order, dropout and every draw.")] = 0
    lora: Annotated[int, learned("Rank of LoRA adapters; 0 trains all weights.", min=0)] = 0
    lora_alpha: Annotated[float | None, learned("Twice the rank by default.")] = None
    lora_dropout: Annotated[float, learned("Of the adapters.", min=0, max=1)] = 0.0
    save_every: Annotated[int, learned("Steps between checkpoints.", min=1)] = 20
    report_to: Annotated[list[str], learned("trackio, wandb, tensorboard, ... as TRL knows them.")] = field(
        default_factory=list
    )
    trl: Annotated[list[str], learned("NAME=VALUE: any other option of TRL's configuration.")] = field(
        default_factory=list
    )

    load: Annotated[list[str], learned("NAME=VALUE: any option of from_pretrained, dtype=bfloat16 say.")] = field(
        default_factory=list
    )

    def learning(self, policy: str, out: Path, **other: Any) -> "Learning":
        """Of a run in this folder; `other` is told otherwise."""
        from trainers.learning import Learning, Lora

        if Path(policy).exists():
            policy = str(Path(policy).absolute())  # the service may be told of it, and stands elsewhere
        alpha = 2.0 * self.lora if self.lora_alpha is None else self.lora_alpha
        told: dict[str, Any] = {
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            "lora": Lora(self.lora, alpha, self.lora_dropout) if self.lora else None,
            "save_every": self.save_every,
            "report_to": tuple(self.report_to),
            "options": dict(map(_option, self.trl)),
            "loading": dict(map(_option, self.load)),
        }
        return Learning(policy, out, **(told | other))


def _option(told: str) -> tuple[str, Any]:
    name, _, value = told.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationTold:
    evaluate_on: Annotated[str | None, measured("Prompt set to measure on.")] = None
    evaluate_every: Annotated[int, measured("Steps; 0 only at the end.", min=0)] = 0
    evaluate_n: Annotated[int, measured("Answers a prompt; one is greedy.", min=1)] = 1
    evaluate_tokens: Annotated[int, measured("Of an answer at most.", min=1)] = 512
    evaluate_as: Annotated[
        str | None, measured("Policy of the service that answers; by default a new one, which a fleet has no room for.")
    ] = None

    def evaluation(self, service: str, seed: int) -> "Evaluation | None":
        from trainers.evaluation import Evaluation

        if self.evaluate_on is None:
            return None
        return Evaluation(
            service=service,
            prompt_set=self.evaluate_on,
            policy=self.evaluate_as,
            every=self.evaluate_every,
            n=self.evaluate_n,
            max_tokens=self.evaluate_tokens,
            seed=seed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SupplyTold:
    sync_every: Annotated[
        int,
        typer.Option(
            help="Steps between two publications of the weights; 0 never again.", min=0, rich_help_panel=SUPPLY
        ),
    ] = 1
    max_staleness: Annotated[
        int, typer.Option(help="Versions that a group may be behind the policy.", min=0, rich_help_panel=SUPPLY)
    ] = 0
    ahead: Annotated[
        int, typer.Option(help="Groups that the service samples ahead of the step.", min=0, rich_help_panel=SUPPLY)
    ] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceTold:
    beta: Annotated[float, typer.Option(help="Of DPO.", min=0, rich_help_panel=PREFERENCE)] = 0.1
    loss: Annotated[list[str], typer.Option(help="TRL's name of a DPO loss.", rich_help_panel=PREFERENCE)] = field(
        default_factory=lambda: ["sigmoid"]
    )
    nll: Annotated[
        float, typer.Option(help="Weight of the chosen side's NLL, per token.", min=0, rich_help_panel=PREFERENCE)
    ] = 0.0

    @property
    def told(self) -> dict[str, Any]:
        """As runs take it."""
        return {"beta": self.beta, "losses": tuple(self.loss), "nll": self.nll}


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineTold:
    """Of DPO on a frozen dataset."""

    batch: Annotated[int, learned("Pairs of a DPO step, on each device.", min=1)] = 16
    epochs: Annotated[float, learned("Passes of DPO over the pairs.")] = 1.0
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Tokens of prompt and completion; longer pairs are refused. The policy's context by default.", min=1
        ),
    ] = None
    publish: Annotated[bool, typer.Option("--publish", help="Publish the result to the service.")] = False
    publish_to: Annotated[str, typer.Option(help="Name of the policy to publish to.")] = "policy"

    @property
    def told(self) -> dict[str, Any]:
        """As runs take it."""
        publish_to = self.publish_to if self.publish else None
        told = {"batch": self.batch, "epochs": self.epochs, "max_length": self.max_length}
        return told | {"publish_to": publish_to}


@dataclass(frozen=True, slots=True, kw_only=True)
class HarvestTold:
    n: Annotated[int, typer.Option(help="Rollouts of each prompt in the harvest.", min=2)] = 8
    temperature: Annotated[float, typer.Option(help="Of the harvest.")] = 1.3
    max_tokens: Annotated[int, typer.Option(help="Of an answer in the harvest.")] = 512
    passes: Annotated[int, typer.Option(help="Of the harvest over the prompts.", min=1)] = 1
    pairs: Annotated[str, typer.Option(help="Pair rule of the recipe.")] = "one_random_pair"


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of the dataclasses that it takes."""
    hints = get_type_hints(command, include_extras=True)
    kinds: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    own = [p.replace(annotation=hints[p.name]) for p in inspect.signature(command).parameters.values()]
    parameters = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in own if p.name not in kinds]
    for kind in kinds.values():
        annotations = get_type_hints(kind, include_extras=True)
        for one in fields(kind):
            default = one.default if one.default_factory is MISSING else one.default_factory()
            parameters.append(
                Parameter(one.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotations[one.name])
            )

    def run(**told: Any) -> None:
        for name, kind in kinds.items():
            told[name] = kind(**{one.name: told.pop(one.name) for one in fields(kind)})
        command(**told)

    run.__doc__, run.__name__ = command.__doc__, command.__name__
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
