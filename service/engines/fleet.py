"""A policy on any number of engine servers.

- Work goes to the worker with the least to do in proportion to what it takes; what finds no room waits in order.
- A group whose worker failed is sampled once more, with the same seeds, elsewhere if there is an elsewhere.
- A worker that looks alive and fails what it is given rests while another is well, then gets one group at a time.
- New weights are live at once on all workers or not at all; a worker that fails to load them gets no work until it has.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from service.checkpoints import Checkpoint
from service.engines.addresses import WorkerSpec
from service.engines.base import Sampled, WorkerState, WorkerView
from service.engines.link import Fault, Missing, NotConnected, Overloaded, Unreachable
from service.engines.process import EngineProcess, Launch
from service.engines.tokens import Tokens
from service.engines.worker import Target, Worker
from service.run_config import Sampling
from service.stages import EngineFailed, stage

logger = logging.getLogger(__name__)

RETRIES = 1
"""Times that a group is sampled again after its worker failed."""
PROBE_SECONDS = 2.0
MISSED_PROBES = 2
"""In a row, until a worker counts as down."""
ALIVE_SECONDS = 30.0
"""A worker that finished a group so lately is alive, however slowly it answers probes."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds between attempts to get a worker back; doubled each time."""
OVERLOADED_PAUSE = 0.5


@dataclass(frozen=True, slots=True)
class FleetConfig:
    policy: str
    attached: tuple[WorkerSpec, ...]
    launched: Launch | None
    api_key: str | None
    scratch: Path
    """Folder for adapters merged into their base."""
    request_seconds: float
    """Until a request counts as lost."""
    patience_seconds: float
    """How long work waits while no worker is live."""
    in_flight_reload: bool
    """Change weights under running requests where the server labels each token with its weights."""


