"""What a caller hands in: samples and groups, and how they become JSON and tensors."""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass, field
from operator import index
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from r2m.tensors import TensorValue

WireDtype = Literal["bfloat16", "float16", "float32", "int8"]
WIRE_DTYPES: tuple[WireDtype, ...] = ("bfloat16", "float16", "float32", "int8")
Convention = Literal["post_norm", "pre_norm"]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One response: prompt and response, or a whole conversation, or token ids.

    Attributes:
        id: names the sample within the call.
        prompt: the query's text.
        response: the response's text.
        hidden_states: the policy's last-layer states of this text, [S, D_p]: a numpy array, a
            torch tensor of any device, a nested list, or an r2m.tensors.TensorValue (what
            `ChannelScales.quantize` gives). float32 and wider are sent as the client's
            `wire_dtype`, 16-bit ones as they are unless that is int8. Do not change an array
            until the call is over: it is not copied.
        format: "chat" (the reward model's chat template) or "raw" (prompt + response).
        group: the query this response answers; score only echoes it.
        hidden_state: whether the states were taken after the final norm or before it; None: not
            stated. The server compares it with the run's.
        last_token: whether the last token's state is among them; None: not stated.
        tokens: tokens of prompt + response under the policy's tokenizer; None: not stated. The
            server compares it with S.
        messages: instead of prompt and response: turns as the reward model's chat template takes
            them ({"role", "content", "name", "tool_call_id", "tool_calls"}); the last one, the
            assistant's, is judged.
        tools: function schemas for the chat template.
        token_ids: instead of a text: ids of the reward model's own tokenizer.
        finish_reason: why generation ended; comes back with the reward.
        special_tokens: of format "raw". False: the text brings its own special tokens, and none
            are added; None: the tokenizer's own are, but for a BOS that the text begins with.
        truncation: of format "raw": "left" or "right", the side that is cut of a text that is too
            long; None: that is an error, unless the run has a truncation.
    """

    id: str
    prompt: str | None = None
    response: str | None = None
    hidden_states: Any = field(default=None, repr=False)
    format: Literal["chat", "raw"] = "chat"
    group: str = ""
    _: KW_ONLY
    hidden_state: Convention | None = None
    last_token: bool | None = None
    tokens: int | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    token_ids: Sequence[int] | None = None
    finish_reason: str | None = None
    special_tokens: bool | None = None
    truncation: Literal["left", "right"] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A preference, for evaluate: the chosen sample should have the higher reward."""

    id: str
    chosen: Sample
    rejected: Sample


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The K responses of one query, for align.

    Attributes:
        id: names the group within the call.
        samples: its responses, with hidden states of the updated policy.
        preferred: (winner, loser) by sample id: an outside label.
    """

    id: str
    samples: Iterable[Sample]
    preferred: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class AnchorStates:
    """An anchor pair's hidden states by the current policy, for align.

    Attributes:
        id: the pair's.
        chosen, rejected: states of prompt + response, [S, D_p], as a Sample's `hidden_states`.
    """

    id: str
    chosen: Any = field(repr=False)
    rejected: Any = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What somebody outside says of marked samples: `id` and `grade`, or `chosen` and `rejected`.

    Attributes:
        id, grade: of one sample; more is better, on any scale that stays the same.
        chosen, rejected: two samples of one group.
        source: who said it.
    """

    id: str | None = None
    grade: float | None = None
    chosen: str | None = None
    rejected: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One sample's hidden states, ready for the wire.

    Attributes:
        position: which sample of the call it belongs to, counted through all groups.
        name: that sample's id.
        value: dtype, shape [S, D_p], bytes (a view of the caller's array where possible).
    """

    position: int
    name: str
    value: TensorValue


@dataclass(frozen=True, slots=True)
class Kept:
    """What goes along in place of hidden states that stay here (r2m_client.split).

    Attributes:
        tokens: of prompt + response.
        head: whose u and v the numbers were computed with.
        fused: v·c, at score.
        pooled: c, then j, at align: 2·D_p float32.
    """

    tokens: int
    head: int | None = None
    fused: float | None = None
    pooled: bytes | None = None


class SampleWriter:
    """Turns samples into JSON objects and collects their tensors, each array converted once.

    Args:
        wire_dtype: what float32 and wider hidden states are sent as.
        kept: by the id of samples whose states stay here: what goes along instead.
    """

    def __init__(self, wire_dtype: WireDtype, kept: Mapping[str, Kept] | None = None) -> None:
        self._wire_dtype: WireDtype = wire_dtype
        self._kept: Mapping[str, Kept] = kept or {}
        self._written = 0
        self.tensors: list[Tensor] = []

    def samples(self, samples: Iterable[Sample]) -> list[dict[str, object]]:
        """The JSON of samples; `samples` is iterated once.

        Raises:
            ValueError: hidden states that are no matrix of numbers.
        """
        return [self._sample(sample) for sample in samples]

    def groups(self, groups: Iterable[Group]) -> list[dict[str, object]]:
        """The JSON of groups; `groups` is iterated once.

        Raises:
            ValueError: hidden states that are no matrix of numbers.
        """
        written: list[dict[str, object]] = []
        for group in groups:
            body: dict[str, object] = {"id": group.id, "samples": self.samples(group.samples)}
            if group.preferred is not None:
                body["preferred"] = list(group.preferred)
            written.append(body)
        return written

    def pairs(self, pairs: Iterable[Pair]) -> list[dict[str, object]]:
        """The JSON of preference pairs; `pairs` is iterated once.

        Raises:
            ValueError: hidden states that are no matrix of numbers.
        """
        return [
            {
                "id": pair.id,
                "chosen": self._sample(pair.chosen),
                "rejected": self._sample(pair.rejected),
            }
            for pair in pairs
        ]

    def anchors(self, states: Iterable[AnchorStates]) -> list[dict[str, object]]:
        """The JSON of anchors' states; `states` is iterated once.

        Raises:
            ValueError: hidden states that are no matrix of numbers.
        """
        return [
            {
                "id": one.id,
                **{
                    side: self._sample(
                        Sample(f"{one.id}/{side}"[-256:], hidden_states=getattr(one, side))
                    )
                    for side in ("chosen", "rejected")
                },
            }
            for one in states
        ]

    def _sample(self, sample: Sample) -> dict[str, object]:
        body: dict[str, object] = {"id": sample.id, "format": sample.format}
        unencodable = _unencodable(sample)
        if unencodable is None:
            body |= _text(sample)
        else:
            # Neither encoding can carry it: the server refuses this sample alone.
            body["unencodable"] = unencodable[:256]
        if sample.finish_reason is not None:
            body["finish_reason"] = sample.finish_reason
        if sample.group:
            body["group"] = sample.group
        feedback = self._feedback(sample)
        if feedback is not None:
            for key in ("hidden_state", "last_token", "tokens"):
                stated = getattr(sample, key)
                if stated is not None:
                    feedback[key] = stated
            body["feedback"] = feedback
        self._written += 1
        return body

    def _feedback(self, sample: Sample) -> dict[str, object] | None:
        kept = self._kept.get(sample.id)
        if kept is not None:
            split = {"head": kept.head, "fused": kept.fused}
            told: dict[str, object] = {
                "tokens": kept.tokens,
                "split": {key: value for key, value in split.items() if value is not None},
            }
            if kept.pooled is None:
                return told
            from r2m.tensors import TensorValue

            value = TensorValue("float32", (2, len(kept.pooled) // 8), kept.pooled)
        elif sample.hidden_states is not None:
            told = {}
            value = wire_value(sample, self._wire_dtype)
        else:
            return None
        self.tensors.append(Tensor(self._written, sample.id, value))
        return {"dtype": value.dtype, "shape": list(value.shape), **told}


def _text(sample: Sample) -> dict[str, object]:
    body: dict[str, object] = {}
    for name in ("prompt", "response", "special_tokens", "truncation"):
        if getattr(sample, name) is not None:
            body[name] = getattr(sample, name)
    if sample.messages is not None:
        body["messages"] = [_message(one) for one in sample.messages]
    if sample.tools is not None:
        body["tools"] = json.dumps(list(sample.tools))
    if sample.token_ids is not None:
        body["token_ids"] = [_token_id(sample, one) for one in sample.token_ids]
    return body


def _unencodable(sample: Sample) -> str | None:
    """Where the sample's text holds lone surrogates, if it does."""
    texts: list[tuple[str, object]] = [("prompt", sample.prompt), ("response", sample.response)]
    for place, turn in enumerate(sample.messages or ()):
        texts += ((f"messages[{place}].{key}", value) for key, value in turn.items())
    for name, text in texts:
        if isinstance(text, str):
            try:
                text.encode()
            except UnicodeEncodeError:
                return name
    return None


def _token_id(sample: Sample, given: object) -> int:
    if isinstance(given, bool):  # which Python counts as 1
        raise ValueError(f"token_ids of sample {sample.id!r} are whole numbers, got {given}")
    return index(cast("SupportsIndex", given))


def _message(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn as the interface has it: nested values as JSON text, the same on both transports."""
    message = {key: value for key, value in turn.items() if value is not None}
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, str):
        message["tool_calls"] = json.dumps(calls)
    return message


def wire_value(sample: Sample, wire_dtype: WireDtype) -> TensorValue:
    """A sample's hidden states as dtype, shape and bytes.

    What cannot be written down is refused here. The rest (width, zero tokens, NaN) the server
    refuses for this sample alone, and the others of the call get their rewards.

    Raises:
        ValueError: not two dimensions, not numbers, or a TensorValue that contradicts itself.
    """
    # Here, and not at the top: text-only callers need no numpy, and it is most of the import time.
    from r2m.tensors import ITEM_BYTES, TensorValue, tensor_value, wire_bytes

    where = f"hidden_states of sample {sample.id!r}"
    value = sample.hidden_states
    if not isinstance(value, TensorValue):
        try:
            value = tensor_value(value, dtype=wire_dtype)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error
    if len(value.shape) != 2:
        raise ValueError(f"{where} has shape {list(value.shape)}, expected [tokens, width]")
    if value.dtype not in ITEM_BYTES:
        raise ValueError(f"{where}: dtype {value.dtype!r} is not one of {', '.join(ITEM_BYTES)}")
    expected = wire_bytes(value.dtype, value.shape)
    if len(value.data) != expected:
        raise ValueError(f"{where} has {len(value.data)} bytes, its shape takes {expected}")
    return value
