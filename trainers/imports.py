"""The verb ``import``: rollouts that somebody else recorded.

A file is read twice: what is wrong with its rows is known before the first of them is sent.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TextIO

import typer

from curation.choice import reason_of
from curation.foreign import FieldMapping, Format, MappingChange, group_of, joined, mapping_of
from curation.recorded import Numbered
from trainers.files import NoRow, rows_of
from trainers.options import DEFAULT_SERVICE, AsJson, Service, progress_bar, service_at, tell, written

GROUPS_PER_REQUEST, BYTES_PER_REQUEST = 100, 1 << 23
BYTES_PER_TOKEN = 32
"""Its id and its logprob in JSON."""
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
    mapping = _mapping(
        format,
        prompt=prompt,
        reference=reference,
        reference_pattern=reference_pattern,
        rollouts=rollouts,
        text=text,
        label=label,
        label_range=label_range,
        step=step,
        verifier=verifier,
    )
    if pipes := [str(file) for file in files if file.exists() and not file.is_file()]:
        sys.exit(f"refinery: {', '.join(pipes)}: a file is read twice, and this is none")
    if aside is not None and aside.exists():
        sys.exit(f"refinery: {aside}: it is there already, and would be overwritten")
    bad = BadRows(aside)
    groups = sum(1 for _ in _every(files, mapping, bad.add))
    if bad.count and aside is None:
        more = f"\n... and {bad.count - len(bad.first)} more" if bad.count > len(bad.first) else ""
        listed = "\n".join(f"refinery: {one}; nothing was sent" for one in bad.first)
        sys.exit(f"{listed}{more}\n--aside FILE keeps bad rows aside and imports the others")
    sums = _send(_every(files, mapping, _told_already), groups, run, service, bad, quiet=as_json)
    bad.close()
    tell(sums | {"rows_rejected": bad.count}, as_json)


def _mapping(
    format: Format, *, rollouts: str, label_range: tuple[float, float], **said: str | None
) -> FieldMapping | None:
    """Of a foreign format, or of the fields that were named one by one; None for the native form."""
    given = {name: value for name, value in said.items() if value is not None}
    low, high = label_range
    try:
        if "prompt" in given:
            if format is not Format.NATIVE:
                sys.exit(f"refinery: --format {format} knows its fields; --prompt names those of another file")
            return FieldMapping.model_validate(given | {"rollouts": rollouts or None, "label_range": label_range})
        if idle := [name for name in ("reference_pattern", "text", "step") if name in given]:
            sys.exit(f"refinery: --{idle[0].replace('_', '-')} goes with --prompt, which names the fields one by one")
        return mapping_of(format, MappingChange.model_validate(given | {"lowest": low, "highest": high}))
    except ValueError as error:
        sys.exit(f"refinery: {reason_of(error)}")


class BadRows:
    """Counted, and kept in a file if one is named; it is made when there is something to keep."""

    def __init__(self, file: Path | None) -> None:
        self.count = 0
        self.first: list[Bad] = []
        self._path = file
        self._file: TextIO | None = None

    @property
    def are_kept(self) -> bool:
        return self._path is not None

    def add(self, bad: Bad) -> None:
        self.count += 1
        if len(self.first) < MOST_TOLD:
            self.first.append(bad)
        if self._path is not None:
            row = {"file": str(bad.file), "line": bad.line, "reason": bad.reason, "row": bad.row}
            with written(self._path):
                self._file = self._file or self._path.open("x")
                self._file.write(json.dumps(row, default=str) + "\n")
                self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.close()


def _every(files: Iterable[Path], mapping: FieldMapping | None, note: Noted) -> Iterator[tuple[Path, Numbered]]:
    for file in files:
        try:
            for one in joined(_groups(file, mapping, note), mapping):
                yield file, one
        except OSError as error:
            sys.exit(f"refinery: {file}: {error}")


def _groups(file: Path, mapping: FieldMapping | None, note: Noted) -> Iterator[Numbered]:
    for line, row in rows_of(file):
        try:
            if isinstance(row, NoRow):
                raise row
            yield Numbered((line,), group_of(row, mapping))
        except ValueError as error:
            note(Bad(file, line, reason_of(error), row.text if isinstance(row, NoRow) else row))


def _send(
    groups: Iterator[tuple[Path, Numbered]], total: int, run: str, service: str, bad: BadRows, *, quiet: bool
) -> dict[str, Any]:
    sums = Counter(dict.fromkeys(("groups", "existing", "prompts", "rollouts", "labelled", "agreeing"), 0))
    kinds: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    with service_at(service) as refinery, progress_bar(quiet=quiet) as bar:
        task = bar.add_task(f"{run}: groups", total=total)
        for part in _parts(groups):
            rows = [one.group.model_dump(mode="json") for _, one in part]
            imported = refinery.import_groups(rows, run, keep_good=bad.are_kept)
            for rejected in imported.pop("rejected"):
                file, one = part[rejected["row"]]
                for line in one.rows:  # it stands there in native form, since that is what was refused
                    bad.add(Bad(file, line, rejected["reason"], rows[rejected["row"]]))
            del imported["rows_rejected"]
            kinds.update(imported.pop("kinds"))
            outcomes.update(imported.pop("outcomes"))
            sums.update(imported)
            bar.update(task, advance=len(part))
    share = sums["agreeing"] / sums["labelled"] if sums["labelled"] else None
    zero_variance = (kinds["easy"] + kinds["hard"]) / sums["groups"] if sums["groups"] else None
    counts = {"kinds": dict(kinds), "outcomes": dict(outcomes)}
    return dict(sums) | counts | {"agreement": share, "zero_variance_share": zero_variance}


def _parts(groups: Iterable[tuple[Path, Numbered]]) -> Iterator[list[tuple[Path, Numbered]]]:
    """What goes into one request."""
    part: list[tuple[Path, Numbered]] = []
    size = 0
    for file, one in groups:
        part.append((file, one))
        size += sum(len(r.text) + BYTES_PER_TOKEN * len(r.token_ids) for r in one.group.rollouts)
        if len(part) == GROUPS_PER_REQUEST or size > BYTES_PER_REQUEST:
            yield part
            part, size = [], 0
    if part:
        yield part


def _told_already(bad: Bad) -> None:
    """When the file was read for the first time."""
