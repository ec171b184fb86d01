"""All routes respond to generated requests as docs/openapi.json describes.

Two checks are excluded. Requests that match the schema may still be rejected, because a schema cannot say
that fields exclude each other. Adapters may accept requests that do not match the schema, because clients of
other servers send, for example, 0 for false.
"""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi import checks

from tests.support.paths import ROOT

MAX_EXAMPLES = 150
NATIVE_PATHS = ("/v1/rewards", "/v1/compare")
requested_paths: list[str] = []
schema = schemathesis.openapi.from_path(ROOT / "docs" / "openapi.json")


@pytest.mark.heavy
@schema.parametrize()
@settings(
    max_examples=MAX_EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
def test_responses_match_the_description(case: Any, address: str) -> None:
    requested_paths.append(case.path)
    excluded = [checks.positive_data_acceptance]
    if case.path not in NATIVE_PATHS:
        excluded.append(checks.negative_data_rejection)
    case.call_and_validate(base_url=address, timeout=60, excluded_checks=excluded)


@pytest.mark.heavy
def test_there_were_enough_requests() -> None:
    assert len(requested_paths) >= 2000
