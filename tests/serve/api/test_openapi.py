"""Whatever is sent to a route, the answer is one that the description of the API announces.

Two checks are left out where they would ask for more than a schema can say or a dialect wants: that fields
which exclude each other may come together, and that other servers' clients never send 0 for false.
"""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi import checks

from tests.support.paths import ROOT

CASES = 150
sent: list[str] = []
NATIVE = ("/v1/rewards", "/v1/compare")
schema = schemathesis.openapi.from_path(ROOT / "docs" / "openapi.json")


@pytest.mark.heavy
@schema.parametrize()
@settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
def test_the_api_is_as_described(case: Any, address: str) -> None:
    sent.append(case.path)
    loose = [checks.positive_data_acceptance]
    if case.path not in NATIVE:
        loose.append(checks.negative_data_rejection)
    case.call_and_validate(base_url=address, timeout=60, excluded_checks=loose)


@pytest.mark.heavy
def test_there_were_cases_enough() -> None:
    assert len(sent) >= 2000
