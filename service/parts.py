"""Everything a running service is made of, finished and frozen; and how it is opened and closed.

The composition root of the inside: it imports everyone, and only the app and the command import it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from service.access import Keyring
from service.checkpoints import EMBEDDED, Roots, fetch, named
from service.collect import Verify
from service.engines.addresses import Kind
from service.engines.base import Engine
from service.engines.fleet import Fleet, FleetConfig
from service.engines.process import Launch, built_python
from service.engines.room import EngineRoom
from service.freezing import Freezer
from service.harvest import Harvest, Report, RolloutsRequest
from service.hub import push
from service.jobs import Job, JobBoard, JobKind, Work
from service.leasing import Leasing
from service.publishing import publish
from service.rescoring import rescore
from service.settings import EngineChoice, ReloadMode, Settings
from service.shares import Shares
from service.sql.console import Console, Limits
from service.stages import Conflict, Refused, StageError
from service.store.answers import Answers
from service.store.datasets import Datasets
from service.store.duck import Duck
from service.store.groups import Groups
from service.store.jobs import Jobs
from service.store.judged import Judged
from service.store.leases import Leases
from service.store.policies import Policies, PolicyVersion
from service.store.prompts import Prompts
from service.store.reports import Reports
from service.store.runs import Runs
from service.store.sealing import Sealer
from service.store.verdicts import Verdicts
from service.threads import in_daemon_thread
from service.verifiers import canaries
from service.verifiers.catalogue import Catalogue, installed
from service.verifiers.declared import declared_verifiers
from service.verifiers.panel import Panel
from service.verifiers.pool import VerifierPool
from service.verifiers.worker import NO_LIMIT
from service.verifiers.worker import Limits as VerifierLimits

logger = logging.getLogger(__name__)
MODEL_LIMITS = VerifierLimits(wall_seconds=300.0, cpu_seconds=3600.0, memory_bytes=NO_LIMIT, load_seconds=900.0)
"""Of a reward model in a worker process; with two of them in turn, loading counts against the check."""
TURNS, TURNS_OF_ONE = 3, 2
"""Of all callers, and of one."""
THREADS = 32
"""More than all turns together: for what is short there is always one."""
WINDOWS_AT_WORK, LEAST_AT_WORK = 4, 1024
"""Completions that are sampled, judged and stored at once, of all runs: as many as four times what the engines take, so
that they always have something to do, and no more, so that slow verifiers fill no memory."""


@dataclass(frozen=True, slots=True)
class Store:
    """The tables, by noun."""

    duck: Duck
    sealer: Sealer
    prompts: Prompts
    policies: Policies
    runs: Runs
    groups: Groups
    judged: Judged
    verdicts: Verdicts
    jobs: Jobs
    datasets: Datasets
    leases: Leases
    answers: Answers
    reports: Reports

    @classmethod
    def open(cls, data: Path, memory_mib: int | None = None) -> "Store":
        """Raises StoreFailed for a folder that another service has, or whose store is damaged or of another version."""
        duck = Duck(data / "store.duckdb", memory_mib)
        sealer = Sealer(duck)
        sealer.start()
        return cls(
            duck,
            sealer,
            Prompts(duck),
            Policies(duck),
            Runs(duck),
            Groups(duck),
            Judged(duck),
            Verdicts(duck),
            Jobs(duck),
            Datasets(duck),
            Leases(duck),
            Answers(duck),
            Reports(duck),
        )

    def close(self) -> None:
        self.sealer.stop()
        self.duck.close()
        self.sealer.end()


@dataclass(frozen=True, slots=True)
class TakenUp:
    """What an earlier process had left, whichever way it ended."""

    jobs: tuple[str, ...]
    """Unfinished, by id: they go on."""
    leases: int
    """Open: their time begins anew."""
    removed: tuple[str, ...]
    """Files that were not finished, or not needed any more; in the data folder."""

    def __str__(self) -> str:
        jobs, removed = ", ".join(self.jobs) or "none", ", ".join(self.removed) or "none"
        return f"jobs taken up: {jobs}; open leases: {self.leases}; unfinished files removed: {removed}"


@dataclass(frozen=True, slots=True)
class Parts:
    settings: Settings
    store: Store
    engines: EngineRoom
    panel: Panel
    jobs: JobBoard
    freezer: Freezer
    leasing: Leasing
    console: Console
    keyring: Keyring
    bodies: Shares
    """Bytes of requests."""
    turns: Shares
    """Of what takes a caller seconds."""
    long_turns: Shares
    """Of what takes minutes, and memory: replays and freezes."""
    taken_up: TakenUp
    now: Callable[[], datetime]

    @property
    def dataset_root(self) -> Path:
        return self.settings.dataset_root

    @property
    def roots(self) -> Roots:
        """Where checkpoints of clients may lie."""
        return roots_of(self.settings, self.keyring)


def roots_of(settings: Settings, keyring: Keyring) -> Roots:
    """What the operator began with is theirs to train on, too."""
    if keyring.keys is None:
        return None
    begun = [Path(settings.policy)] if settings.policy and Path(settings.policy).is_dir() else []
    return (settings.data, *settings.checkpoint_root, EMBEDDED, *begun)


def utc_now() -> datetime:
    """Naive UTC: what the store's timestamp columns hold."""
    return datetime.now(UTC).replace(tzinfo=None)


