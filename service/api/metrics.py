"""/metrics, as Prometheus reads it"""

import shutil
from collections import Counter
from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from service.api.routes import READS, PartsDep
from service.parts import Parts
from service.verifiers.panel import Panel

router = APIRouter(tags=["health"])


class Exposition(Response):
    media_type = CONTENT_TYPE_LATEST


@router.get("/metrics", response_class=Exposition, dependencies=[READS])
async def metrics(parts: PartsDep, request: Request) -> Exposition:
    """What the service does, as numbers since it was started."""
    registry = CollectorRegistry()
    for collector in (_Work(parts), _Engines(parts), _Store(parts), _Verification(parts.panel)):
        registry.register(collector)
    ProcessCollector(registry=registry)
    content = generate_latest(registry) + generate_latest(request.app.state.traffic.registry)
    return Exposition(content)


class _Work(Collector):
    """What is asked of the service, and what came of it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("refinery_jobs_unfinished", "Jobs at work or waiting.", labels=("kind", "state"))
        for labels, count in sorted(Counter((job.kind, job.state) for job in self._parts.jobs.at_work()).items()):
            jobs.add_metric(labels, count)
        yield jobs
        done = self._parts.store.groups.done
        groups = CounterMetricFamily("refinery_groups", "Groups sampled and stored.", labels=("kind",))
        for kind, count in sorted(done.kinds.items()):
            groups.add_metric((kind.value,), count)
        yield groups
        yield CounterMetricFamily("refinery_rollouts", "Rollouts sampled and stored.", done.rollouts)
        yield CounterMetricFamily("refinery_tokens", "Tokens sampled and stored.", done.tokens)
        failed = CounterMetricFamily("refinery_group_failures", "Groups that could not be had.", labels=("stage",))
        for stage, count in sorted(done.failures.items()):
            failed.add_metric((stage,), count)
        yield failed
        yield GaugeMetricFamily("refinery_leases_open", "Leases with a consumer.", self._parts.leasing.open)
        held = self._parts.bodies.held
        yield GaugeMetricFamily("refinery_request_body_bytes", "Of the requests being read or answered.", held)


class _Engines(Collector):
    def __init__(self, parts: Parts) -> None:
        self._workers = parts.engines.workers()

    def collect(self) -> Iterator[Metric]:
        states = GaugeMetricFamily("refinery_engine_workers", "Engine workers.", labels=("policy", "state"))
        version = GaugeMetricFamily("refinery_policy_version", "Newest that a worker holds.", labels=("policy",))
        busy = GaugeMetricFamily("refinery_completions_in_flight", "Completions being sampled.", labels=("policy",))
        window = GaugeMetricFamily("refinery_completions_window", "Completions sampled at most.", labels=("policy",))
        answered = CounterMetricFamily("refinery_completions", "Completions sampled.", labels=("policy",))
        for policy, workers in self._workers.items():
            for state, count in sorted(Counter(worker.state for worker in workers).items()):
                states.add_metric((policy, state.value), count)
            version.add_metric((policy,), max((worker.version or 0 for worker in workers), default=0))
            busy.add_metric((policy,), sum(worker.in_flight for worker in workers))
            window.add_metric((policy,), sum(worker.window for worker in workers))
            answered.add_metric((policy,), sum(worker.answered for worker in workers))
        yield from (states, version, busy, window, answered)


class _Store(Collector):
    def __init__(self, parts: Parts) -> None:
        self._duck = parts.store.duck
        self._data = parts.settings.data

    def collect(self) -> Iterator[Metric]:
        manifest = self._duck.layout.manifest
        yield CounterMetricFamily("refinery_store_commits", "Commits since the store was made.", self._duck.commits)
        waiting = "Writes that wait for their commit."
        yield GaugeMetricFamily("refinery_store_writes_waiting", waiting, self._duck.waiting)
        yield GaugeMetricFamily("refinery_store_hot_bytes", "Not sealed yet, as in memory.", self._duck.hot_bytes)
        yield GaugeMetricFamily("refinery_store_sealed_bytes", "In segments, on disk.", manifest.bytes)
        yield GaugeMetricFamily("refinery_store_segments", "Segments.", len(manifest.segments))
        free = shutil.disk_usage(self._data).free
        yield GaugeMetricFamily("refinery_store_free_bytes", "Free on the disk of the data folder.", free)


class _Verification(Collector):
    def __init__(self, panel: Panel) -> None:
        self._panel = panel

    def collect(self) -> Iterator[Metric]:
        panel = self._panel
        verdicts = CounterMetricFamily("refinery_verdicts", "Completions judged.", labels=("verifier", "outcome"))
        for (verifier, outcome), count in sorted(panel.tally.items()):
            verdicts.add_metric((verifier, outcome.value), count)
        yield verdicts
        waiting = "Completions that are being judged, or wait for it."
        yield GaugeMetricFamily("refinery_verifications_waiting", waiting, panel.waiting)
        restarts = "Worker processes that a completion cost."
        yield CounterMetricFamily("refinery_verifier_restarts", restarts, panel.restarts)
        blind = GaugeMetricFamily("refinery_verifier_blind", "1 while canaries are judged wrong.", labels=("verifier",))
        for verifier in panel.canaries():
            blind.add_metric((verifier,), float(verifier in panel.blind))
        yield blind
