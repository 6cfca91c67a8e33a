"""The anchor gate's statistics: against an oracle, by properties, and by simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2m.statistics import paired_bounds
from r2m_service.domain.anchors import judge_anchors, level

TERMS = {"margin": 0.02, "alpha": 0.05, "looks": 20, "look": 1}


def score_by_search(n, b, c, delta):
    """Tango's statistic with the constrained likelihood maximised on a grid."""
    a = n - b - c
    low = max(0.0, -delta)
    q = np.linspace(low + 1e-9, (1 - delta) / 2 - 1e-9, 200_001)  # P(only the other is right)
    with np.errstate(divide="ignore", invalid="ignore"):
        fit = a * np.log(1 - 2 * q - delta)
        fit = fit + (b * np.log(q + delta) if b else 0) + (c * np.log(q) if c else 0)
    best = q[np.nanargmax(fit)]
    return (b - c - n * delta) / math.sqrt(n * (2 * best + delta - delta**2))


@pytest.mark.parametrize(
    ("n", "b", "c"), [(50, 5, 2), (200, 0, 0), (200, 3, 3), (500, 40, 60), (30, 0, 7)]
)
@pytest.mark.parametrize("z", [1.2816, 1.6449, 2.8070])
def test_the_bounds_are_where_the_score_test_turns(n, b, c, z):
    low, high = paired_bounds(n, b, c, z)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert score_by_search(n, b, c, low) == pytest.approx(z, abs=2e-3)
    assert score_by_search(n, b, c, high) == pytest.approx(-z, abs=2e-3)


def test_without_a_difference_the_interval_is_still_one():
    """Closed form; a normal interval would be the point 0 and accept anything."""
    z = 1.6449
    assert paired_bounds(200, 0, 0, z) == pytest.approx(
        (-z * z / (200 + z * z), z * z / (200 + z * z))
    )
    assert paired_bounds(0, 0, 0, z) == (-1.0, 1.0)


counts = st.tuples(st.integers(1, 400), st.integers(0, 200), st.integers(0, 200)).filter(
    lambda t: t[1] + t[2] <= t[0]
)


@given(counts, st.floats(0.5, 4))
def test_properties_of_the_bounds(found, z):
    n, b, c = found
    low, high = paired_bounds(n, b, c, z)
    assert low <= (b - c) / n + 1e-9
    assert high >= (b - c) / n - 1e-9
    assert paired_bounds(n, c, b, z) == pytest.approx((-high, -low))
    wider = paired_bounds(n, b, c, z + 0.5)
    assert wider[0] <= low + 1e-9
    assert wider[1] >= high - 1e-9


@given(st.integers(1, 50), st.floats(0.001, 0.2))
def test_the_looks_shares_never_add_up_to_more_than_alpha(looks, alpha):
    shares = [level(alpha, looks, look) for look in range(1, 40 * looks)]
    assert sum(shares) <= alpha
    assert sum(shares[:looks]) == pytest.approx(alpha / 2)
    assert all(a >= b for a, b in itertools.pairwise(shares))


def margins(n, right):
    return [1.0] * right + [-1.0] * (n - right)


def test_verdicts():
    same = margins(1000, 700)
    assert judge_anchors(same, same, same, **TERMS).verdict == "accepted"
    worse = margins(1000, 640)
    found = judge_anchors(worse, same, worse, **TERMS)
    assert (found.verdict, found.live_harmed) == ("rejected", True)
    assert "worse than reference" in found.reason
    found = judge_anchors(worse, worse, same, **TERMS)
    assert (found.verdict, found.live_harmed) == ("rejected", False)
    assert "worse than live" in found.reason
    few = margins(100, 70)
    found = judge_anchors(few, few, few, **TERMS)
    assert (found.verdict, found.superior) == ("undecided", False)
    none = judge_anchors([], [], [], **TERMS)
    assert (none.verdict, none.accuracy, none.live_harmed) == ("undecided", 0.0, False)
    assert judge_anchors(same, worse, worse, **TERMS).superior


def test_ties_count_half():
    found = judge_anchors([0.0, 1.0], [1.0, 0.0], [1.0, 1.0], **TERMS)
    assert (found.accuracy, found.live.accuracy) == (0.75, 1.0)
    assert (found.reference.better, found.reference.worse) == (0.5, 0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_judges_nothing(bad):
    with pytest.raises(ValueError, match="no number"):
        judge_anchors([bad], [1.0], [1.0], **TERMS)
    with pytest.raises(ValueError):
        judge_anchors([1.0], [1.0, 1.0], [1.0], **TERMS)


@given(st.integers(1, 100), st.integers(0, 300), st.integers(0, 300))
def test_later_looks_are_never_more_permissive(look, a, b):
    ours, theirs = margins(300, a), margins(300, b)
    early = judge_anchors(ours, theirs, theirs, **{**TERMS, "look": look})
    late = judge_anchors(ours, theirs, theirs, **{**TERMS, "look": look + 30})
    if late.verdict == "accepted":
        assert early.verdict == "accepted"