def engine_of_settings(settings: Settings, policy: str) -> Engine:
    """The embedded engine, or the fleet where there is one. Raises Conflict for a second policy on a fleet."""
    if not settings.has_fleet:
        from service.engines.transformers_engine import TransformersEngine  # pulls in torch: only here

        return TransformersEngine(max_rows=settings.engine_rows)
    if policy != settings.policy_name:
        raise Conflict(
            "fleet_is_taken",
            f"the engines of this service serve policy {settings.policy_name!r}: start a service of its own, with its "
            f"own engines, for {policy!r}",
        )
    return Fleet(fleet_config(settings, policy))


def fleet_config(settings: Settings, policy: str) -> FleetConfig:
    key = settings.engine_api_key.get_secret_value() if settings.engine_api_key else None
    return FleetConfig(
        policy=policy,
        attached=settings.engine_url,
        launched=_launch(settings, key),
        api_key=key,
        scratch=settings.data / "merged",
        request_seconds=settings.engine_request_seconds,
        patience_seconds=settings.engine_patience_seconds,
        in_flight_reload=settings.engine_reload is ReloadMode.IN_FLIGHT,
    )


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def panel_of_settings(settings: Settings) -> Panel:
    """Raises Conflict for a declared verifier whose name is taken."""
    limits = VerifierLimits(
        settings.verifier_seconds, settings.verifier_cpu_seconds, settings.verifier_memory_mib << 20
    )
    operator = {"python": settings.code_python and str(settings.code_python), "unsafe": settings.unsafe_local_code}
    known = installed(code=operator)
    declared = declared_verifiers(settings.verifier)
    if taken := sorted(known.keys() & declared.keys()):
        raise Conflict("verifier_exists", f"a verifier is called {', '.join(taken)} already: declare another name")
    pool = VerifierPool(workers=settings.verifier_workers, limits=limits)
    models = VerifierPool(workers=1, limits=MODEL_LIMITS)
    return Panel(Catalogue({**known, **declared}), pool, models)


def _launch(settings: Settings, api_key: str | None) -> Launch | None:
    if settings.engine is EngineChoice.TRANSFORMERS:
        return None
    kind = Kind(settings.engine)
    return Launch(
        kind=kind,
        python=None if settings.engine_image else (settings.engine_python or built_python(kind)).absolute(),
        image=settings.engine_image,
        arguments=settings.engine_args,
        log=settings.data / f"{kind}.log",
        api_key=api_key,
    )


@asynccontextmanager
async def open_parts(
    settings: Settings,
    *,
    make_engine: Callable[[Settings, str], Engine] = engine_of_settings,
    now: Callable[[], datetime] = utc_now,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Parts]:
    """Opens the store, loads every policy's newest version, and takes up unfinished jobs and open leases."""
    # Closed in reverse order, each part even if another one fails to close.
    async with AsyncExitStack() as closing:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "parts"))
        store = Store.open(settings.data, settings.store_memory_mib)
        closing.callback(store.close)
        panel = panel_of_settings(settings)
        closing.push_async_callback(panel.close)
        closing.push_async_callback(_ended, asyncio.create_task(canaries.watch(panel, seconds=settings.canary_seconds)))
        engines = EngineRoom(partial(make_engine, settings))
        closing.push_async_callback(engines.close)
        keyring = Keyring(settings.data)
        jobs = JobBoard(store.jobs, _work(settings, store, engines, panel.verify, keyring, now), now)
        closing.push_async_callback(jobs.close)
        await _load_policies(settings, store, engines, now)
        unfinished = await jobs.resume()
        leasing = _leasing(store, jobs, engines, now, clock)
        await leasing.resume()
        removed = tuple(str(path.relative_to(settings.data)) for path in store.duck.removed)
        taken_up = TakenUp(tuple(unfinished), leasing.open, removed)
        logger.info("%s", taken_up)
        console = _console(settings, store)
        closing.push_async_callback(console.close)
        yield Parts(
            settings,
            store,
            engines,
            panel,
            jobs,
            _freezer(settings, store, now),
            leasing,
            console,
            keyring,
            Shares(lambda: settings.bodies_mib << 20, most_of_one=lambda: settings.bodies_mib << 19),
            Shares(lambda: TURNS, most_of_one=lambda: TURNS_OF_ONE),
            Shares(lambda: TURNS, most_of_one=lambda: TURNS_OF_ONE),
            taken_up,
            now,
        )


