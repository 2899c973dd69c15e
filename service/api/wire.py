"""The JSON we promise. The records we think in may change; these change when we announce it."""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import BaseModel, Field, PlainSerializer, StringConstraints

from curation.choice import Choice, Metadata
from curation.informativeness import Informativeness
from curation.keys import prompt_id
from curation.recipe import Recipe
from curation.recorded import RECORDED, GroupIn
from curation.records import Prompt
from service.engines.base import WorkerState, WorkerView
from service.jobs import Job, JobEvent, JobKind, JobState
from service.leasing import Handed
from service.run_config import NAME, RunConfig
from service.stages import Invalid
from service.store.datasets import DatasetVersion
from service.store.leases import Lease, LeaseState
from service.store.policies import PolicyVersion
from service.store.transaction import Row
from service.verifiers.catalogue import Catalogue

Time = Annotated[datetime, PlainSerializer(lambda t: t.replace(tzinfo=UTC).isoformat().replace("+00:00", "Z"))]
Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]
T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    items: list[T]
    next: str | None = Field(description="Pass it as `cursor` to get the following page; null on the last one.")

    @classmethod
    def of(cls, items: Sequence[T], limit: int, last_key: Any) -> Self:
        """`last_key` is where the next page begins, if this one is full."""
        return cls(items=list(items), next=_encode(last_key) if len(items) == limit else None)


def _encode(key: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None, start: T) -> T:
    """The key in the cursor, or `start` without one. Raises Invalid for a cursor we did not make."""
    if cursor is None:
        return start
    try:
        key = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        str(key).encode()  # half characters are none of ours
    except (ValueError, RecursionError):
        key = None
    if not isinstance(key, type(start)):
        raise Invalid("bad_cursor", f"{cursor!r} is no cursor of this list; start without one")
    return key


class PromptIn(Choice):
    prompt: Text
    reference: str = ""
    """May be empty where the verifier needs none."""
    verifier: str = "math"
    metadata: Metadata = Field(default_factory=dict)

    def record(self) -> Prompt:
        identity = prompt_id(self.prompt, self.reference, self.verifier, self.metadata)
        return Prompt(identity, self.prompt, self.reference, self.verifier, self.metadata)


Judged = TypeVar("Judged", PromptIn, GroupIn)


def with_spelled_verifier(row: Judged, spelled: Callable[[str], str]) -> Judged:
    """The row with the canonical name of its verifier, as `spelled` gives it."""
    if isinstance(row, GroupIn) and row.verifier == RECORDED:
        return row
    return row.model_copy(update={"verifier": spelled(row.verifier)})


def spelled_verifier(name: str, catalogue: Catalogue) -> str:
    """Its canonical name. Raises Invalid for a name of none."""
    try:
        return catalogue.spelled(name)
    except ValueError as error:
        raise Invalid("unknown_verifier", str(error)) from None


class PromptOut(BaseModel):
    id: str
    prompt: str
    reference: str
    verifier: str
    metadata: dict[str, Any]

    @classmethod
    def of(cls, prompt: Prompt) -> Self:
        return cls(
            id=prompt.id,
            prompt=prompt.text,
            reference=prompt.reference,
            verifier=prompt.verifier,
            metadata=prompt.metadata,
        )


class PromptHistoryOut(PromptOut):
    visits: list[dict[str, Any]]
    """Every visit in every run, oldest first."""


class PromptsAdded(BaseModel):
    prompt_set: str
    added: int
    existing: int
    """Prompts that were in the set already, or stand in the body twice."""


class PolicyIn(Choice):
    name: str = Field(pattern=NAME)
    checkpoint: str = Field(min_length=1, max_length=4096)
    step: int | None = Field(None, ge=0, lt=2**63)
    """The trainer's step, for the record."""


class WorkerOut(BaseModel):
    policy: str
    url: str
    admin_urls: list[str]
    dialect: str
    server: str = Field(description="Name and version of what answers there.")
    state: WorkerState
    reason: str
    version: int | None = Field(description="Of the weights that it was last seen with.")
    in_flight: int = Field(description="Completions it is working on.")
    window: int = Field(description="Completions it is given at once.")
    answered: int = Field(description="Completions it has answered since the service started.")
    logprobs: str = Field(description="Which distribution its logprobs are of; see the README.")
    pid: int | None = Field(description="Of the process, if the service launched it.")

    @classmethod
    def of(cls, policy: str, view: WorkerView) -> Self:
        return cls(policy=policy, **asdict(view))


class PolicyVersionOut(BaseModel):
    version: int
    checkpoint: str
    step: int | None
    live_at: Time

    @classmethod
    def of(cls, version: PolicyVersion) -> Self:
        return cls(version=version.version, checkpoint=version.checkpoint, step=version.step, live_at=version.live_at)


class PolicyOut(BaseModel):
    name: str
    live: int
    """The version that requests meet now."""
    versions: list[PolicyVersionOut]

    @classmethod
    def of(cls, versions: Sequence[PolicyVersion]) -> Self:
        return cls(
            name=versions[-1].policy,
            live=versions[-1].version,
            versions=[PolicyVersionOut.of(version) for version in versions],
        )


