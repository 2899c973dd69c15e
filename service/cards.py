"""A dataset in words: its card for the Hugging Face Hub, and its Croissant description for machines."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from curation.choice import Choice, Several
from curation.recipe import Shape
from service.store.datasets import DatasetVersion

WHAT = {
    Shape.PAIRS: "Preference pairs: a chosen and a rejected completion of a prompt, told apart by a verifier.",
    Shape.LABELLED: "Completions that a verifier found right or wrong.",
    Shape.RIGHT: "Completions that a verifier found right.",
    Shape.PROMPTS: "Prompts with the pass rate of a policy.",
    Shape.GROUPS: "Groups of completions of a prompt with their rewards and advantages.",
}
TASK = {Shape.PROMPTS: "question-answering"}
TRAINER = {
    Shape.PAIRS: "TRL's `DPOTrainer`",
    Shape.LABELLED: "TRL's `KTOTrainer`",
    Shape.RIGHT: "TRL's `SFTTrainer`",
    Shape.GROUPS: "a trainer of the GRPO family",
}
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
SIZE_NAMES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "n>100M")
PARQUET = "application/x-parquet"
CROISSANT_TYPES = {pa.bool_(): "sc:Boolean", pa.int32(): "cr:Int32", pa.float64(): "cr:Float64"}


class Licence(Choice):
    """What only the people behind a dataset know of it."""

    license: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9.-]{0,59}$")
    """As the Hub names licences: ``mit``, ``cc-by-4.0``."""
    sources: Several[Annotated[str, Field(min_length=1, max_length=500)]] = Field((), max_length=50)
    """Where prompts and policy come from, each with its licence: ``GSM8K (MIT)``."""


UNKNOWN = Licence()


def card(dataset: DatasetVersion, licence: Licence = UNKNOWN) -> str:
    """Markdown with the YAML head that the Hub reads. The splits are files beside it."""
    parts = [_head(dataset, licence), [f"# {dataset.name}", ""], _story(dataset), [""], _facts(dataset.manifest)]
    if licence.sources:
        parts.append(["", "## Sources and their licences", "", *(f"- {_in_a_line(one)}" for one in licence.sources)])
    return "\n".join(line for part in parts for line in part) + "\n"


def _in_a_line(text: str) -> str:
    return " ".join(text.split())


def _head(dataset: DatasetVersion, licence: Licence) -> list[str]:
    size = SIZE_NAMES[sum(dataset.manifest["rows"] >= limit for limit in SIZES)]
    task = TASK.get(dataset.recipe.shape, "text-generation")
    splits = [
        line
        for split in dataset.splits
        for line in (f"  - split: {split}", f"    path: {json.dumps(dataset.shards(split))}")
    ]
    return [
        "---",
        f"pretty_name: {json.dumps(dataset.name)}",
        *([f"license: {licence.license}"] if licence.license else []),
        f"task_categories: [{task}]",
        f"size_categories: [{size}]",
        "tags: [rlvr, rollouts, rollout-refinery]",
        "configs:",
        "- config_name: default",
        "  data_files:",
        *splits,
        "---",
        "",
    ]


def _story(dataset: DatasetVersion) -> list[str]:
    shape, manifest = dataset.recipe.shape, dataset.manifest
    first = dataset.splits[0]
    judges = ", ".join(f"`{verifier}`" for verifier in manifest["verifiers"])
    reader = f" {TRAINER[shape]} takes it as it is." if shape in TRAINER else ""
    return [
        f"{WHAT[shape]}{reader}",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'load_dataset("parquet", data_files={{"{first}": {json.dumps(dataset.shards(first))}}})',
        "```",
        "",
        "## How it was made",
        "",
        f"Version {dataset.version}, from groups of rollouts that were sampled from a policy, judged by {judges}, and "
        f"curated by Rollout Refinery with this recipe (hash `{manifest['recipe_hash']}`, rules {manifest['rules']}, "
        f"store at {manifest['watermark']}). The same recipe over the same groups gives the same bytes.",
        "",
        "```json",
        json.dumps(manifest["recipe"], indent=2, ensure_ascii=False),
        "```",
    ]


def _facts(manifest: dict[str, Any]) -> list[str]:
    dropped = [f"| no row: {reason.replace('_', ' ')} | {count} |" for reason, count in manifest["dropped"].items()]
    cut = [f"| row left out: {reason.replace('_', ' ')} | {count} |" for reason, count in manifest["cut"].items()]
    told = manifest["informativeness"]
    return [
        "## What became of the groups",
        "",
        "| | |",
        "|---|---|",
        f"| groups | {manifest['groups']} |",
        *dropped,
        *cut,
        f"| rows | {manifest['rows']} |",
        "",
        f"Of the groups {told['informative']} were informative, {told['easy']} all right, {told['hard']} all wrong and "
        f"{told['unscored']} without a reward; their mean reward was {told['mean_reward']:.3f}, the mean entropy of "
        f"their outcomes {told['outcome_entropy']:.3f} nats.",
    ]


def croissant(dataset: DatasetVersion, url: str, columns: pa.Schema, licence: Licence = UNKNOWN) -> dict[str, Any]:
    """JSON-LD (MLCommons Croissant 1.0); `url` is that of the version, `columns` those of its files."""
    splits = dataset.splits
    known = {"license": licence.license} if licence.license else {}
    return known | {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": dataset.name,
        "version": f"{dataset.version}.0.0",
        "description": WHAT[dataset.recipe.shape],
        "url": url,
        "datePublished": dataset.frozen_at.date().isoformat(),
        "distribution": [_file(dataset, name, url) for split in splits for name in dataset.shards(split)],
        "recordSet": [records for split in splits for records in _records(dataset, split, columns)],
    }


def _file(dataset: DatasetVersion, name: str, url: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": f"{url}/{name}",
        "encodingFormat": PARQUET,
        "sha256": dataset.manifest["files"][name]["sha256"],
    }


def _records(dataset: DatasetVersion, split: str, columns: pa.Schema) -> Iterator[dict[str, Any]]:
    """One for each file: Croissant's own reader finds no row in a set of Parquet files."""
    for name in dataset.shards(split):
        records = name.removesuffix(".parquet")
        fields = [
            _field(column, records, {"fileObject": {"@id": name}, "extract": {"column": column.name}})
            for column in columns
        ]
        yield {"@type": "cr:RecordSet", "@id": records, "name": records, "field": fields}


def _field(column: pa.Field, above: str, source: dict[str, Any]) -> dict[str, Any]:
    inner, depth = column.type, 0
    while pa.types.is_list(inner):
        inner, depth = inner.value_type, depth + 1
    lists = {"cr:isArray": True, "cr:arrayShape": ",".join(["-1"] * depth)} if depth else {}
    name = f"{above}/{column.name}"
    told = lists | {"@type": "cr:Field", "@id": name, "name": column.name}
    if pa.types.is_struct(inner):
        parts = [_field(part, name, source | {"transform": {"jsonPath": part.name}}) for part in inner]
        return told | {"subField": parts}
    kind = CROISSANT_TYPES.get(inner, "cr:Float32" if pa.types.is_floating(inner) else "sc:Text")
    return told | {"dataType": kind, "source": source}


WORDS = (
    "citeAs column equivalentProperty extract field fileObject fileProperty fileSet format includes isLiveDataset "
    "jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate separator source "
    "subField transform"
)
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{word: f"cr:{word}" for word in WORDS.split()},
}
"""What Croissant's own readers expect, word for word."""
