"""Who shares a place in the fair queue."""

from app.serve.batching.request_context import ANONYMOUS_CALLER, RequestContext


def test_named_callers_are_told_apart_by_name_and_others_by_address() -> None:
    assert RequestContext(caller="trainer", host="10.0.0.1").fairness_key == "trainer"
    assert RequestContext(caller=ANONYMOUS_CALLER, host="10.0.0.1").fairness_key == "10.0.0.1"
