"""Verbs that talk to a running service: prompts, rollouts, dataset."""

import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trainers import imports, questions, replays, reports
from trainers.files import read_rows
from trainers.options import DEFAULT_SERVICE, AsJson, Service, progress_bar, service_at, tell

prompts = typer.Typer(help="Prompt sets.", no_args_is_help=True)
dataset = typer.Typer(help="Frozen preference datasets.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(prompts, name="prompts")
    app.add_typer(dataset, name="dataset")
    app.command()(rollouts)
    imports.register(app)
    app.command()(rescore)
    questions.register(app)
    replays.register(app)
    reports.register(app)


@prompts.command("add")
def add_prompts(
    file: Annotated[Path, typer.Argument(help="NDJSON of {prompt, reference, verifier?, metadata?}; may be gzipped.")],
    prompt_set: Annotated[str, typer.Option("--set", help="Name of the prompt set.")] = "default",
    service: Service = DEFAULT_SERVICE,
    as_json: AsJson = False,
) -> None:
    """Adds the prompts of a file to a set."""
    rows = [row for _, row in read_rows(file)]
    with service_at(service) as refinery:
        tell(refinery.add_prompts(rows, prompt_set), as_json)


@prompts.command("from-environment")
def prompts_from_environment(
    environment: Annotated[str, typer.Argument(help="Id of a single-turn environment of the verifiers library.")],
    verifier: Annotated[str, typer.Option(help="Name under which the service was told of it.")],
    prompt_set: Annotated[str, typer.Option("--set", help="Name of the prompt set.")] = "default",
    take: Annotated[int | None, typer.Option(min=1, help="How many; all by default.")] = None,
    arguments: Annotated[str, typer.Option(help="What it is loaded with, as JSON.")] = "{}",
    service: Service = DEFAULT_SERVICE,
    as_json: AsJson = False,
) -> None:
    """Adds the prompts of an environment to a set. Its package must be installed here."""
    from trainers.environments import prompts_of

    try:
        with redirect_stdout(sys.stderr):  # whatever the package prints while it loads
            rows = list(prompts_of(environment, verifier=verifier, take=take, arguments=json.loads(arguments)))
    except Exception as error:  # noqa: BLE001 - somebody's package
        sys.exit(f"refinery: environment {environment}: {type(error).__name__}: {error}")
    with service_at(service) as refinery:
        tell(refinery.add_prompts(rows, prompt_set), as_json)


def rollouts(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    groups: Annotated[int | None, typer.Option(help="Informative groups wanted.")] = None,
    passes: Annotated[int | None, typer.Option(help="Passes over the prompt set, instead; one by default.")] = None,
    max_prompts: Annotated[int | None, typer.Option(help="Prompts to sample at most.")] = None,
    service: Service = DEFAULT_SERVICE,
    as_json: AsJson = False,
) -> None:
    """Samples for a run until enough informative groups are stored."""
    if groups is None and passes is None:
        passes = 1
    body: dict[str, Any] = {"groups": groups, "passes": passes, "budget": {"prompts": max_prompts}}
    with service_at(service) as refinery, progress_bar(quiet=as_json) as bar:
        job = refinery.post(f"/v1/runs/{run}/rollouts", body)
        task = bar.add_task(f"{run}: informative groups", total=groups)

        def show(job: dict[str, Any]) -> None:
            bar.update(task, completed=job["progress"].get("funnel", {}).get("informative", 0))

        done = refinery.wait(job, show)
    tell(done["result"], as_json)


def rescore(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    verifier: Annotated[
        str | None, typer.Option(help="Verifier instead of the ones that the prompts name, math?literal=true say.")
    ] = None,
    where: Annotated[str, typer.Option(help='Which groups, as JSON: {"outcomes": ["timeout"]} say.')] = "{}",
    service: Service = DEFAULT_SERVICE,
    as_json: AsJson = False,
) -> None:
    """Judges the stored groups of a run anew and shows what changed; the old verdicts stay beside the new ones."""
    try:
        chosen = json.loads(where)
    except ValueError as error:
        sys.exit(f"refinery: --where is not JSON: {error}")
    with service_at(service) as refinery, progress_bar(quiet=as_json) as bar:
        task = bar.add_task(f"{run}: groups", total=None)

        def show(job: dict[str, Any]) -> None:
            groups = job["progress"].get("groups", {})
            bar.update(task, total=groups.get("all"), completed=groups.get("done", 0))

        job = refinery.wait(
            refinery.post(f"/v1/runs/{run}/rescore", {"verifier": verifier, "where": chosen}), on_progress=show
        )
    tell(job["result"], as_json)


@dataset.command("freeze")
def freeze(
    name: Annotated[str, typer.Argument(help="Name of the dataset.")],
    recipe: Annotated[str, typer.Option(help='Recipe as JSON, or @FILE; {"runs": ["my-run"]} is the shortest one.')],
    service: Service = DEFAULT_SERVICE,
    as_json: AsJson = False,
) -> None:
    """Freezes the pairs of a recipe as the next version of a dataset."""
    try:
        parsed = json.loads(Path(recipe[1:]).read_text() if recipe.startswith("@") else recipe)
    except OSError as error:
        sys.exit(f"refinery: --recipe {recipe}: {error}")
    except ValueError as error:
        sys.exit(f"refinery: --recipe is not JSON: {error}")
    with service_at(service) as refinery:
        frozen = refinery.post("/v1/datasets", {"name": name, "recipe": parsed})
    tell(_absolute(frozen, service), as_json)


@dataset.command("show")
def show(
    name: Annotated[str, typer.Argument(help="NAME or NAME@VERSION; latest is a version.")],
    service: Service = DEFAULT_SERVICE,
    as_json: AsJson = False,
) -> None:
    """Shows what became of the groups on the way into a dataset, and where its files are; --json has the manifest."""
    with service_at(service) as refinery:
        found = _absolute(refinery.get(f"/v1/datasets/{_versioned(name)}"), service)
    if as_json:
        print(json.dumps(found))
    else:
        Console().print(_funnel(found))
        for url in found["urls"].values():
            print(url)


@dataset.command("delete")
def delete(
    name: Annotated[str, typer.Argument(help="NAME@VERSION.")],
    reason: Annotated[str, typer.Option(help="Told to whoever asks for it afterwards.")] = "",
    service: Service = DEFAULT_SERVICE,
    as_json: AsJson = False,
) -> None:
    """Deletes the files of a dataset version; what it was made of stays on record."""
    with service_at(service) as refinery:
        gone = refinery.delete(f"/v1/datasets/{name}", reason=reason)
    tell({key: gone[key] for key in ("name", "version", "dataset_id", "deleted_at", "deletion_reason")}, as_json)


@dataset.command("push")
def push(
    name: Annotated[str, typer.Argument(help="NAME or NAME@VERSION.")],
    repo: Annotated[str, typer.Argument(help="Dataset repository on the Hugging Face Hub, owner/name.")],
    private: Annotated[bool, typer.Option(help="Where the repository is made.")] = True,
    licence: Annotated[str | None, typer.Option("--license", help="As the Hub names it: mit, cc-by-4.0.")] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Where prompts or policy come from, with the licence; may be repeated.")
    ] = None,
    service: Service = DEFAULT_SERVICE,
    as_json: AsJson = False,
) -> None:
    """Pushes a dataset to the Hugging Face Hub, with its card; the service needs an HF_TOKEN in its environment."""
    with service_at(service) as refinery:
        path = f"/v1/datasets/{_versioned(name)}/push"
        body = {"repo_id": repo, "private": private, "license": licence, "sources": source or []}
        job = refinery.wait(refinery.post(path, body))
    tell(job["result"], as_json)


