"""All Prometheus series of the server; each attribute has the name of its series."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 180)
POWERS_OF_TWO = tuple(2**n for n in range(14))
REWARDS = tuple(x / 2 for x in range(-10, 11))


class Metrics:
    """The series of one server, on the registry that is passed in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._add_requests(registry)
        self._add_batching(registry)
        self._add_texts(registry)
        self._add_failures(registry)
        self._add_models(registry)

    def _add_requests(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "sparserm_requests", "Requests answered.", ["route", "method", "code"], registry=registry
        )
        self.request_seconds = Histogram(
            "sparserm_request_seconds", "Time from the first byte of a request to its response.", ["route"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.requests_in_flight = Gauge(
            "sparserm_requests_in_flight", "Requests that are being processed.", registry=registry
        )
        self.errors = Counter(
            "sparserm_errors", "Requests that failed, by cause.", ["cause"], registry=registry
        )
        self.stage_seconds = Histogram(
            "sparserm_stage_seconds", "Time of one stage: encode, wait, forward, head.", ["stage"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip

    def _add_batching(self, registry: CollectorRegistry) -> None:
        self.queue_items = Gauge("sparserm_queue_items", "Items waiting for the device.", registry=registry)
        self.queue_tokens = Gauge(
            "sparserm_queue_tokens", "Tokens of the items waiting for the device.", registry=registry
        )
        self.backlog_tokens = Gauge(
            "sparserm_backlog_tokens", "Tokens of accepted items: being encoded, waiting or on the device.",
            registry=registry,
        )  # fmt: skip
        self.tokens_per_second = Gauge(
            "sparserm_tokens_per_second", "Tokens scored per second while busy, as a recent average.",
            registry=registry,
        )  # fmt: skip
        self.batch_budget_tokens = Gauge(
            "sparserm_batch_budget_tokens", "New tokens that a batch may have at present.", registry=registry
        )
        self.batch_items = Histogram(
            "sparserm_batch_items", "Items in a batch.", buckets=POWERS_OF_TWO, registry=registry
        )
        self.batch_tokens = Histogram(
            "sparserm_batch_tokens", "Tokens that a batch computed.", buckets=POWERS_OF_TWO, registry=registry
        )

    def _add_texts(self, registry: CollectorRegistry) -> None:
        self.input_tokens = Histogram(
            "sparserm_input_tokens", "Length of an item in tokens.", buckets=POWERS_OF_TWO, registry=registry
        )
        self.tokens = Counter(
            "sparserm_tokens", "Tokens of scored items, by part.", ["part"], registry=registry
        )
        self.tokens_saved = Counter(
            "sparserm_tokens_saved", "Tokens not computed because a prefix was shared.", registry=registry
        )
        self.rendered = Counter(
            "sparserm_rendered", "Texts with a trainer's chat markup, by the template that was recognised.",
            ["route", "mode", "family"], registry=registry,
        )  # fmt: skip
        self.truncated = Counter("sparserm_truncated", "Items whose text was truncated.", registry=registry)

    def _add_failures(self, registry: CollectorRegistry) -> None:
        self.dropped = Counter(
            "sparserm_dropped", "Items dropped because their caller disconnected.", registry=registry
        )
        self.batches_retried = Counter(
            "sparserm_batches_retried", "Batches that failed and were run again in halves.", registry=registry
        )
        self.items_failed = Counter(
            "sparserm_items_failed", "Items that got an error of their own, by cause.", ["cause"],
            registry=registry,
        )  # fmt: skip
        self.non_finite = Counter(
            "sparserm_non_finite", "Items whose reward was NaN or infinite.", registry=registry
        )

    def _add_models(self, registry: CollectorRegistry) -> None:
        self.scored = Counter("sparserm_scored", "Rewards returned.", ["model"], registry=registry)
        self.reward = Histogram(
            "sparserm_reward", "Rewards returned, in standard deviations of the training rewards.", ["model"],
            buckets=REWARDS, registry=registry,
        )  # fmt: skip
        self.active_features = Histogram(
            "sparserm_active_features", "Selected latents that fired on a response.", ["model"],
            buckets=POWERS_OF_TWO, registry=registry,
        )  # fmt: skip
        self.drift_psi = Gauge(
            "sparserm_drift_psi",
            "Population stability index of recent responses against training: reward, distance, projections.",
            ["model", "caller", "of"], registry=registry,
        )  # fmt: skip
        self.concept_contribution = Gauge(
            "sparserm_concept_contribution",
            "Mean contribution of a concept to recent rewards, in standard deviations of training rewards.",
            ["model", "caller", "concept"], registry=registry,
        )  # fmt: skip
        self.model_info = Gauge(
            "sparserm_model_info", "1 for each served model.",
            ["model", "task", "backbone", "backbone_digest", "sae_sha256", "layer"], registry=registry,
        )  # fmt: skip
