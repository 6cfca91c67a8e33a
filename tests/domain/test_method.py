"""ω against hand-computed values, profiles, and the checks of every key."""

import math

import pytest
from pydantic import TypeAdapter, ValidationError

from r2m_service.domain.method import Gate, MethodSettings, Omega, with_defaults

METHOD = TypeAdapter(MethodSettings)


def resolve(given, *, state_width=576, attends=True):
    return METHOD.validate_python(with_defaults(given, state_width=state_width, attends=attends))


def test_cosine_omega_by_hand():
    omega = Omega(kind="cosine", total_steps=6, floor=0.6)
    # ½ cos(π t / 6) + ½ at t = 1 … 6: (½√3+1)/2, ¾, ½, ¼, …, 0; the floor is 0.6.
    by_hand = [(math.sqrt(3) / 2 + 1) / 2, 0.75, 0.6, 0.6, 0.6, 0.6, 0.6]
    assert [omega.at(t) for t in range(1, 8)] == pytest.approx(by_hand)
    low = Omega(kind="cosine", total_steps=6, floor=0.0)
    assert [low.at(t) for t in (3, 4, 6)] == pytest.approx([0.5, 0.25, 0.0])
    assert low.at(9) == pytest.approx(0.0)  # past T it stays; the cosine alone would climb again


@pytest.mark.parametrize(("floor", "share"), [(0.6, 0.44), (0.7, 0.37)])
def test_cosine_reaches_its_floor_where_the_method_says(floor, share):
    total = 10_000
    omega = Omega(kind="cosine", total_steps=total, floor=floor)
    first = next(t for t in range(1, total) if omega.at(t) == floor)
    assert first / total == pytest.approx(share, abs=0.005)


def test_ramp_and_constant_by_hand():
    ramp = Omega(kind="ramp", steps=4, floor=0.6)
    assert [ramp.at(t) for t in (1, 2, 4, 5)] == pytest.approx([0.9, 0.8, 0.6, 0.6])
    assert Omega(kind="constant", value=0.3).at(7) == 0.3


def test_guarded_is_the_default_with_the_designs_numbers():
    method = resolve({}, state_width=4096)
    assert method.profile == "guarded"
    assert method.width == 2048
    assert method.omega.at(1) == 0.6
    assert method.kl_weight == 1.0
    assert method.learning_rate == pytest.approx(1.4e-5, rel=0.02)
    assert (method.weight_decay, method.max_grad_norm) == (0.0, 1.0)
    assert method.labels == "outside_first"
    assert method.gate == Gate(spread_min=0.5, spread_max=2.0, rank_correlation_min=0.8)
    assert resolve({"width": 256}).learning_rate == pytest.approx(1e-4, rel=0.05)


def test_paper_is_the_paper():
    method = resolve(
        {"profile": "paper", "omega": {"kind": "cosine", "total_steps": 100, "floor": 0.7}}
    )
    assert (method.alpha, method.learning_rate, method.width) == (0.3, 1e-6, 2048)
    assert method.max_grad_norm is None
    assert method.kl_weight == 0.0
    assert method.labels == "pseudo"
    assert not method.gate.checks_drift
    with pytest.raises(ValueError, match="number of rounds T"):
        resolve({"profile": "paper"})


def test_a_part_of_the_gate_may_be_given():
    assert resolve({"gate": {"spread_max": 3.0}}).gate == Gate(spread_max=3.0)
    paper = {"profile": "paper", "omega": {"kind": "constant", "value": 0.6}}
    assert resolve({**paper, "gate": {"spread_max": 3.0}}).gate == Gate(
        spread_min=None,
        spread_max=3.0,
        rank_correlation_min=None,
        anchors_every=None,
        freeze_after=None,
    )


def test_no_attention_has_no_omega():
    assert resolve({}, attends=False).omega.at(1) == 1.0
    with pytest.raises(ValueError, match="no omega"):
        resolve({"omega": {"kind": "constant", "value": 0.5}}, attends=False)


def test_numbers_of_a_protobuf_struct_are_floats():
    method = resolve({"width": 256.0, "seed": 3.0})
    assert (method.width, method.seed) == (256, 3)
    assert isinstance(method.width, int)


@pytest.mark.parametrize(
    "given",
    [
        {"widht": 3},
        {"width": 0},
        {"width": 2.5},
        {"width": "many"},
        {"alpha": -0.1},
        {"alpha": float("nan")},
        {"learning_rate": 0},
        {"learning_rate": float("inf")},
        {"weight_decay": -1},
        {"kl_weight": float("nan")},
        {"max_grad_norm": 0},
        {"seed": -1},
        {"labels": "mine"},
        {"omega": {"kind": "cosine", "floor": 0.6}},
        {"omega": {"kind": "constant", "value": 1.5}},
        {"omega": {"kind": "constant", "value": 0.5, "floor": 0.1}},
        {"omega": {"kind": "ramp", "steps": 0, "floor": 0.5}},
        {"omega": {"kind": "sine"}},
        {"omega": 0.6},
        {"gate": {"spread_min": 3.0}},
        {"gate": {"spread_minimum": 3.0}},
        {"gate": {"rank_correlation_min": 1.5}},
        {"gate": None},
        {"profile": "bold"},
    ],
)
def test_every_wrong_setting_is_refused(given):
    with pytest.raises((ValidationError, ValueError)):
        resolve(given)