@dataset.command("diff")
def diff(
    one: Annotated[str, typer.Argument(help="NAME@VERSION.")],
    other: Annotated[str, typer.Argument(help="NAME@VERSION.")],
    service: Service = DEFAULT_SERVICE,
    as_json: AsJson = False,
) -> None:
    """Shows what two datasets have in common, and where their recipes differ."""
    with service_at(service) as refinery:
        found = refinery.get(f"/v1/datasets/{one}/diff", other=other)
    if as_json:
        print(json.dumps(found))
        return
    table = Table("", "both", f"only {found['one']}", f"only {found['other']}")
    for what in ("rows", "prompts"):
        table.add_row(what, *(str(found[what][where]) for where in ("both", "only_one", "only_other")))
    console = Console()
    console.print(table)
    for field, (here, there) in found["recipe"].items():
        console.print(f"recipe, {field}: {json.dumps(here)} and {json.dumps(there)}", markup=False)


@dataset.command("explain")
def explain(
    name: Annotated[str, typer.Argument(help="NAME or NAME@VERSION.")],
    prompt: Annotated[str | None, typer.Option(help="Id of a prompt; or give --group.")] = None,
    group: Annotated[str | None, typer.Option(help="Id of a group.")] = None,
    service: Service = DEFAULT_SERVICE,
    as_json: AsJson = False,
) -> None:
    """Tells why a prompt is, or is not, in a dataset: every visit, every step of the recipe, down to the draw."""
    with service_at(service) as refinery:
        path = f"/v1/datasets/{_versioned(name)}/explain"
        told = refinery.get(path, prompt_id=prompt, group_id=group)
    if as_json:
        print(json.dumps(told))
        return
    console = Console(highlight=False)
    console.print(f"{told['prompt_id']} in {told['dataset']}: {told['prompt'][:200]}", markup=False)
    if told["told"]:
        console.print(f"not in it: {told['told']}", markup=False)
    for visit in told["visits"]:
        console.print(f"{visit['run']}, visit {visit['visit']}: {visit['action']}, {visit['reason']}", markup=False)
        for line in _story(visit):
            console.print(f"  {line}", markup=False)


