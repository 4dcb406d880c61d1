"""Every operator of the package against the battery."""

from __future__ import annotations

from tests.conformance.operators import OPERATOR_CASES, OperatorConformance, pytest_cases


@pytest_cases(OPERATOR_CASES)
class TestOperators(OperatorConformance):
    pass
