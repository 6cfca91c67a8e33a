"""Signals on runs made by hand: when they fire, and what may be said of few healthy runs."""

import numpy as np
import pytest
from support.lab_runs import STEPS, fine, fooled

from lab.rlhf import GROUPS, K
from lab.signals import kind_of, lost_by, signals_table
from lab.watches import (
    apart_from_vanilla,
    audited_gap,
    beyond,
    longer_is_better,
    rejected_in_a_row,
    rescored_gap,
)


def test_a_signal_knows_nothing_of_what_is_to_come():
    """Steps without labels measure nothing; what came later must not stand in for them."""
    ratio = np.full(STEPS, np.nan)
    ratio[10:80:4], ratio[80:] = 1.0, 9.0
    fires = beyond("spread_ratio", 2.0)(fooled(1) | {"spread_ratio": ratio}, 0)
    assert fires == 80  # a fifth of 9 and four fifths of 1
    late = np.full(STEPS, np.nan)
    late[-3:] = 9.0
    assert beyond("spread_ratio", 2.0)(fooled(1) | {"spread_ratio": late}, 0) is None


def test_signals_by_hand():
    bad, good = fooled(1), fine(1)
    assert kind_of(bad) == "over-optimised"
    assert kind_of(good) == "healthy"
    at = audited_gap(1.0, 5.0)(bad, 0)
    assert at is not None
    assert at > 2  # not before there is a baseline
    assert audited_gap(1.0, 5.0)(good, 0) is None
    assert audited_gap(0.001, 5.0)(bad, 0) is None  # there never is one
    assert lost_by(bad, 10) == 0
    assert lost_by(bad, STEPS) == pytest.approx(1.0)
    ratio = np.linspace(1, 3, STEPS)
    assert beyond("spread_ratio", 2.0)(fooled(1) | {"spread_ratio": ratio}, 0) == pytest.approx(
        STEPS / 2, abs=4
    )
    rejected = np.zeros(STEPS)
    rejected[[3, 4, 9, 10, 11]] = 1
    assert rejected_in_a_row(3)(bad | {"rejected": rejected}, 0) == 11


def test_a_scale_that_moves_is_no_gap_where_the_first_responses_are_rescored():
    """A head that only changes its scale says of old responses what it says of new ones."""
    bad, good = fooled(1), fine(1)
    at = np.linspace(0, 1, STEPS)
    scale, shift = 1 + 9 * at, 50 * at
    for run in (bad, good):
        run["reward"] = run["reward"] * scale[:, None] + shift[:, None]
        run["first_mean"] = run["first_mean"] * scale + shift
        run["first_spread"] = run["first_spread"] * scale
    assert audited_gap(1.0, 5.0)(good, 0) is not None
    assert rescored_gap(1.0, 5.0)(good, 0) is None
    assert rescored_gap(1.0, 5.0)(bad, 0) is not None


def test_few_healthy_runs_have_no_false_alarms_to_count():
    bad = {seed: fooled(seed) for seed in range(5)}
    few = signals_table(
        {"frozen": bad, "good": {s: fine(s) for s in range(11)}}, name="signals", title="Signals"
    )
    assert few.rows == []
    assert "11 healthy runs say nothing" in few.text()
    table = signals_table(
        {"frozen": bad, "good": {s: fine(s) for s in range(12)}}, name="signals", title="Signals"
    )
    row = next(row for row in table.rows if "100.0%" in row[0] and "alarm" in row[0])
    assert row[1] == "5/5"
    assert row[-1].startswith("0/12")


def test_the_correlations_are_the_service_s():
    """Within groups for length; a moving Pearson for the frozen model's reward."""
    run = fine(3)
    assert longer_is_better(0.5)(run, 0) is None
    longer = run | {"length": np.round(4 * run["reward"])}
    assert longer_is_better(0.5)(longer, 0) == 4
    # Groups that differ in length alone say nothing: an advantage never sees it.
    between = run | {"length": np.tile(np.repeat(np.arange(GROUPS), K), (STEPS, 1))}
    assert longer_is_better(0.5)(between, 0) is None
    assert apart_from_vanilla(0.5)(run, 0) is None
    other = run["vanilla"].copy()
    other[80:] = -3 * other[80:]
    assert apart_from_vanilla(0.5)(run | {"vanilla": other}, 0) == pytest.approx(88, abs=10)