def _versioned(name: str) -> str:
    return name if "@" in name else f"{name}@latest"


def _story(visit: dict[str, Any]) -> Iterator[str]:
    yield from visit.get("steps", ())
    for row in visit.get("rows", ()):
        places = [f"{key} {row[key]}" for key in sorted(row) if key in ("indices", "index") or key.endswith("_index")]
        yield f"in {row['split']}: {', '.join(places) or 'its prompt'}"
    for one in visit.get("left_out", ()):
        yield f"left out: {one['reason'].replace('_', ' ')} ({one['detail']})"


def _funnel(found: dict[str, Any]) -> Table:
    manifest = found["manifest"]
    table = Table(f"{found['name']}@{found['version']}: {manifest['recipe']['shape']}", "", title_justify="left")
    table.add_row("groups", str(manifest["groups"]))
    for reason, count in manifest["dropped"].items():
        table.add_row(f"  gave no row: {reason.replace('_', ' ')}", f"-{count}")
    table.add_row("rows made", str(manifest["rows"] + sum(manifest["cut"].values())))
    for reason, count in manifest["cut"].items():
        table.add_row(f"  left out: {reason.replace('_', ' ')}", f"-{count}")
    table.add_row("rows", str(manifest["rows"]))
    if tokens := manifest.get("spent", {}).get("tokens"):
        table.add_row("  tokens sampled for each, waste included", f"{tokens / manifest['rows']:.1f}")
    for file, said in manifest["files"].items():
        table.add_row(f"  {file}", f"{said['rows']} rows, {said['bytes']} bytes")
    return table


def _absolute(frozen: dict[str, Any], service: str) -> dict[str, Any]:
    return frozen | {"urls": {file: service.rstrip("/") + url for file, url in frozen["urls"].items()}}