def _console(settings: Settings, store: Store) -> Console:
    limits = Limits(processes=settings.sql_processes, memory_mib=settings.sql_memory_mib)
    return Console(store.duck, store.sealer, settings.dataset_root, limits)


def _freezer(settings: Settings, store: Store, now: Callable[[], datetime]) -> Freezer:
    return Freezer(
        settings.dataset_root,
        groups=store.groups,
        judged=store.judged,
        prompts=store.prompts,
        runs=store.runs,
        datasets=store.datasets,
        now=now,
    )


def _leasing(
    store: Store, jobs: JobBoard, engines: EngineRoom, now: Callable[[], datetime], clock: Callable[[], float]
) -> Leasing:
    return Leasing(
        leases=store.leases,
        judged=store.judged,
        runs=store.runs,
        policies=store.policies,
        prompts=store.prompts,
        duck=store.duck,
        jobs=jobs,
        engines=engines,
        now=now,
        clock=clock,
    )


def _work(
    settings: Settings,
    store: Store,
    engines: EngineRoom,
    verify: Verify,
    keyring: Keyring,
    now: Callable[[], datetime],
) -> dict[JobKind, Work]:
    """What each kind of job does."""
    at_work = Shares(lambda: max(LEAST_AT_WORK, WINDOWS_AT_WORK * engines.window))

    async def harvest(job: Job, report: Report) -> dict[str, Any]:
        run = await store.runs.get(job.run)
        prompts = await store.prompts.of_set(run.prompt_set)
        if named := RolloutsRequest.model_validate(job.request).prompts:
            prompts |= await store.prompts.get(named)
        engine = engines.engine_of(run.policy)
        work = Harvest(
            job,
            run,
            prompts,
            engine=engine,
            verify=verify,
            groups=store.groups,
            at_work=at_work,
            now=now,
            report=report,
        )
        return await work.work()

    async def publish_version(job: Job, report: Report) -> dict[str, Any]:
        roots = roots_of(settings, keyring)
        return await publish(job, engines=engines, policies=store.policies, roots=roots, now=now, report=report)

    async def judge_anew(job: Job, report: Report) -> dict[str, Any]:
        return await rescore(job, verify=verify, verdicts=store.verdicts, now=now)

    async def push_dataset(job: Job, report: Report) -> dict[str, Any]:
        return await push(job, datasets=store.datasets, root=settings.dataset_root)

    return {
        JobKind.ROLLOUTS: harvest,
        JobKind.PUBLISH: publish_version,
        JobKind.RESCORE: judge_anew,
        JobKind.PUSH: push_dataset,
    }


async def _load_policies(settings: Settings, store: Store, engines: EngineRoom, now: Callable[[], datetime]) -> None:
    """Loads what was live last; publishes the first checkpoint in a new data folder."""
    for name in await store.policies.names():
        newest = (await store.policies.versions(name))[-1]
        try:
            await engines.publish(name, await in_daemon_thread(fetch, newest.checkpoint), newest.version)
        except (StageError, Refused) as failure:
            if name == settings.policy_name:
                raise
            # A trainer measured itself with it, say, and its folder is gone: no reason not to serve the others.
            logger.warning("policy %r stays unloaded until it is published again: %s", name, failure)
    if settings.policy_name not in await store.policies.names():
        await _publish_first(settings, store, engines, now)
        return
    if settings.policy is not None:
        known = [version.checkpoint for version in await store.policies.versions(settings.policy_name)]
        if not any(_is_named(settings.policy, checkpoint) for checkpoint in known):
            raise Conflict(
                "policy_differs",
                f"policy {settings.policy_name!r} in {settings.data} has {len(known)} versions and none is "
                f"{settings.policy}: start without --policy and publish it, or choose another --data or --policy-name",
            )


async def _publish_first(settings: Settings, store: Store, engines: EngineRoom, now: Callable[[], datetime]) -> None:
    checkpoint = await in_daemon_thread(fetch, settings.first_checkpoint)
    await engines.publish(settings.policy_name, checkpoint, 1)
    await store.policies.add(PolicyVersion(settings.policy_name, 1, checkpoint.source, None, now()))


def _is_named(policy: str, known: str) -> bool:
    """Whether the checkpoint that was published is the one the operator names, at whatever commit of the Hub."""
    return known == (asked := named(policy)) or known.partition("@")[0] == asked