class RunOut(BaseModel):
    config: RunConfig
    funnel: dict[str, Any]
    informativeness: Informativeness
    epochs: list[dict[str, int]]
    """What each pass over the prompt set considered, skipped and found."""


class JobEventOut(BaseModel):
    seq: int
    state: JobState
    data: dict[str, Any]
    at: Time

    @classmethod
    def of(cls, event: JobEvent) -> Self:
        return cls(seq=event.seq, state=event.state, data=event.data, at=event.at)


class JobOut(BaseModel):
    id: str
    kind: JobKind
    on: str
    """The run or the policy that the job works on."""
    state: JobState
    request: dict[str, Any]
    progress: dict[str, Any]
    """The newest report, with what the current round adds to it."""
    result: dict[str, Any] | None
    """There once the state is final: the funnel, or the error."""
    created_at: Time

    @classmethod
    def of(cls, job: Job) -> Self:
        return cls(
            id=job.id,
            kind=job.kind,
            on=job.run,
            state=job.state,
            request=job.request,
            progress=job.events[-1].data | job.progress,
            result=job.result,
            created_at=job.created_at,
        )


class LeaseOut(BaseModel):
    lease: str
    run: str
    consumer: str
    state: LeaseState
    group_ids: list[str]
    """In the order in which their prompts were chosen."""
    seconds: float
    """That it is good for, from the start or its last renewal."""
    leased_at: Time
    expires_at: Time | None
    """About when, if it is neither acknowledged nor released; the service counts the seconds, not the time of day."""

    @classmethod
    def of(cls, lease: Lease, expires_at: datetime | None) -> Self:
        return cls(
            lease=lease.id,
            run=lease.run,
            consumer=lease.consumer,
            state=lease.state,
            group_ids=list(lease.group_ids),
            seconds=lease.seconds,
            leased_at=lease.leased_at,
            expires_at=expires_at,
        )


class LeaseDetailOut(LeaseOut):
    policy_version: int | None
    """That is live; null where the rollouts were recorded elsewhere."""
    stale: int
    """Groups that would have been there if they were not too old."""
    available: int
    """Groups that are left beyond this lease; at most, for not every one was held against the recipe."""
    rows: list[dict[str, Any]]
    """Of the groups in their order, as a dataset of the recipe would hold them; a group may give several."""

    @classmethod
    def handed(cls, handed: Handed, expires_at: datetime | None) -> Self:
        return cls(
            **LeaseOut.of(handed.lease, expires_at).model_dump(),
            policy_version=handed.policy_version,
            stale=handed.stale,
            available=handed.available,
            rows=list(handed.rows),
        )


class GroupOut(BaseModel):
    id: str
    run: str
    prompt_id: str
    visit: int
    policy: str
    policy_version: int
    temperature: float | None
    kind: str
    rewards: list[float]
    rollouts: int
    tokens: int
    outcomes: dict[str, int]
    truncated: int
    stored_at: Time

    @classmethod
    def of(cls, row: Row) -> Self:
        return cls(id=row["group_id"], **{key: row[key] for key in cls.model_fields if key in row})


class RolloutOut(BaseModel):
    text: str | None
    """None where retention kept only the numbers."""
    token_ids: list[int] | None
    logprobs: list[float] | None
    tokens: int
    finish_reason: str
    weight_versions: list[dict[str, int]]
    outcome: str
    reward: float | None
    verifier: str
    elapsed: float
    detail: str
    recorded_reward: float | None


class VerdictOut(BaseModel):
    outcome: str
    reward: float | None
    verifier: str
    elapsed: float
    detail: str


class RescoreOut(BaseModel):
    job: str
    verdicts: list[VerdictOut]
    """One per member, in their order."""
    stored_at: Time


class GroupDetailOut(GroupOut):
    members: list[RolloutOut]
    """With the verdicts they were stored with."""
    rescores: list[RescoreOut]
    """Later verdicts, oldest first; the last ones count."""


class DatasetIn(Choice):
    name: str = Field(pattern=NAME)
    recipe: Recipe


class DatasetOut(BaseModel):
    name: str
    version: int
    dataset_id: str
    manifest: dict[str, Any]
    frozen_at: Time
    urls: dict[str, str]
    """Of the files in the manifest, relative to the service; none of a deleted version."""
    deleted_at: Time | None = None
    deletion_reason: str | None = None

    @classmethod
    def of(cls, dataset: DatasetVersion) -> Self:
        files = dataset.manifest["files"] if dataset.deleted_at is None else ()
        base = f"/v1/datasets/{dataset.name}@{dataset.version}"
        return cls(
            name=dataset.name,
            version=dataset.version,
            dataset_id=dataset.dataset_id,
            manifest=dataset.manifest,
            frozen_at=dataset.frozen_at,
            urls={file: f"{base}/{file}" for file in files},
            deleted_at=dataset.deleted_at,
            deletion_reason=dataset.deletion_reason,
        )


class RowsOut(BaseModel):
    """Shaped like the Hugging Face dataset viewer's ``/rows``."""

    features: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    num_rows_total: int
    num_rows_per_page: int
    partial: bool = False
