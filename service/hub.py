"""A push job: a frozen dataset on the Hugging Face Hub, with its card.

- The token comes from the environment (``HF_TOKEN``) alone; it is neither stored nor logged nor in a job's result.
- A version is one commit and one tag. A version that is tagged already is left alone, so a push that was killed is
  simply pushed again: the Hub keeps the files that have arrived.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from pydantic import Field

from service.cards import Licence, card, croissant
from service.jobs import Job
from service.stages import Conflict, Gone, HubFailed, Invalid, stage
from service.store.datasets import Datasets, DatasetVersion, split_of_shard
from service.threads import in_daemon_thread

MANIFEST = "manifest.json"
QUERY = re.compile(r"\?\S+")
"""Of a URL: it may be the right to write there."""
REPOSITORY = r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$"


class PushRequest(Licence):
    repo_id: str = Field(pattern=REPOSITORY)
    """``owner/name`` of a dataset repository; made if it does not exist."""
    private: bool = True
    """Only when it is made: an existing repository stays as it is."""


class VersionedPush(PushRequest):
    name: str
    version: int


def hub_of_environment() -> HfApi:
    """Raises Invalid without a token."""
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise Invalid("no_hub_token", "the service has no HF_TOKEN in its environment; start it with one to push")
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT", constants.ENDPOINT), token=token)


async def push(job: Job, *, datasets: Datasets, root: Path) -> dict[str, Any]:
    """Pushes the version that the job names. Raises Conflict when its tag holds another dataset, HubFailed."""
    request = VersionedPush.model_validate(job.request)
    dataset = await datasets.get(request.name, request.version)
    if dataset.deleted_at is not None:
        raise Gone("dataset_deleted", f"{dataset.name}@{dataset.version} was deleted before it was pushed")
    doing = f"pushing {dataset.name}@{dataset.version} to {request.repo_id}"
    with stage(HubFailed, doing):
        try:
            return await in_daemon_thread(_push, hub_of_environment(), dataset, request, root / dataset.dataset_id)
        except RuntimeError as failure:  # it says which file; why, says what it came from
            why = QUERY.sub("", str(failure.__cause__ or ""))
            raise HubFailed(f"{doing}: {failure} {why}".strip()) from failure


def _push(hub: HfApi, dataset: DatasetVersion, request: PushRequest, folder: Path) -> dict[str, Any]:
    repo_id, tag = request.repo_id, f"v{dataset.version}"
    hub.create_repo(repo_id, repo_type="dataset", private=request.private, exist_ok=True)
    url = f"{hub.endpoint}/datasets/{repo_id}"
    tags = {ref.name: ref.target_commit for ref in hub.list_repo_refs(repo_id, repo_type="dataset").tags}
    if tag in tags:
        _refuse_another(hub, dataset, repo_id, tag)
        return {"url": url, "tag": tag, "commit": tags[tag], "pushed": False}
    files = _files(dataset, folder, url, request)
    stale = _ours(hub, repo_id) - files.keys()
    made = hub.create_commit(
        repo_id,
        [
            *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()),
            *(CommitOperationDelete(path_in_repo=name) for name in sorted(stale)),
        ],
        commit_message=f"{dataset.name}@{dataset.version}",
        repo_type="dataset",
    )
    hub.create_tag(repo_id, tag=tag, revision=made.oid, repo_type="dataset")
    return {"url": url, "tag": tag, "commit": made.oid, "pushed": True}


def _ours(hub: HfApi, repo_id: str) -> set[str]:
    """The Parquet files there that the last push put there."""
    there = set(hub.list_repo_files(repo_id, repo_type="dataset"))
    if MANIFEST not in there:
        return set()
    held = json.loads(Path(hub.hf_hub_download(repo_id, MANIFEST, repo_type="dataset")).read_text())
    return {name for name in held["files"] if split_of_shard(name)} & there


def _refuse_another(hub: HfApi, dataset: DatasetVersion, repo_id: str, tag: str) -> None:
    held = hub.hf_hub_download(repo_id, MANIFEST, repo_type="dataset", revision=tag)
    if json.loads(Path(held).read_text())["dataset_id"] != dataset.dataset_id:
        detail = f"{repo_id} has a {tag} that is another dataset than {dataset.name}@{dataset.version}"
        raise Conflict("other_dataset_there", f"{detail}; push to a repository of its own")


def _files(dataset: DatasetVersion, folder: Path, url: str, licence: Licence) -> dict[str, Path | bytes]:
    """What goes into the repository, by name."""
    splits = [name for split in dataset.splits for name in dataset.shards(split)]
    columns = pq.read_schema(folder / splits[0])
    told = {
        "README.md": card(dataset, licence),
        "croissant.json": _spelled(croissant(dataset, f"{url}/resolve/v{dataset.version}", columns, licence)),
        MANIFEST: _spelled(dataset.manifest),
    }
    return {name: folder / name for name in splits} | {name: text.encode() for name, text in told.items()}


def _spelled(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
