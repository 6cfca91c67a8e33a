"""Intervals and tests against values computed elsewhere, by hand, or by counting."""

import math

import pytest

from r2m.statistics import sign_test, wilson


def test_wilson_by_hand():
    low, high = wilson(118, 184)  # the demo head's accuracy, computed by its own script
    assert (low, high) == pytest.approx((0.570, 0.707), abs=5e-4)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == pytest.approx(1.0)
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 1), (3, 3), (10, 2), (0, 7)])
def test_sign_test_counts_all_outcomes(better, worse):
    n, k = better + worse, min(better, worse)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    assert sign_test(better, worse) == pytest.approx(min(1.0, 2 * tail) if n else 1.0)


def test_sign_test_of_thousands_does_not_overflow():
    assert 0 < sign_test(5200, 4800) < 1e-3
    assert sign_test(5000, 5000) == 1.0
