"""One sample: its text and its hidden states, checked as the server checks them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from r2m import int8
from r2m.errors import Code, Problem
from r2m.tensors import TensorValue
from r2m_client._samples import Sample
from r2m_client.testing._state import EMPTY_RESPONSE
from r2m_client.testing._texts import Counted, counted

if TYPE_CHECKING:
    import numpy.typing as npt

    from r2m_client.testing._backbone import Backbone
    from r2m_client.testing._state import Run


@dataclass(frozen=True, slots=True)
class Checked:
    """A sample as the test's functions get it, and how many tokens its text has."""

    sample: Sample
    text: Counted
    split: dict[str, Any] | None = None
    bytes: int | None = None

    @property
    def states(self) -> int | None:
        """How many hidden states came with it, or stay with the trainer."""
        states = self.sample.hidden_states
        if self.split is not None:
            return (self.sample.tokens or 0) - (self.sample.last_token is False)
        return None if states is None else len(states)


def checked(backbone: Backbone, run: Run | None, given: dict[str, Any]) -> Checked:
    """A sample whose text and hidden states can be used; the states become float32, or None.

    Args:
        backbone: counts the tokens.
        run: None for vanilla scoring.
        given: a sample of the request; its `feedback.data` is a TensorValue.

    Raises:
        Problem: text_* or feedback_*. Numbers that are not finite are `require_finite`'s.
    """
    text = counted(
        backbone,
        given,
        run.truncation if run else "none",
        run.empty_response if run else EMPTY_RESPONSE,
    )
    stated: dict[str, Any] = given.get("feedback") or {}
    prompt, response = given.get("prompt"), given.get("response")
    if not (given.get("messages") or given.get("token_ids")):
        prompt, response = prompt or "", response or ""
    sample = Sample(
        given["id"],
        prompt,
        response,
        _states(run, stated),
        given["format"] or "chat",
        given.get("group", ""),
        hidden_state=stated.get("hidden_state"),
        last_token=stated.get("last_token"),
        tokens=stated.get("tokens"),
        messages=given.get("messages"),
        tools=None if given.get("tools") is None else json.loads(given["tools"]),
        token_ids=given.get("token_ids"),
        finish_reason=given.get("finish_reason"),
        special_tokens=given.get("special_tokens"),
        truncation=given.get("truncation"),
    )
    value = stated.get("data")
    return Checked(sample, text, stated.get("split"), None if value is None else len(value.data))


def require_finite(sample: Sample) -> None:
    """Refuse hidden states with NaN or infinity.

    Raises:
        Problem: feedback_not_finite.
    """
    states = sample.hidden_states
    if states is None:
        return
    bad = np.argwhere(~np.isfinite(states))
    if len(bad):
        token, place = (int(n) for n in bad[0])
        raise Problem(
            Code.FEEDBACK_NOT_FINITE,
            f"{len(bad)} of {states.size} numbers are NaN or infinite, first at token {token}, "
            f"place {place}; finite numbers are needed",
            field="feedback.data",
        )


def _states(run: Run | None, given: dict[str, Any]) -> npt.NDArray[np.float32] | None:
    if run is None or run.feedback != "policy":
        if not given:
            return None
        where = "vanilla scoring" if run is None else f"a run with feedback {run.feedback}"
        raise Problem(Code.FEEDBACK_UNEXPECTED, f"{where} takes no hidden states", field="feedback")
    policy = run.policy
    if not given:
        raise Problem(
            Code.FEEDBACK_MISSING,
            f"run {run.name!r} attends to its policy's hidden states and this sample has none; "
            f"[tokens, {policy.hidden_size}] was expected",
            field="feedback",
        )
    value: TensorValue | None = given.get("data")
    if value is not None:
        if len(value.shape) == 2 and value.shape[1] != policy.hidden_size:
            raise Problem(
                Code.FEEDBACK_WIDTH,
                f"the hidden states are {value.shape[1]} wide, the run's policy is "
                f"{policy.hidden_size}",
                field="feedback.shape",
            )
        value.check()
    for key, expected, shown in (
        ("hidden_state", policy.hidden_state, ""),
        ("last_token", policy.last_token, "last_token "),
    ):
        stated = given.get(key)
        if stated is not None and stated != expected:
            raise Problem(
                Code.FEEDBACK_CONVENTION,
                f"the sample states {shown}{stated}, the run {expected}",
                field=f"feedback.{key}",
            )
    if given.get("split") is not None:
        states = (given.get("tokens") or 0) - (0 if policy.last_token else 1)
        if states < 1:
            raise Problem(
                Code.FEEDBACK_SHAPE,
                "with split the hidden states stay with you: feedback.tokens says how many tokens "
                f"prompt + response have, so that at least one has a state, got "
                f"{given.get('tokens')}",
                field="feedback.tokens",
            )
        return None
    assert value is not None
    states = value.shape[0] + (0 if policy.last_token else 1)
    if given.get("tokens") is not None and given["tokens"] != states:
        raise Problem(
            Code.FEEDBACK_SHAPE,
            f"{given['tokens']} tokens are stated, the shape holds the states of {states}",
            field="feedback.tokens",
        )
    return _float32(value)


def _float32(value: TensorValue) -> npt.NDArray[np.float32]:
    """The numbers, in memory of their own: the test's functions may keep or change them."""
    if value.dtype == "int8":
        return int8.decode(value.data, value.shape)
    if value.dtype == "bfloat16":
        bits = np.frombuffer(value.data, "<u2").astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).reshape(value.shape)
    stored = np.frombuffer(value.data, "<f2" if value.dtype == "float16" else "<f4")
    return stored.astype(np.float32).reshape(value.shape)
