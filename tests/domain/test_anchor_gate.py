"""Wrong accepts and wrong rejects by simulation; the whole table is docs/algorithm.md's."""

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "anchor_gate.py"


@pytest.fixture(scope="module")
def lab():
    spec = importlib.util.spec_from_file_location("anchor_gate", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["anchor_gate"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["anchor_gate"]


@pytest.mark.parametrize("pairs", [100, 200, 500, 1000])
@pytest.mark.parametrize("drift", [0.0, 0.5, 1.0, 2.0])
def test_a_harmful_head_goes_live_in_few_runs(lab, pairs, drift):
    found = lab.simulate(lab.ours, pairs=pairs, drift=drift, runs=20, seed=pairs)
    assert found.wrong_accept <= 0.05
    assert found.wrong_reject <= 0.02
    assert found.loss <= 100 * lab.MARGIN


def test_enough_pairs_let_a_good_head_pass(lab):
    found = lab.simulate(lab.ours, pairs=1000, drift=0.0, runs=20, seed=1)
    assert found.accepted > 0.6


def test_the_naive_gate_fails_open(lab):
    """One point lost a step, 200 pairs: what a gate must not do."""
    found = lab.simulate(lab.naive, pairs=200, drift=1.0, runs=20, seed=200)
    assert found.wrong_accept > 0.5
    assert found.loss > 4