@dataclass(slots=True)
class _Waiting:
    completions: int
    avoid: Worker | None
    """Not this one, as long as another is live: it is waited for."""
    admitted: asyncio.Future[Worker] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Fleet:
    """See `service.engines.base.Engine`."""

    def __init__(self, config: FleetConfig) -> None:
        self._config = config
        self._session = aiohttp.ClientSession(
            # Neither a limit of ours nor a timeout between bytes: the window and the deadline are the workers'.
            # A connection that rested for longer may be closed by the server, which waits 5 s, just as we use it.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        )
        self._workers = [self._worker(spec) for spec in config.attached]
        if config.launched:
            process = EngineProcess(config.launched)
            self._workers.append(self._worker(WorkerSpec(url=process.url, dialect=config.launched.kind), process))
        self._target: Target | None = None
        self._queue: deque[_Waiting] = deque()
        self._loading = asyncio.Lock()
        self._live_at = time.monotonic()
        """When a worker was last seen live."""
        self._watches: list[asyncio.Task[None]] = []

    def _worker(self, spec: WorkerSpec, process: EngineProcess | None = None) -> Worker:
        return Worker(
            spec,
            self._session,
            api_key=self._config.api_key,
            scratch=self._config.scratch,
            request_seconds=self._config.request_seconds,
            process=process,
        )

    @property
    def policy_version(self) -> int:
        if self._target is None:
            raise EngineFailed("no checkpoint is loaded")
        if not any(worker.state in (WorkerState.LIVE, WorkerState.LOADING) for worker in self._workers):
            raise EngineFailed(f"no worker is live: {self._reasons()}")
        return self._target.version

    def workers(self) -> list[WorkerView]:
        return [worker.view for worker in self._workers]

    # ---- sampling

    async def sample(self, prompt: str, sampling: Sampling, seeds: Sequence[int]) -> Sampled:
        if self._target is None:
            raise EngineFailed("no checkpoint is loaded")
        failures: list[str] = []
        refused_since: float | None = None
        avoid = None
        while len(failures) <= RETRIES:
            worker = await self._admission(len(seeds), avoid)
            try:
                if worker.state is not WorkerState.LIVE:  # no longer: something happened since it let us in
                    continue
                # Not before it is its turn: a job may bring a hundred thousand prompts at once.
                prompt_ids = self._target.tokens.prompt_ids(prompt, sampling, self._context)
                return Sampled(*await worker.sample(prompt_ids, sampling, seeds))
            except NotConnected as failure:  # it was never asked
                self._lose(worker, failure)
            except Overloaded as failure:
                refused_since = refused_since or time.monotonic()
                if time.monotonic() - refused_since > (seconds := self._config.request_seconds):
                    raise EngineFailed(f"refused for {seconds:g} s: {failure}") from failure
                logger.info("worker %s takes no more: %s", worker, failure)
                worker.narrow()
                avoid = worker
                await asyncio.sleep(OVERLOADED_PAUSE)
            except Fault as failure:
                logger.warning("worker %s failed a group: %s", worker, failure)
                failures.append(str(failure))
                worker.failed(failure)
                avoid = worker
                await self._suspect(worker)
            finally:
                worker.release(len(seeds))
                self._admit_waiting()
        raise EngineFailed(f"failed {len(failures)} times: {'; then '.join(failures)}")

    @property
    def _context(self) -> int | None:
        """The narrowest, so that a prompt's fate does not depend on where it goes."""
        return min((worker.context for worker in self._workers if worker.context), default=None)

    async def _suspect(self, worker: Worker) -> None:
        """Takes a worker out at once if it is gone, or its engine is, so that nothing is tried on it a second time."""
        try:
            await worker.knock()
        except Missing:  # it is there, and has no such route
            pass
        except Fault as failure:
            self._lose(worker, failure)

    def _lose(self, worker: Worker, failure: EngineFailed) -> None:
        if worker.state is WorkerState.LIVE:  # else somebody is already at it
            worker.down(str(failure))

    async def _admission(self, completions: int, avoid: Worker | None) -> Worker:
        """A live worker with room reserved on it, in the order of asking."""
        waiting = _Waiting(completions, avoid)
        self._queue.append(waiting)
        self._admit_waiting()
        try:
            return await waiting.admitted
        except asyncio.CancelledError:
            if waiting.admitted.done() and not waiting.admitted.cancelled():
                waiting.admitted.result().release(completions)
                self._admit_waiting()
            raise

    def _admit_waiting(self) -> None:
        held_up: list[_Waiting] = []
        while self._queue:
            waiting = self._queue.popleft()
            if waiting.admitted.done():
                continue
            if worker := self._least_busy(waiting):
                worker.reserve(waiting.completions)
                waiting.admitted.set_result(worker)
                continue
            held_up.append(waiting)
            if waiting.avoid is None:
                break
        self._queue.extendleft(reversed(held_up))

    def _least_busy(self, waiting: _Waiting) -> Worker | None:
        live = [worker for worker in self._workers if worker.state is WorkerState.LIVE]
        elsewhere = [worker for worker in live if worker is not waiting.avoid] or live
        fit = _fit_again(elsewhere) if waiting.avoid else _fit(elsewhere)
        free = [worker for worker in fit if worker.has_room(waiting.completions)]
        # Whether a sick one is well again is found out first: it gets one group, which can still go elsewhere.
        return min(free, key=lambda worker: (not worker.is_sick, worker.in_flight / worker.window), default=None)

    # ---- weights

    async def load(self, checkpoint: Checkpoint, version: int) -> None:
        with stage(EngineFailed, f"reading the tokenizer of {checkpoint.source}"):
            tokens = await asyncio.to_thread(Tokens, checkpoint.full.folder)
        target = Target(self._config.policy, checkpoint, version, tokens)
        async with self._loading:
            held = await self._bring_all(target)
            reasons = "" if held else self._reasons()
            if held:
                self._target = target
            elif self._target is not None:
                held = await self._bring_all(self._target)
            for worker in held:
                worker.admit()
            self._live_at = time.monotonic()
            self._admit_waiting()
        if reasons:
            raise EngineFailed(f"no worker could load {checkpoint.source}: {reasons}")
        if not self._watches:
            self._watches = [asyncio.create_task(self._watch(worker)) for worker in self._workers]
            self._watches.append(asyncio.create_task(self._watch_patience()))

    async def _bring_all(self, target: Target) -> list[Worker]:
        """The workers that hold the target afterwards; none of them is live yet."""
        in_flight = self._config.in_flight_reload
        outcomes = await asyncio.gather(
            *(worker.bring(target, in_flight=in_flight) for worker in self._workers), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, EngineFailed):
                raise outcome
        return [worker for worker, outcome in zip(self._workers, outcomes, strict=True) if outcome is None]

    async def close(self) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await asyncio.gather(*(worker.close() for worker in self._workers))
        await self._session.close()

    # ---- watching

    async def _watch(self, worker: Worker) -> None:
        """Takes a failing worker out, and tries to get it back, for as long as the fleet lives."""
        missed, pause = 0, FIRST_PAUSE
        while True:
            if worker.state is WorkerState.LIVE:
                await self._next_probe(worker)
                missed = await self._probe(worker, missed)
                pause = FIRST_PAUSE
                continue
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            if worker.state in (WorkerState.DOWN, WorkerState.DRAINED) and not self._loading.locked():
                await self._get_back(worker)

    async def _next_probe(self, worker: Worker) -> None:
        """Waits its time, less if the worker's own process ends."""
        if worker.process is None:
            await asyncio.sleep(PROBE_SECONDS)
            return
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await worker.process.wait()
        except TimeoutError:
            pass

    async def _probe(self, worker: Worker, missed: int) -> int:
        """How many probes the worker has missed in a row by now."""
        try:
            await worker.probe()
        except Fault as failure:
            if time.monotonic() - worker.answered_at < ALIVE_SECONDS and not isinstance(failure, NotConnected):
                return missed
            if missed + 1 >= MISSED_PROBES:
                self._lose(worker, failure)
            return missed + 1
        except EngineFailed as failure:
            if worker.state is WorkerState.LIVE:
                if worker.process and not worker.process.is_running:
                    worker.down(str(failure))
                else:
                    worker.drain(str(failure))
        return 0

    async def _get_back(self, worker: Worker) -> None:
        target = self._target
        assert target is not None
        try:
            if worker.process is None:  # our own is started again
                await worker.knock()
            await worker.bring(target, in_flight=False)
        except EngineFailed as failure:
            logger.warning("worker %s is not back: %s", worker, failure)
            if isinstance(failure, Unreachable):
                worker.down(str(failure))
            return
        if target is self._target:
            worker.admit()
            self._admit_waiting()
        else:  # new weights went live meanwhile
            worker.drain(f"holds {target.label}, which is no longer the newest")

    async def _watch_patience(self) -> None:
        """Lets waiting work fail, with the reasons, once no worker has been live for too long."""
        while True:
            await asyncio.sleep(1.0)
            if self._loading.locked() or any(w.state is WorkerState.LIVE for w in self._workers):
                self._live_at = time.monotonic()
            elif time.monotonic() - self._live_at > self._config.patience_seconds:
                seconds = self._config.patience_seconds
                failure = EngineFailed(f"no worker was live for {seconds:g} s: {self._reasons()}")
                for waiting in self._queue:
                    if not waiting.admitted.done():
                        waiting.admitted.set_exception(failure)
                self._queue.clear()

    def _reasons(self) -> str:
        return "; ".join(f"{worker} is {worker.state}: {worker.reason}" for worker in self._workers)


def _fit(workers: Sequence[Worker]) -> Sequence[Worker]:
    """Those that are well, and the sick ones that may be tried again; all of them where none is well."""
    if all(worker.is_sick for worker in workers):
        return workers
    return [worker for worker in workers if not worker.is_sick or worker.may_be_tried]


def _fit_again(workers: Sequence[Worker]) -> Sequence[Worker]:
    """For what failed before: those that failed the fewest since they last did well."""
    fewest = min((worker.failures for worker in workers), default=0)
    return [worker for worker in workers if worker.failures == fewest]
