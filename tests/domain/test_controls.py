"""Controls: the running difference, its interval at all looks, and which make sense."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2m_service.domain.controls import (
    ERROR,
    FEWEST_PAIRS,
    TIGHTEST_AT,
    Comparison,
    why_senseless,
)

KINDS = ["shuffled", "backbone", "none"]


def compared(margins):
    found = Comparison()
    for one in margins:
        found = found.add(*one)
    return found


def radius(n, sigma, rho):
    """As the paper writes it (2103.06476, eq. 2.8), independently of the code's form."""
    inner = n * rho**2 + 1
    return sigma * math.sqrt(2 * inner / (n**2 * rho**2) * math.log(math.sqrt(inner) / ERROR))


def best_rho(n):
    """Where the radius at n pairs is least, by looking."""
    grid = np.geomspace(1e-3, 10, 20_000)
    return grid[np.argmin([radius(n, 1.0, rho) for rho in grid])]


def test_the_interval_is_the_paper_s_and_tightest_where_it_says():
    rho = best_rho(TIGHTEST_AT)
    margins = [(1.0, -1.0)] * 40 + [(-1.0, 1.0)] * 30 + [(1.0, 2.0)] * 130
    found = compared(margins)
    n = len(margins)
    d = np.array([1.0] * 40 + [-1.0] * 30 + [0.0] * 130 + [1.0, -1.0])  # two pairs more
    assert found.difference == pytest.approx(10 / n)
    low, high = found.interval
    assert (high - low) / 2 == pytest.approx(radius(n, d.std(), rho), rel=1e-3)
    assert (high + low) / 2 == pytest.approx(found.difference)


def test_sums_are_what_they_say():
    found = compared([(2.0, 1.0), (0.0, -1.0), (-3.0, 0.0)])
    assert (found.pairs, found.head, found.control) == (3, 1.5, 1.5)
    assert found.discordant == 0.25 + 0.25
    assert found.head_bt == pytest.approx(sum(np.logaddexp(0, [-2.0, 0.0, 3.0])))
    assert found.control_bt == pytest.approx(sum(np.logaddexp(0, [-1.0, 1.0, 0.0])))
    assert compared([(800.0, -800.0)]).control_bt == pytest.approx(800.0)


@given(st.lists(st.tuples(*[st.sampled_from([-1.0, 0.0, 2.0])] * 2), max_size=60), st.integers(0))
def test_parts_add_up(margins, at):
    at %= len(margins) + 1
    whole, parts = compared(margins), compared(margins[:at]) + compared(margins[at:])
    assert (parts.pairs, parts.head, parts.control) == (whole.pairs, whole.head, whole.control)
    assert parts.discordant == whole.discordant
    assert parts.verdict == whole.verdict


def test_a_control_as_good_is_seldom_called_otherwise_whenever_one_looks():
    """2,000 pairs, looked at after each: 5 % of the runs at most may ever be called."""
    draw, called = np.random.default_rng(1), 0
    for _ in range(300):
        right = draw.random((2000, 2)) < 0.6
        d = right[:, 0].astype(float) - right[:, 1]
        n = np.arange(1, len(d) + 1)
        looks = range(FEWEST_PAIRS, len(d) + 1, 5)
        sums, squares = np.cumsum(d), np.cumsum(d * d)
        called += any(
            Comparison(int(n[k - 1]), float(sums[k - 1]), 0.0, float(squares[k - 1])).verdict
            != "no_difference_yet"
            for k in looks
        )
    assert called / 300 <= ERROR


@pytest.mark.parametrize(("better", "verdict"), [(0, "feedback_pays"), (1, "control_is_better")])
def test_a_real_difference_is_found(better, verdict):
    draw = np.random.default_rng(2)
    found = Comparison()
    for _ in range(400):
        margins = [1.0 if draw.random() < 0.55 else -1.0 for _ in range(2)]
        margins[better] = 1.0 if draw.random() < 0.75 else -1.0
        found = found.add(*margins)
    assert found.verdict == verdict


def test_no_verdict_of_a_handful():
    assert Comparison().verdict == "too_few_pairs"
    assert Comparison().interval is None
    few = compared([(1.0, -1.0)] * (FEWEST_PAIRS - 1))
    assert few.verdict == "too_few_pairs"
    assert few.add(1.0, -1.0).verdict == "feedback_pays"
    low, high = compared([(1.0, -1.0)] * 3).interval
    assert (low, high) == (-1.0, 1.0)  # three of three are no certainty


@pytest.mark.parametrize(
    ("feedback", "labels", "controls", "word"),
    [
        ("policy", "outside_first", KINDS, None),
        ("policy", "pseudo", [], None),
        ("none", "outside_only", [], None),
        ("backbone", "outside_only", ["shuffled", "none"], None),
        ("backbone", "outside_only", KINDS, "same head again"),
        ("none", "outside_only", ["shuffled"], "takes no controls, got shuffled"),
        ("policy", "pseudo", ["none"], "judged by outside labels"),
    ],
)
def test_which_make_sense(feedback, labels, controls, word):
    said = why_senseless(controls, feedback, labels)
    assert (said is None) if word is None else word in said
