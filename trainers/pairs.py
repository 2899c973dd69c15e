"""The pairs that DPO learns from: fetched once, known by their sha256, mixed by weight, and never cut in silence."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import fsspec
from datasets import Dataset, concatenate_datasets, interleave_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError
from trl.data_utils import apply_chat_template, is_conversational

from trainers.cache import cache, sha256_of, unfinished
from trainers.client import Refinery, authorization
from trainers.learning import NOTHING, Policy, Unfit

BLOCK = 2**20
COLUMNS = ("prompt", "chosen", "rejected")


class Source(NamedTuple):
    """Where pairs come from."""

    name: str
    """NAME@VERSION of the service, or a URL or path of a Parquet or JSONL file."""
    weight: float | None = None
    """Its share of a mix; without any weights all rows of all sources are taken."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that is here."""

    url: str
    path: Path
    sha256: str


def fetch(source: Source, service: str) -> list[Fetched]:
    """The files of a source, each known by its sha256. Raises Unfit for one that is not what it should be."""
    if "@" not in source.name or "/" in source.name or Path(source.name).exists():
        is_ours = source.name.startswith(f"{service.rstrip('/')}/")
        return [_fetched(source.name, headers=authorization() if is_ours else {})]
    with Refinery(service) as refinery:
        found = refinery.get(f"/v1/datasets/{source.name}")
    files = found["manifest"]["files"]
    train = sorted(name for name in files if name.startswith("train") and name.endswith(".parquet"))
    if not train:
        raise Unfit(f"dataset {source.name} has no train split")
    return [_fetched(refinery.url + found["urls"][name], files[name]["sha256"], refinery.headers) for name in train]


def _fetched(url: str, sha256: str | None = None, headers: Mapping[str, str] = NOTHING) -> Fetched:
    """Downloaded, unless it is a file of this machine or is here already. `sha256` is what it has to be."""
    if not urlsplit(url).scheme:
        if not Path(url).is_file():
            raise Unfit(f"there is no file {url}")
        return Fetched(url, Path(url), sha256_of(Path(url)))
    folder, suffix = cache("pairs"), Path(urlsplit(url).path).suffix
    if sha256 is None or not (folder / f"{sha256}{suffix}").exists():
        options = {"client_kwargs": {"headers": dict(headers)}} if headers else {}
        with unfinished(folder) as file:
            try:
                with fsspec.open(url, "rb", **options) as remote, file.open("wb") as local:
                    shutil.copyfileobj(remote, local, BLOCK)
            except Exception as error:  # noqa: BLE001 - each protocol has errors of its own
                raise Unfit(f"{url} cannot be fetched: {type(error).__name__}: {error}") from None
            found = sha256_of(file)
            if sha256 not in {None, found}:
                raise Unfit(f"{url} came damaged: its sha256 is {found} and should be {sha256}; try again")
            sha256 = found
            file.rename(folder / f"{sha256}{suffix}")
    return Fetched(url, folder / f"{sha256}{suffix}", sha256)


def mixed(sources: Sequence[Source], fetched: Sequence[Sequence[Fetched]], seed: int) -> Dataset:
    """All rows of all sources, one source after the other; with weights a seeded mix, until one of them has run out."""
    each = [_read([file.path for file in files]) for files in fetched]
    weights = [source.weight for source in sources if source.weight is not None]
    if not weights or len(each) == 1:
        return concatenate_datasets(each)
    if len(weights) < len(each):
        raise Unfit("give every dataset a weight, or none of them")
    return interleave_datasets(each, [weight / sum(weights) for weight in weights], seed=seed)


def _read(files: Sequence[Path]) -> Dataset:
    kind = "json" if files[0].suffix in {".jsonl", ".json"} else "parquet"
    try:
        rows = load_dataset(kind, data_files=[str(file) for file in files], split="train")
    except (DatasetGenerationError, ValueError) as error:
        raise Unfit(f"{files[0]} holds no pairs: {error.__cause__ or error}") from None
    if lacking := [column for column in COLUMNS if column not in rows.column_names]:
        raise Unfit(f"{files[0]} holds no pairs: it has no column {', '.join(lacking)}")
    return rows.select_columns(list(COLUMNS))


def check(pairs: Dataset, policy: Policy, max_length: int | None) -> None:
    """Raises Unfit if prompt, completion and EOS of any pair exceed so many tokens, or else the policy's context, or if
    they are chat messages that the policy has no template for."""
    tokenizer, context = policy.tokenizer, getattr(policy.model.config, "max_position_embeddings", None)
    is_chat = is_conversational(pairs[0])
    if is_chat and tokenizer.chat_template is None:
        raise Unfit("the pairs are chat messages, and the policy has no chat template: freeze them in standard format")
    limit = max_length or context
    if limit is None:
        return

    def longer_side(row: dict[str, Any]) -> int:
        row = apply_chat_template(row, tokenizer) if is_chat else row
        sides = (row["prompt"] + row[side] for side in ("chosen", "rejected"))
        return 1 + max(len(tokenizer(text).input_ids) for text in sides)

    lengths = sorted(longer_side(row) for row in pairs.select_columns(list(COLUMNS)))
    if over := sum(length > limit for length in lengths):
        what = f"max_length {limit}" if max_length else f"the policy's context of {limit}"
        remedy = f"pass --max-length {lengths[-1]}, or " if max_length else ""
        raise Unfit(
            f"{over} of {len(lengths)} pairs are longer than {what}: median {lengths[len(lengths) // 2]}, longest "
            f"{lengths[-1]} tokens. Answers would lose their end, where the result stands: {remedy}leave long "
            "completions out by a recipe"
        )
