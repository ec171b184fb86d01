"""Merges the /metrics of several servers into one, including the counts of servers that have ended.

Without them, a counter would decrease when a server ends, and Prometheus would take that for a reset.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

# Gauges whose merged value is the smallest, the largest, or the furthest from 0; all other gauges are added.
MIN_GAUGES = frozenset({"sparserm_batch_budget_tokens", "process_start_time_seconds"})
MAX_GAUGES = frozenset({
    "sparserm_requests_in_flight", "sparserm_drift_psi", "sparserm_model_info", "python_info",
})  # fmt: skip
EXTREME_GAUGES = frozenset({"sparserm_concept_contribution"})
# Types whose values count what a server has done, and stay true when it has ended.
CUMULATIVE_TYPES = frozenset({"counter", "histogram"})
# The suffix of the series that say when a counter was created.
CREATED_SUFFIX = "_created"
SampleKey = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class MetricFamilies(Collector):
    """The metric families of one server, by name."""

    families: Mapping[str, Metric]

    def collect(self) -> Iterator[Metric]:
        """Yield the families, as a registry's collector does."""
        yield from self.families.values()


class MergedMetrics:
    """Merges the metrics of servers with those of the gateway, which are in `own`.

    Requests of the routes in `shared_routes` reach every server, so only the gateway's own count of them is
    used.
    """

    def __init__(self, own: CollectorRegistry, shared_routes: frozenset[str]) -> None:
        self._own = own
        self._shared_routes = shared_routes
        self._latest: dict[str, MetricFamilies] = {}
        self._ended = MetricFamilies({})

    def merge(self, texts: Mapping[str, str]) -> bytes:
        """Return the merged metrics in Prometheus' text format.

        `texts` are the metrics of the servers that are running, by server name. A server that was in an
        earlier call and is missing now has ended; its counts are kept.
        """
        for name in self._latest.keys() - texts.keys():
            self._ended = merge_families(self._ended, _only_cumulative(self._latest.pop(name)))
        self._latest |= {name: self._without_shared_routes(_parse(text)) for name, text in texts.items()}
        own = _parse(generate_latest(self._own).decode())
        return generate_latest(merge_families(*self._latest.values(), self._ended, own))

    def _without_shared_routes(self, metrics: MetricFamilies) -> MetricFamilies:
        return _filter_samples(
            metrics, lambda _, sample: sample.labels.get("route") not in self._shared_routes
        )


def merge_families(*servers: MetricFamilies) -> MetricFamilies:
    """Merge samples that have the same name and labels; only the gauges listed above are not added."""
    families: dict[str, Metric] = {}
    merged: dict[str, dict[SampleKey, Sample]] = {}
    for family in (family for server in servers for family in server.collect()):
        families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        samples = merged.setdefault(family.name, {})
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            samples[key] = _merge(family.name, samples[key], sample) if key in samples else sample
    for name, family in families.items():
        family.samples = list(merged[name].values())
    return MetricFamilies(families)


def _merge(family: str, first: Sample, second: Sample) -> Sample:
    values = (first.value, second.value)
    if family in MIN_GAUGES or family.endswith(CREATED_SUFFIX):
        return first._replace(value=min(filter(None, values), default=0.0))  # 0 means not known yet
    if family in EXTREME_GAUGES:
        return first._replace(value=max(values, key=abs))
    return first._replace(value=max(values) if family in MAX_GAUGES else sum(values))


def _parse(text: str) -> MetricFamilies:
    return MetricFamilies({family.name: family for family in text_string_to_metric_families(text)})


def _only_cumulative(metrics: MetricFamilies) -> MetricFamilies:
    """Return what a server has counted, without the gauges that describe its state."""
    return _filter_samples(
        metrics,
        lambda family, _: family.type in CUMULATIVE_TYPES or family.name.endswith(CREATED_SUFFIX),
    )


def _filter_samples(metrics: MetricFamilies, accepts: Callable[[Metric, Sample], bool]) -> MetricFamilies:
    families: dict[str, Metric] = {}
    for family in metrics.collect():
        families[family.name] = Metric(family.name, family.documentation, family.type)
        families[family.name].samples = [sample for sample in family.samples if accepts(family, sample)]
    return MetricFamilies(families)
