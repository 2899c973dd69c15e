"""The verb ``replay``: other selectors on recorded history, of a run or in a file."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from curation.replay import Question, compare, document, then_of
from trainers.options import DEFAULT_SERVICE, AsJson, Service, service_at, written


def register(app: typer.Typer) -> None:
    app.command()(replay)


def replay(
    run: Annotated[str | None, typer.Argument(help="Name of the run; or give --file.")] = None,
    selector: Annotated[
        list[str] | None,
        typer.Option(
            help='Selector, by its kind or as JSON: greso, {"kind": "random", "share": 0.5}; may be repeated.'
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Replays of each.")] = 5,
    file: Annotated[
        Path | None, typer.Option(help="Instead of a run: JSON of {prompt: [mean reward of each visit, ...]}.")
    ] = None,
    group_size: Annotated[int, typer.Option(min=2, help="With --file: rollouts of a group.")] = 8,
    chart: Annotated[Path | None, typer.Option(help="Draws precision against recall into this PNG.")] = None,
    service: Service = DEFAULT_SERVICE,
    as_json: AsJson = False,
) -> None:
    """Shows what other selectors would have spent and kept, on a run or on a file of recorded history."""
    if (run is None) == (file is None):
        sys.exit("refinery: name a run, or give --file; one of the two")
    selectors = [_selector(text) for text in selector or ("all", "greso", "posterior")]
    question = {"selectors": selectors, "seeds": seeds}
    if file is None:
        with service_at(service) as refinery:
            result = refinery.post("/v1/replay", question | {"run": run})
    else:
        result = _replay_file(file, group_size, question)
    if chart is not None:
        from trainers.charts import draw_replay

        with written(chart):
            draw_replay(result, chart)
    if as_json:
        print(json.dumps(result))
        return
    table = Table("selector", "precision", "recall", "groups", "groups per informative")
    for one in result["selectors"]:
        told = json.dumps(one["selector"]) if len(one["selector"]) > 1 else one["selector"]["kind"]
        parts = ("precision", "recall", "sampled", "groups_per_informative")
        table.add_row(told, *(_interval(one[part]) for part in parts))
    Console().print(table)


def _selector(text: str) -> Any:
    try:
        return json.loads(text) if text.lstrip().startswith("{") else {"kind": text}
    except ValueError as error:
        sys.exit(f"refinery: --selector {text!r} is not JSON: {error}")


def _interval(estimate: dict[str, float] | None) -> str:
    return "-" if estimate is None else f"{estimate['mean']:.4g} ({estimate['low']:.4g} to {estimate['high']:.4g})"


def _replay_file(file: Path, group_size: int, question: dict[str, Any]) -> dict[str, Any]:
    try:
        asked = Question.model_validate(question)
    except ValidationError as error:
        first = error.errors()[0]
        sys.exit(f"refinery: --selector: {'.'.join(map(str, first['loc'][1:]))}: {first['msg']}")
    try:
        means = json.loads(file.read_text())
        if not isinstance(means, dict) or not means or not all(isinstance(visits, list) for visits in means.values()):
            raise ValueError("not an object of {prompt: [mean reward of each visit, ...]}, or an empty one")
        recorded = {prompt: [then_of(mean, group_size) for mean in visits] for prompt, visits in means.items()}
    except (OSError, ValueError) as error:
        sys.exit(f"refinery: {file}: {error}")
    told = [document(summary) for summary in compare(asked, recorded)]
    return {"file": str(file), "prompts": len(recorded), "selectors": told}
