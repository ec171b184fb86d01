"""What several servers tell of themselves, as one: counts are added, also those of servers that are gone.

A sum that fell when a server ends would look to Prometheus as if everything had begun anew.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

LEAST = frozenset({"sparserm_batch_budget_tokens", "process_start_time_seconds"})
MOST = frozenset({"sparserm_requests_in_flight", "sparserm_drift_psi", "sparserm_model_info", "python_info"})
LASTING = frozenset({"counter", "histogram"})
BEGUN = "_created"
Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class Told(Collector):
    """Families of series, as one server tells them."""

    families: Mapping[str, Metric]

    def collect(self) -> Iterator[Metric]:
        """As a registry would."""
        yield from self.families.values()


class Sums:
    """One server's /metrics out of several; `own` counts what is answered before any of them.

    Requests of the routes in `shared` reach every server at once and are counted here alone.
    """

    def __init__(self, own: CollectorRegistry, shared: frozenset[str]) -> None:
        self._own = own
        self._shared = shared
        self._last: dict[str, Told] = {}
        self._gone = Told({})

    def told(self, texts: Mapping[str, str]) -> bytes:
        """What the servers there are tell, by name, and what those have told that are there no more."""
        for name in self._last.keys() - texts.keys():
            self._gone = added(self._gone, _lasting(self._last.pop(name)))
        self._last |= {name: self._without_shared(_parsed(text)) for name, text in texts.items()}
        own = _parsed(generate_latest(self._own).decode())
        return generate_latest(added(*self._last.values(), self._gone, own))

    def _without_shared(self, told: Told) -> Told:
        return _only(told, lambda _, sample: sample.labels.get("route") not in self._shared)


def added(*several: Told) -> Told:
    """All of them as one; what is no count is the least, the most or the sum, whichever says something."""
    found: dict[str, Metric] = {}
    values: dict[str, dict[Key, Sample]] = {}
    for family in (family for told in several for family in told.collect()):
        found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        samples = values.setdefault(family.name, {})
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            samples[key] = _joined(family.name, samples[key], sample) if key in samples else sample
    for name, family in found.items():
        family.samples = list(values[name].values())
    return Told(found)


def _joined(family: str, one: Sample, other: Sample) -> Sample:
    values = (one.value, other.value)
    if family in LEAST or family.endswith(BEGUN):
        return one._replace(value=min(filter(None, values), default=0.0))  # nought is: not known yet
    return one._replace(value=max(values) if family in MOST else sum(values))


def _parsed(text: str) -> Told:
    return Told({family.name: family for family in text_string_to_metric_families(text)})


def _lasting(told: Told) -> Told:
    """What a server has counted, without what it was like."""
    return _only(told, lambda family, _: family.type in LASTING or family.name.endswith(BEGUN))


def _only(told: Told, wanted: Callable[[Metric, Sample], bool]) -> Told:
    found: dict[str, Metric] = {}
    for family in told.collect():
        found[family.name] = Metric(family.name, family.documentation, family.type)
        found[family.name].samples = [sample for sample in family.samples if wanted(family, sample)]
    return Told(found)
