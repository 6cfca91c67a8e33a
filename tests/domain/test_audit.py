"""The audited gap's CUSUM, and the hashes that mark and divide."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_service.domain.audit import (
    ALARM,
    BASELINE,
    WARN,
    WINDOW,
    AuditState,
    K,
    Moments,
    marked_for_audit,
    use_of,
)


def feed(state, rewards, grades):
    for reward, grade in zip(rewards, grades, strict=True):
        state = state.add(float(reward), float(grade))
    return state


def pairs(draw, count, correlation, shift=0.0):
    """Rewards and grades of unit spread; rewards run ahead by `shift` standard deviations."""
    grades = draw.standard_normal(count)
    noise = draw.standard_normal(count)
    rewards = correlation * grades + math.sqrt(1 - correlation**2) * noise
    return 3 + 2 * (rewards + shift), 10 * grades - 5


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_moments(values):
    state = Moments()
    for value in values:
        state = state.add(value)
    assert state.mean == pytest.approx(np.mean(values), abs=1e-6)
    assert state.deviation == pytest.approx(np.std(values), abs=1e-3, rel=1e-6)


def test_the_sum_by_hand():
    draw = np.random.default_rng(0)
    rewards, grades = pairs(draw, BASELINE, 0.5)
    state = feed(AuditState(), rewards, grades)
    assert (state.judged, state.gap, state.cusum, state.note) == (BASELINE, None, 0.0, "")
    z_r = (rewards.mean(), rewards.std())
    z_g = (grades.mean(), grades.std())
    expected = 0.0
    for _ in range(3):
        more_r, more_g = pairs(draw, WINDOW, 0.5, shift=1.0)
        gap = np.mean((more_r - z_r[0]) / z_r[1] - (more_g - z_g[0]) / z_g[1])
        state = feed(state, more_r, more_g)
        expected = max(0.0, expected + gap - K)
        assert state.gap == pytest.approx(gap)
        assert state.cusum == pytest.approx(expected)


def test_an_alarm_stays_until_it_is_lifted():
    draw = np.random.default_rng(1)
    state = feed(AuditState(), *pairs(draw, BASELINE, 0.5))
    while state.advice == "ok":
        state = feed(state, *pairs(draw, WINDOW, 0.5, shift=2.0))
    assert state.advice == "warn"
    assert WARN <= state.cusum < ALARM
    while state.advice == "warn":
        state = feed(state, *pairs(draw, WINDOW, 0.5, shift=2.0))
    for _ in range(20):
        state = feed(state, *pairs(draw, WINDOW, 0.5, shift=-2.0))
    assert (state.advice, state.cusum) == ("stop", 0.0)
    lifted = state.reset()
    assert (lifted.advice, lifted.judged, lifted.reward) == ("ok", state.judged, state.reward)


def test_flat_grades_neither_divide_nor_alarm():
    state = feed(AuditState(), range(BASELINE), [1.0] * BASELINE)
    assert "no gap to measure" in state.note
    state = feed(state, [100.0] * 100, [0.0] * 100)
    assert (state.gap, state.advice, state.judged) == (None, "ok", BASELINE + 100)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_alone(bad):
    with pytest.raises(ValueError, match="finite"):
        AuditState().add(bad, 0.0)
    with pytest.raises(ValueError, match="finite"):
        AuditState().add(0.0, bad)


@settings(max_examples=20)
@given(st.integers(0, 200), st.integers(0, 1000))
def test_it_can_be_stored_at_any_point(count, seed):
    state = feed(AuditState(), *pairs(np.random.default_rng(seed), count, 0.3))
    assert AuditState.from_dict(json.loads(json.dumps(state.to_dict()))) == state
    assert AuditState.from_dict({}) == AuditState()


@pytest.mark.parametrize("correlation", [0.3, 0.6])
def test_false_alarms_are_rare_and_a_gap_is_found_soon(correlation):
    draw = np.random.default_rng(7)
    false = 0
    delays = []
    for _ in range(60):
        state = feed(AuditState(), *pairs(draw, BASELINE, correlation))
        healthy = feed(state, *pairs(draw, 50 * WINDOW, correlation))
        false += healthy.advice == "stop"
        windows = 0
        while state.advice != "stop":
            state = feed(state, *pairs(draw, WINDOW, correlation, shift=1.5))
            windows += 1
        delays.append(windows)
    assert false <= 3
    assert np.median(delays) <= 6


@given(st.integers(0, 2**53 - 1), st.text(max_size=30))
def test_decisions_are_for_good(seed, unit):
    assert marked_for_audit(seed, unit, 1.0)
    assert not marked_for_audit(seed, unit, 0.0)
    assert use_of(seed, unit, 1.0) == "judge"
    assert use_of(seed, unit, 0.0) == "train"
    assert use_of(seed, unit, 0.5) == use_of(seed, unit, 0.5)


def test_rates_are_kept_and_the_two_hashes_are_independent():
    units = [f"prompt {n}" for n in range(20_000)]
    marked = np.array([marked_for_audit(3, one, 0.1) for one in units])
    judges = np.array([use_of(3, one, 0.4) == "judge" for one in units])
    assert marked.mean() == pytest.approx(0.1, abs=0.01)
    assert judges.mean() == pytest.approx(0.4, abs=0.015)
    assert judges[marked].mean() == pytest.approx(0.4, abs=0.05)
    other = np.array([use_of(4, one, 0.4) == "judge" for one in units])
    assert (judges == other).mean() == pytest.approx(0.52, abs=0.02)


def test_the_hash_is_pinned():
    """A change would move labels from training to judging in runs that exist."""
    assert [use_of(0, one, 0.5) for one in "abcdef"] == PINNED


PINNED = ["judge", "train", "train", "train", "train", "train"]
