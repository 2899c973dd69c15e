"""/metrics, as Prometheus reads it"""

from collections.abc import Iterator

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from service.api.routes import READS, PartsDep
from service.verifiers.panel import Panel

router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=Response, dependencies=[READS])
async def metrics(parts: PartsDep) -> Response:
    """What the service does, as numbers since it was started."""
    registry = CollectorRegistry()
    registry.register(_Verification(parts.panel))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


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
