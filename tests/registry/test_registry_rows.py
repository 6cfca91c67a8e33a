"""Settings as JSON: whole, exact, and never completed from a later version's defaults."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from registry_makers import make_run, refuses

from r2m.errors import Code
from r2m_service.domain.method import Gate, MethodSettings, Omega, with_defaults
from r2m_service.domain.runs import Policy
from r2m_service.registry.rows import settings_from_json, settings_to_json

positive = st.floats(0, 1e300, exclude_min=True)
rates = st.floats(0, 1000, exclude_min=True)
share = st.floats(0, 1)
omegas = st.one_of(
    st.builds(Omega, kind=st.just("constant"), value=share),
    st.builds(Omega, kind=st.just("cosine"), total_steps=st.integers(1, 2**31 - 1), floor=share),
    st.builds(Omega, kind=st.just("ramp"), steps=st.integers(1, 2**31 - 1), floor=share),
)
gates = st.builds(
    Gate,
    spread_min=st.none() | st.floats(0.01, 0.9),
    spread_max=st.none() | st.floats(1.0, 9.0),
    rank_correlation_min=st.none() | st.floats(-1, 1),
)


@settings(deadline=None, derandomize=True)
@given(
    omega=omegas,
    gate=gates,
    learning_rate=rates,
    alpha=share,
    max_grad_norm=st.none() | positive,
    width=st.integers(1, 65536),
    seed=st.integers(0, 2**53 - 1),
)
def test_settings_come_back_to_the_last_bit(**changes: Any) -> None:
    method = replace(make_run().method, **changes)
    assert settings_from_json(MethodSettings, settings_to_json(method)) == method


@pytest.mark.parametrize("profile", ["paper", "guarded"])
def test_a_profiles_settings_come_back(profile: str) -> None:
    omega = {"kind": "cosine", "total_steps": 7, "floor": 0.6}
    resolved = with_defaults({"profile": profile, "omega": omega}, state_width=4096, attends=True)
    method = MethodSettings(
        **{**resolved, "omega": Omega(**omega), "gate": Gate(**resolved["gate"])}
    )
    assert settings_from_json(MethodSettings, settings_to_json(method)) == method


def test_a_policy_comes_back() -> None:
    policy = Policy(hidden_size=896, hidden_state="pre_norm", last_token=False)
    assert settings_from_json(Policy, settings_to_json(policy)) == policy


def test_a_missing_key_is_no_default() -> None:
    stored = json.loads(settings_to_json(make_run().method))
    assert MethodSettings.__dataclass_fields__["seed"].default == 0
    del stored["seed"]
    with refuses(Code.STORAGE_FAILED, "MethodSettings cannot be read by this version"):
        settings_from_json(MethodSettings, json.dumps(stored))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '{"hidden_size": 1}',
        '{"hidden_size": 1, "hidden_state": "post_norm", "last_token": true, "new": 1}',
    ],
)
def test_what_is_not_a_policy_is_refused(text: str) -> None:
    with refuses(Code.STORAGE_FAILED, "Policy"):
        settings_from_json(Policy, text)


def test_a_value_out_of_its_bounds_is_refused() -> None:
    stored = json.loads(settings_to_json(make_run().method))
    stored["omega"]["floor"] = 2.0
    with refuses(Code.STORAGE_FAILED, "MethodSettings"):
        settings_from_json(MethodSettings, json.dumps(stored))


@dataclass(frozen=True)
class Pair:
    both: tuple[int, int]


def test_a_type_that_json_changes_is_noticed_when_it_is_written() -> None:
    with pytest.raises(AssertionError):
        settings_to_json(Pair((1, 2)))
