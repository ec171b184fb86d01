"""Every Prometheus series, named once, on the registry that is passed in."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 180)
POWERS = tuple(2**n for n in range(14))
REWARDS = tuple(x / 2 for x in range(-10, 11))


class Metrics:
    """The series of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._of_passes(registry)
        self._of_texts(registry)
        self._of_losses(registry)
        self._of_models(registry)
        self.requests = Counter(
            "sparserm_requests", "Requests answered.", ["route", "method", "code"], registry=registry
        )
        self.request_seconds = Histogram(
            "sparserm_request_seconds", "Time from first byte to answer.", ["route"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.in_flight = Gauge("sparserm_requests_in_flight", "Requests being answered.", registry=registry)
        self.errors = Counter(
            "sparserm_errors", "Requests that failed, by cause.", ["cause"], registry=registry
        )
        self.stage_seconds = Histogram(
            "sparserm_stage_seconds", "Time of one stage: encode, wait, forward, head.", ["stage"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip

    def _of_passes(self, registry: CollectorRegistry) -> None:
        """What is said about what waits for the device, and about its passes."""
        self.queue_items = Gauge("sparserm_queue_items", "Items waiting for the device.", registry=registry)
        self.queue_tokens = Gauge("sparserm_queue_tokens", "Tokens waiting.", registry=registry)
        self.backlog = Gauge(
            "sparserm_backlog_tokens", "Tokens promised: being read, waiting or on the device.",
            registry=registry,
        )  # fmt: skip
        self.speed = Gauge(
            "sparserm_tokens_per_second", "Tokens answered a second while busy, lately.", registry=registry
        )
        self.budget = Gauge(
            "sparserm_batch_budget_tokens", "New tokens a pass may hold now.", registry=registry
        )
        self.batch_items = Histogram(
            "sparserm_batch_items", "Items in a forward pass.", buckets=POWERS, registry=registry
        )
        self.batch_tokens = Histogram(
            "sparserm_batch_tokens", "Tokens a forward pass computed.", buckets=POWERS, registry=registry
        )

    def _of_texts(self, registry: CollectorRegistry) -> None:
        """What is said about the texts that come."""
        self.input_tokens = Histogram(
            "sparserm_input_tokens", "Length of an item in tokens.", buckets=POWERS, registry=registry
        )
        self.tokens = Counter(
            "sparserm_tokens", "Tokens of scored items, by part.", ["part"], registry=registry
        )
        self.tokens_saved = Counter(
            "sparserm_tokens_saved", "Tokens not computed because a prefix was shared.", registry=registry
        )
        self.rendered = Counter(
            "sparserm_rendered", "Texts that came through a trainer's template, by what was recognised.",
            ["route", "mode", "family"], registry=registry,
        )  # fmt: skip
        self.truncated = Counter("sparserm_truncated", "Items whose text was cut.", registry=registry)

    def _of_losses(self, registry: CollectorRegistry) -> None:
        """What is said about items that were not scored at the first try, or at all."""
        self.dropped = Counter(
            "sparserm_dropped", "Items dropped because their caller had gone.", registry=registry
        )
        self.retried = Counter(
            "sparserm_batches_retried", "Passes that failed and were redone in halves.", registry=registry
        )
        self.failed = Counter(
            "sparserm_items_failed", "Items answered with an error of their own, by cause.", ["cause"],
            registry=registry,
        )  # fmt: skip
        self.non_finite = Counter(
            "sparserm_non_finite", "Items whose reward was NaN or infinite.", registry=registry
        )

    def _of_models(self, registry: CollectorRegistry) -> None:
        """What is said about reward models and their rewards."""
        self.scored = Counter("sparserm_scored", "Rewards given.", ["model"], registry=registry)
        self.rewards = Histogram(
            "sparserm_reward", "Rewards given, in training deviations.", ["model"],
            buckets=REWARDS, registry=registry,
        )  # fmt: skip
        self.active = Histogram(
            "sparserm_active_features", "Selected latents that fired on a response.", ["model"],
            buckets=POWERS, registry=registry,
        )  # fmt: skip
        self.drift = Gauge(
            "sparserm_drift_psi",
            "How far a window of responses is from the training ones: reward, distance, projections.",
            ["model", "caller", "of"], registry=registry,
        )  # fmt: skip
        self.info = Gauge(
            "sparserm_model_info", "One for each model served.",
            ["model", "task", "backbone", "backbone_digest", "sae_sha256", "layer"], registry=registry,
        )  # fmt: skip
