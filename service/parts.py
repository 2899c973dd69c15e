"""Everything a running service is made of, finished and frozen; and how it is opened and closed.

The composition root of the inside: it imports everyone, and only the app and the command import it.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from service.checkpoints import checkpoint_folder
from service.collect import Verify
from service.engines.base import Engine
from service.engines.room import EngineRoom
from service.harvest import Harvest, RolloutsRequest
from service.jobs import Job, JobBoard, JobKind
from service.publishing import publish
from service.settings import Settings
from service.stages import Conflict
from service.store.datasets import Datasets
from service.store.duck import Duck
from service.store.groups import Groups
from service.store.jobs import Jobs
from service.store.policies import Policies, PolicyVersion
from service.store.prompts import Prompts
from service.store.runs import Runs
from service.verifiers.pool import VerifierPool


@dataclass(frozen=True, slots=True)
class Store:
    """The tables, by noun."""

    duck: Duck
    prompts: Prompts
    policies: Policies
    runs: Runs
    groups: Groups
    jobs: Jobs
    datasets: Datasets

    @classmethod
    def open(cls, data: Path) -> "Store":
        duck = Duck(data / "store.duckdb")
        return cls(duck, Prompts(duck), Policies(duck), Runs(duck), Groups(duck), Jobs(duck), Datasets(duck))


@dataclass(frozen=True, slots=True)
class Parts:
    settings: Settings
    store: Store
    engines: EngineRoom
    verify: Verify
    jobs: JobBoard
    now: Callable[[], datetime]

    @property
    def dataset_root(self) -> Path:
        return self.settings.data / "datasets"


def utc_now() -> datetime:
    """Naive UTC: what the store's timestamp columns hold."""
    return datetime.now(UTC).replace(tzinfo=None)


def embedded_engine(settings: Settings) -> Engine:
    from service.engines.transformers_engine import TransformersEngine  # pulls in torch: only here

    return TransformersEngine(max_rows=settings.engine_rows)


@asynccontextmanager
async def open_parts(
    settings: Settings,
    *,
    make_engine: Callable[[Settings], Engine] = embedded_engine,
    now: Callable[[], datetime] = utc_now,
) -> AsyncIterator[Parts]:
    """Opens the store, loads every policy's newest version, and takes up unfinished jobs."""
    store = Store.open(settings.data)
    pool = VerifierPool(
        workers=settings.verifier_workers,
        seconds=settings.verifier_seconds,
        memory_bytes=settings.verifier_memory_mib << 20,
    )
    engines = EngineRoom(partial(make_engine, settings))

    async def harvest(job: Job, report: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        run = await store.runs.get(job.run)
        prompts = await store.prompts.of_set(run.prompt_set)
        if named := RolloutsRequest.model_validate(job.request).prompts:
            prompts |= await store.prompts.get(named)
        work = Harvest(
            job,
            run,
            prompts,
            engine=engines.engine_of(run.policy),
            verify=pool.verify,
            groups=store.groups,
            now=now,
            report=report,
        )
        return await work.work()

    async def publish_version(job: Job, report: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        return await publish(job, engines=engines, policies=store.policies, now=now)

    jobs = JobBoard(store.jobs, {JobKind.ROLLOUTS: harvest, JobKind.PUBLISH: publish_version}, now)
    try:
        await _load_policies(settings, store, engines, now)
        await jobs.resume()
        yield Parts(settings, store, engines, pool.verify, jobs, now)
    finally:
        await jobs.close()
        await engines.close()
        pool.close()
        store.duck.close()


async def _load_policies(settings: Settings, store: Store, engines: EngineRoom, now: Callable[[], datetime]) -> None:
    """Loads what was live last; publishes the first checkpoint in a new data folder."""
    for name in await store.policies.names():
        newest = (await store.policies.versions(name))[-1]
        await engines.publish(name, Path(newest.checkpoint), newest.version)
    if settings.policy_name not in await store.policies.names():
        await _publish_first(settings, store, engines, now)
        return
    if settings.policy is not None:
        known = [version.checkpoint for version in await store.policies.versions(settings.policy_name)]
        if str(checkpoint_folder(settings.policy)) not in known:
            raise Conflict(
                "policy_differs",
                f"policy {settings.policy_name!r} in {settings.data} has {len(known)} versions and none is "
                f"{settings.policy}: start without --policy and publish it, or choose another --data or --policy-name",
            )


async def _publish_first(settings: Settings, store: Store, engines: EngineRoom, now: Callable[[], datetime]) -> None:
    checkpoint = checkpoint_folder(settings.first_checkpoint)
    await engines.publish(settings.policy_name, checkpoint, 1)
    await store.policies.add(PolicyVersion(settings.policy_name, 1, str(checkpoint), None, now()))
