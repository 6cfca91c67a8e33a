"""Drift by hand and against scipy-like formulas written out, and verdicts that cannot fail open."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2m.statistics import spearman
from r2m_service.domain.gate import Drift, decide, measure_drift
from r2m_service.domain.method import Gate

GATE = Gate()
GROUPS = st.lists(
    st.lists(st.floats(-5, 5).map(lambda x: round(x, 2)), min_size=2, max_size=6),
    min_size=1,
    max_size=5,
)


def test_spearman_by_hand():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)  # 1 − 6·2/(4·15)
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(math.sqrt(3) / 2)
    assert spearman([1, 1], [1, 2]) is None
    assert spearman([1], [1]) is None


@given(GROUPS)
def test_drift_against_itself_is_none(groups):
    drift = measure_drift(groups, groups)
    assert drift.samples == sum(map(len, groups))
    assert drift.spread_ratio is None or drift.spread_ratio == pytest.approx(1.0)
    assert drift.rank_correlation is None or drift.rank_correlation == pytest.approx(1.0)


@given(GROUPS, st.floats(0.1, 10), st.lists(st.floats(-3, 3), min_size=5, max_size=5))
def test_drift_sees_scale_and_not_what_a_group_shares(groups, scale, shifts):
    moved = [
        [scale * r + shift for r in rewards] for rewards, shift in zip(groups, shifts, strict=False)
    ]
    drift = measure_drift(moved, groups)
    if drift.spread_ratio is not None:
        assert drift.spread_ratio == pytest.approx(scale, rel=1e-6)


def decided(**changes):
    drift = Drift(**{"spread_ratio": 1.0, "rank_correlation": 0.95, "samples": 32, **changes})
    return decide(GATE, finite=True, drift=drift).verdict


def test_verdicts():
    assert decided() == "accepted"
    assert decided(spread_ratio=2.01) == decided(spread_ratio=0.49) == "rejected"
    assert decided(rank_correlation=0.79) == "rejected"
    assert decided(spread_ratio=2.0, rank_correlation=0.8) == "accepted"
    assert decide(GATE, finite=False, drift=Drift(1.0, 1.0, 8)).verdict == "rejected"


def test_missing_evidence_is_never_accepted():
    assert decided(spread_ratio=None) == "undecided"
    assert decided(rank_correlation=None) == "undecided"
    assert decided(samples=0) == "undecided"
    assert decide(GATE, finite=True, drift=None).verdict == "undecided"
    assert decided(rank_correlation=float("nan")) != "accepted"
    assert decided(spread_ratio=float("nan")) != "accepted"


def test_a_gate_without_bounds_asks_for_finiteness_alone():
    bare = Gate(spread_min=None, spread_max=None, rank_correlation_min=None)
    assert decide(bare, finite=True, drift=None).verdict == "accepted"
    assert decide(bare, finite=False, drift=None).verdict == "rejected"
