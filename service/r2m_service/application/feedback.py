"""A sample's feedback, checked: the policy's hidden states, or what was computed from them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from r2m.errors import Code, Problem
from r2m.tensors import Bytes, TensorValue, decode_base64
from r2m_service.application.contract import FeedbackIn, SampleIn, SplitIn
from r2m_service.application.scoring_items import Split
from r2m_service.domain.runs import Policy, Run


def decode_feedback(samples: Sequence[SampleIn]) -> None:
    """Replace base64 by its bytes, once; what is not base64 stays and is refused later.

    Blocking: megabytes take tens of milliseconds, which the event loop has not.
    """
    for sample in samples:
        given = sample.feedback
        if given is not None and isinstance(given.data, str):
            with contextlib.suppress(Problem):
                given.data = decode_base64(given.data)


def feedback_of(run: Run | None, sample: SampleIn) -> TensorValue | Split | None:
    """A sample's hidden states, as its run wants them, or what was computed from them.

    Raises:
        Problem: feedback_*, naming the field and what was expected.
    """
    given = sample.feedback
    if run is None or run.feedback != "policy":
        if given is None:
            return None
        where = "vanilla scoring" if run is None else f"a run with feedback {run.feedback}"
        raise Problem(Code.FEEDBACK_UNEXPECTED, f"{where} takes no hidden states", field="feedback")
    policy = run.policy
    if given is None:
        raise Problem(
            Code.FEEDBACK_MISSING,
            f"run {run.name!r} attends to its policy's hidden states and this sample has none; "
            f"[tokens, {policy.hidden_size}] was expected",
            field="feedback",
        )
    value = TensorValue(given.dtype, tuple(given.shape), feedback_bytes(given))
    if given.split is None or value.shape or value.dtype or len(value.data):
        if len(value.shape) == 2 and value.shape[1] != policy.hidden_size:
            raise Problem(
                Code.FEEDBACK_WIDTH,
                f"the hidden states are {value.shape[1]} wide, the run's policy is "
                f"{policy.hidden_size}",
                field="feedback.shape",
            )
        value.check()
    _require_convention(policy, given)
    if given.split is not None:
        return _split(sample.id, given, given.split, value, last_token=policy.last_token)
    states = value.shape[0] + (0 if policy.last_token else 1)
    if given.tokens is not None and given.tokens != states:
        raise Problem(
            Code.FEEDBACK_SHAPE,
            f"{given.tokens} tokens are stated, the shape holds the states of {states}",
            field="feedback.tokens",
        )
    return value


def _require_convention(policy: Policy, given: FeedbackIn) -> None:
    if given.hidden_state is not None and given.hidden_state != policy.hidden_state:
        raise Problem(
            Code.FEEDBACK_CONVENTION,
            f"the sample states {given.hidden_state}, the run {policy.hidden_state}",
            field="feedback.hidden_state",
        )
    if given.last_token is not None and given.last_token != policy.last_token:
        raise Problem(
            Code.FEEDBACK_CONVENTION,
            f"the sample states last_token {given.last_token}, the run {policy.last_token}",
            field="feedback.last_token",
        )


def _split(
    name: str, given: FeedbackIn, split: SplitIn, value: TensorValue, *, last_token: bool
) -> Split:
    """What the trainer computed; of states that are not here only their number can be checked.

    Raises:
        Problem: feedback_shape, feedback_dtype, feedback_not_finite.
    """
    states = (given.tokens or 0) - (0 if last_token else 1)
    if states < 1:
        raise Problem(
            Code.FEEDBACK_SHAPE,
            "with split the hidden states stay with you: feedback.tokens says how many tokens "
            f"prompt + response have, so that at least one has a state, got {given.tokens}",
            field="feedback.tokens",
        )
    if split.fused is not None and not math.isfinite(split.fused):
        raise Problem(
            Code.FEEDBACK_NOT_FINITE,
            f"v·c is {split.fused}: a finite number is needed",
            field="feedback.split.fused",
        )
    pooled = pooled_of(value) if value.shape else None
    return Split(name, states, split.head, split.fused, pooled)


def pooled_of(value: TensorValue, *, field: str = "feedback") -> npt.NDArray[np.float32]:
    """C and j of a checked value.

    Raises:
        Problem: feedback_dtype, feedback_shape, feedback_not_finite.
    """
    if value.dtype != "float32":
        raise Problem(
            Code.FEEDBACK_DTYPE,
            f"c and j are float32, got {value.dtype}",
            field=f"{field}.dtype",
        )
    if value.shape[0] != 2:
        raise Problem(
            Code.FEEDBACK_SHAPE,
            f"with split the two rows are c and j, got {value.shape[0]} rows",
            field=f"{field}.shape",
        )
    pooled = np.frombuffer(value.data, dtype="<f4").reshape(value.shape).astype(np.float32)
    if not np.isfinite(pooled).all():
        raise Problem(
            Code.FEEDBACK_NOT_FINITE,
            "c or j holds NaN or infinity; finite numbers are needed",
            field=f"{field}.data",
        )
    return pooled


def feedback_bytes(given: FeedbackIn) -> Bytes:
    """The bytes of a tensor; of base64, decoded.

    Raises:
        Problem: feedback_encoding.
    """
    if isinstance(given.data, str):
        return decode_base64(given.data)
    if isinstance(given.data, bytes | bytearray | memoryview):
        return given.data
    if given.data is None:
        return b""
    raise Problem(Code.FEEDBACK_ENCODING, "data is a base64 string", field="feedback.data")
