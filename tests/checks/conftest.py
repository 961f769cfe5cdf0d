"""A check runs the reference and each wrong version of it, thousands of times in a test: types are left off."""

import pytest

from tests import typecheck


@pytest.fixture(scope="module", autouse=True)
def types_left_off():
    """Check no types: tests of each part of l1_ref do, and with them a check takes more than twice as long."""
    with typecheck.left_off():
        yield
