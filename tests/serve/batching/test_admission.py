"""Admission control: refusals that say when to retry, and the estimate of a text's tokens."""

import pytest
from prometheus_client import CollectorRegistry

from app.errors import InvalidInput, Overloaded
from app.serve.batching.admission import MAX_RETRY_AFTER_S, AdmissionControl, BatchLoad
from app.serve.batching.request_context import RequestContext
from app.serve.metrics import Metrics

IDLE = BatchLoad(
    queued_tokens=0, processed_tokens=0, slot_tokens=100, batch_tokens=100, tokens_ahead=lambda: 0
)


def create_admission(max_tokens: int = 1000) -> AdmissionControl:
    return AdmissionControl(max_tokens, Metrics(CollectorRegistry()))


def create_load(queued_tokens: int, tokens_ahead: int) -> BatchLoad:
    """A load under which a request of 100 tokens completes after `tokens_ahead` + 100, if nothing runs."""
    return BatchLoad(
        queued_tokens=queued_tokens,
        processed_tokens=0,
        slot_tokens=100,
        batch_tokens=100,
        tokens_ahead=lambda: tokens_ahead,
    )


def test_a_request_over_the_limit_is_refused_for_good_and_others_for_now() -> None:
    admission = create_admission()
    with pytest.raises(InvalidInput, match="1001"):
        admission.reserve(1001, RequestContext(), IDLE)
    with admission.reserve(900, RequestContext(), IDLE):
        with pytest.raises(Overloaded):
            admission.reserve(200, RequestContext(), create_load(900, 900))
        with admission.reserve(100, RequestContext(), create_load(900, 900)):
            assert admission.reserved_tokens == 1000
    assert admission.reserved_tokens == 0


def test_a_request_that_would_be_late_is_told_when_to_retry() -> None:
    admission = create_admission(10**6)
    admission.record_batch(1000, 1.0)
    with admission.reserve(50_000, RequestContext(timeout_s=100), IDLE):
        with admission.reserve(100, RequestContext(timeout_s=2), create_load(50_000, 500)):
            pass
        with pytest.raises(Overloaded) as refused:
            admission.reserve(100, RequestContext(timeout_s=2), create_load(50_000, 50_000))
        with admission.reserve(100, RequestContext(timeout_s=100), create_load(50_000, 50_000)):
            pass
    assert refused.value.retry_after_s == min(MAX_RETRY_AFTER_S, 49)


def test_an_idle_server_accepts_any_request() -> None:
    admission = create_admission(10**6)
    admission.record_batch(10, 10.0)
    with admission.reserve(10**6, RequestContext(timeout_s=0.01), IDLE):
        pass


def test_the_token_estimate_is_learnt_and_then_corrected() -> None:
    admission = create_admission()
    for _ in range(50):
        admission.update_token_ratio(10_000, 2_000)
    assert admission.estimate_tokens(1000) == pytest.approx(200, rel=0.05)
    with admission.reserve(200, RequestContext(), IDLE) as reservation:
        reservation.resize(300)
        assert admission.reserved_tokens == 300
        reservation.release(100)
        assert admission.reserved_tokens == 200
    assert admission.reserved_tokens == 0
