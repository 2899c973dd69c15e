"""The verb ``import``: rollouts that somebody else recorded.

A file is read twice: what is wrong with its rows is known before the first of them is sent.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from pydantic import ValidationError

from curation.choice import reason_of
from curation.foreign import FieldMapping, Format, MappingChange, group_of, joined, mapping_of
from curation.recorded import GroupIn
from trainers.files import NoRow, rows_of
from trainers.options import DEFAULT_SERVICE, AsJson, Service, progress_bar, service_at, tell, written

GROUPS_PER_REQUEST = 100
MOST_TOLD = 10

Noted = Callable[["Bad"], None]


class Bad(NamedTuple):
    """A row that is not imported."""

    file: Path
    line: int
    reason: str
    row: Any

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


class Numbered(NamedTuple):
    file: Path
    line: int
    group: GroupIn


def register(app: typer.Typer) -> None:
    app.command("import")(import_files)


def import_files(
    files: Annotated[list[Path], typer.Argument(help="NDJSON (.gz and .zst, too) or Parquet.")],
    run: Annotated[str, typer.Option(help="Run to store the groups in; made if it does not exist.")],
    format: Annotated[Format, typer.Option(help="Who wrote the files.")] = Format.NATIVE,
    prompt: Annotated[str | None, typer.Option(help="Field of the prompt: maps the fields one by one.")] = None,
    reference: Annotated[str | None, typer.Option(help="Field of the reference answer.")] = None,
    reference_pattern: Annotated[
        str | None, typer.Option(help="Regular expression whose group is the reference; the last match counts.")
    ] = None,
    rollouts: Annotated[
        str, typer.Option(help="Field of the rollouts, * for every object with the text, '' where a row is a rollout.")
    ] = "rollouts",
    text: Annotated[str | None, typer.Option(help="Field of the text in a rollout; none if they are strings.")] = None,
    label: Annotated[str | None, typer.Option(help="Field of the recorder's own label.")] = None,
    label_range: Annotated[tuple[float, float], typer.Option(help="What the labels are between.")] = (0.0, 1.0),
    step: Annotated[str | None, typer.Option(help="Field of the training step; it becomes the policy version.")] = None,
    verifier: Annotated[
        str | None, typer.Option(help="Verifier that judges the rollouts; `recorded` takes the labels.")
    ] = None,
    aside: Annotated[
        Path | None, typer.Option(help="Write bad rows to this file, with the reasons, and import the others.")
    ] = None,
    service: Service = DEFAULT_SERVICE,
    as_json: AsJson = False,
) -> None:
    """Imports recorded rollouts: maps their fields, verifies every rollout anew, stores the groups.

    Everything is read and checked before anything is sent; importing it again adds nothing, and goes on where an
    import broke off.
    """
    low, high = label_range
    try:
        if prompt is None:
            change = MappingChange(verifier=verifier, reference=reference, label=label, lowest=low, highest=high)
            mapping = mapping_of(format, change)
        else:
            mapping = FieldMapping(
                prompt=prompt,
                reference=reference or "reference",
                reference_pattern=reference_pattern,
                rollouts=rollouts or None,
                text=text,
                label=label,
                label_range=label_range,
                step=step,
                verifier=verifier or "math",
            )
    except ValidationError as error:
        sys.exit(f"refinery: {reason_of(error)}")
    bad: list[Bad] = []
    groups = sum(1 for _ in _every(files, mapping, bad.append))
    if bad and aside is None:
        more = f"\n... and {len(bad) - MOST_TOLD} more" if len(bad) > MOST_TOLD else ""
        listed = "\n".join(f"refinery: {one}; nothing was sent" for one in bad[:MOST_TOLD])
        sys.exit(f"{listed}{more}\n--aside FILE keeps bad rows aside and imports the others")
    with ExitStack() as closing:
        note: Noted = _ignore
        if aside is not None:
            with written(aside):
                note = _noting(closing.enter_context(aside.open("w")))
        for one in bad:
            note(one)
        every = _every(files, mapping, _ignore)
        result = _send(every, groups, run, service, note, keep_good=aside is not None, quiet=as_json)
    tell(result | {"rows_rejected": result["rows_rejected"] + len(bad)}, as_json)


def _every(files: Iterable[Path], mapping: FieldMapping | None, note: Noted) -> Iterator[Numbered]:
    for file in files:
        try:
            for line, group in joined(_groups(file, mapping, note), mapping):
                yield Numbered(file, line, group)
        except OSError as error:
            sys.exit(f"refinery: {file}: {error}")


def _groups(file: Path, mapping: FieldMapping | None, note: Noted) -> Iterator[tuple[int, GroupIn]]:
    for line, row in rows_of(file):
        try:
            if isinstance(row, NoRow):
                raise row
            yield line, group_of(row, mapping)
        except ValueError as error:
            note(Bad(file, line, reason_of(error), row.text if isinstance(row, NoRow) else row))


def _send(
    groups: Iterator[Numbered], total: int, run: str, service: str, note: Noted, *, keep_good: bool, quiet: bool
) -> dict[str, Any]:
    sums: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    with service_at(service) as refinery, progress_bar(quiet=quiet) as bar:
        task = bar.add_task(f"{run}: groups", total=total)
        while part := list(islice(groups, GROUPS_PER_REQUEST)):
            rows = [one.group.model_dump(mode="json") for one in part]
            imported = refinery.import_groups(rows, run, keep_good=keep_good)
            for one in imported.pop("rejected"):
                place = part[one["row"]]
                note(Bad(place.file, place.line, one["reason"], rows[one["row"]]))
            kinds.update(imported.pop("kinds"))
            outcomes.update(imported.pop("outcomes"))
            sums.update(imported)
            bar.update(task, advance=len(part))
    share = sums["agreeing"] / sums["labelled"] if sums["labelled"] else None
    zero_variance = (kinds["easy"] + kinds["hard"]) / sums["groups"] if sums["groups"] else None
    counts = {"kinds": dict(kinds), "outcomes": dict(outcomes)}
    return dict(sums) | counts | {"agreement": share, "zero_variance_share": zero_variance}


def _noting(file: Any) -> Noted:
    def note(bad: Bad) -> None:
        row = {"file": str(bad.file), "line": bad.line, "reason": bad.reason, "row": bad.row}
        file.write(json.dumps(row, default=str) + "\n")

    return note


def _ignore(bad: Bad) -> None:
    """It is told already."""
