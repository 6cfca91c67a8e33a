"""The client's other calls in both encodings, and no field that it cannot write."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_fuzz_wire import (
    REQUESTS,
    arrivals,
    forms,
    is_model,
    models_of,
    names,
    numbers,
    plain_of,
    texts,
)

from r2m.v1 import r2m_pb2 as pb
from r2m_client import _calls, _label_calls
from r2m_client._samples import AnchorStates, Group, Kept, Label, Pair, Sample
from r2m_service.application import contract

ids = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=12)
counts = st.integers(0, 2**31 - 1)
reasons = st.none() | texts
settings = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | numbers | texts,
    lambda inner: st.dictionaries(texts, inner, max_size=2) | st.lists(inner, max_size=2),
    max_leaves=5,
)
methods = st.dictionaries(texts, settings, max_size=3)


def pairs_of(samples):
    """Pairs of samples with ids of their own."""
    return st.lists(samples, min_size=2, max_size=4, unique_by=lambda one: one.id).map(
        lambda drawn: [Pair(str(n), *drawn[n : n + 2]) for n in range(0, len(drawn) - 1, 2)]
    )


plain_texts = st.builds(Sample, names, texts, texts, finish_reason=st.none() | texts)
labels = st.builds(Label, id=names, grade=numbers, source=reasons) | st.builds(
    Label, chosen=names, rejected=names
)
# `pooled` is base64 in JSON and bytes in protobuf, as `feedback.data`: whoever reads it decodes it.
values = st.fixed_dictionaries({"id": names}, optional={"fused": numbers})
replies = st.fixed_dictionaries({"values": st.lists(values, max_size=2)})
CALLS = {
    "CreateRunRequest": st.builds(
        _calls.create_run,
        ids,
        policy_hidden_size=st.none() | st.integers(1, 1 << 20),
        hidden_state=st.sampled_from(["post_norm", "pre_norm"]),
        last_token=st.booleans(),
        feedback=st.sampled_from(["policy", "backbone", "none"]),
        method=st.none() | methods,
        truncation=st.sampled_from(["none", "left", "right"]),
        empty_response=st.sampled_from([None, "score", "error"]),
    ),
    "UpdateRunRequest": st.builds(_calls.update_run, ids, methods, reason=reasons)
    | st.builds(_label_calls.freeze, ids, frozen=st.booleans(), reason=reasons),
    "SetAliasRequest": st.builds(
        _calls.set_alias, ids, ids, counts, expect=st.none() | counts
    ),
    "RollbackRequest": st.builds(
        _calls.rollback, ids, to=st.none() | counts, to_step=st.none() | counts,
        branch=st.none() | ids, reason=reasons,
    ),
    "EvaluateRequest": st.builds(
        _calls.evaluate, ids, pairs_of(forms), wire_dtype=st.just("bfloat16"),
        heads=st.lists(ids | counts, min_size=1, max_size=3), margins=st.booleans(),
    ),
    "PutAnchorsRequest": st.builds(
        _label_calls.put_anchors, ids, pairs_of(plain_texts), reason=reasons
    ),
    "AddLabelsRequest": st.builds(_label_calls.add_labels, ids, st.lists(labels, max_size=3)),
    "ReplyAlignRequest": st.builds(_calls.reply_align, ids, ids, st.lists(replies, max_size=2)),
}  # fmt: skip


def samples_of(request):
    return [side for pair in getattr(request, "pairs", []) for side in (pair.chosen, pair.rejected)]


def said(value):
    """Without what is empty: protobuf tells no empty text, list or default from an absent one."""
    if isinstance(value, dict):
        found = {key: one if key == "method" else said(one) for key, one in value.items()}
        return {key: one for key, one in found.items() if one not in ("", None, [], {})}
    return [said(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_the_same_request_in_every_encoding(name):
    model, _ = REQUESTS[name]

    @given(CALLS[name])
    def same(call):
        read_by = arrivals(call, model, getattr(pb, name)())
        first, *others = [said(plain_of(one, samples_of(one))) for one in read_by]
        for other in others:
            assert {"truncation": "none", **other} == {"truncation": "none", **first}
        for key, value in call.body.items():
            if value not in ("", [], {}) and key != "pairs":
                assert first[key] == said(value) if key != "method" else value

    same()


# ------------------------------------------------------------------ every field can be written

TURN = {"role": "a", "content": "c", "name": "n", "tool_call_id": "i", "tool_calls": [{}]}
WITH = {"group": "g", "finish_reason": "stop", "hidden_states": [[1.0]], "tokens": 1}
STATES = ("hidden_states", "hidden_state", "last_token", "tokens")
SAMPLES = [
    Sample(
        "a",
        "p",
        "r",
        format="raw",
        special_tokens=False,
        truncation="left",
        hidden_state="pre_norm",
        last_token=True,
        **WITH,
    ),
    Sample("b", messages=[TURN], tools=[{"name": "f"}], **WITH),
    Sample("c", token_ids=[1], **WITH),
    Sample("f", "half \ud83d", "r", **WITH),
]
BARE = [dataclasses.replace(one, **dict.fromkeys(STATES)) for one in SAMPLES]
KEPT = {"e": Kept(3, head=1, fused=0.5, pooled=bytes(8))}
FULL = {
    "ScoreRequest": [_calls.score(
        [*SAMPLES, Sample("e", "p", "r")], run="r", head="live", step=1, branch="b",
        wire_dtype="float32", kept=KEPT)],
    "AlignRequest": [_calls.align(
        "r", step=1, groups=[Group("g", [*SAMPLES, Sample("e", "p", "r")], ("a", "b"))], branch="b",
        anchors=[AnchorStates("p", [[1.0]], [[1.0]])], progress=None, wire_dtype="float32",
        kept=KEPT)],
    "CreateRunRequest": [_calls.create_run(
        "r", policy_hidden_size=1, hidden_state="pre_norm", last_token=True, feedback="policy",
        method={"a": 1}, truncation="left", empty_response="error")],
    "UpdateRunRequest": [_calls.update_run("r", {"a": 1}, reason="x"),
                         _label_calls.freeze("r", frozen=True, reason="x")],
    "SetAliasRequest": [_calls.set_alias("r", "a", 1, expect=2)],
    "RollbackRequest": [_calls.rollback("r", to=1, to_step=1, branch="b", reason="x")],
    "EvaluateRequest": [_calls.evaluate(
        "r", [Pair("p", SAMPLES[0], SAMPLES[1]), Pair("q", SAMPLES[2], SAMPLES[3])],
        heads=[1], margins=True, wire_dtype="float32")],
    "PutAnchorsRequest": [_label_calls.put_anchors(
        "r", [Pair("p", BARE[0], BARE[1]), Pair("q", BARE[2], BARE[3])], reason="x")],
    "AddLabelsRequest": [_label_calls.add_labels(
        "r", [Label(id="a", grade=1.0, source="s"), Label(chosen="a", rejected="b")])],
    "ReplyAlignRequest": [_calls.reply_align(
        "r", "t", [{"values": [{"id": "a", "fused": 0.5, "pooled": "AAAA"}]}])],
}  # fmt: skip
SPLIT = {"FeedbackIn.split", "SplitIn.head", "SplitIn.fused"}
NOT_WRITTEN = {
    "EvaluateRequest": SPLIT,  # hidden states travel
    "PutAnchorsRequest": SPLIT  # texts alone: their states come with align
    | {f"FeedbackIn.{name}" for name in contract.FeedbackIn.model_fields}
    | {"SampleIn.feedback", "AnchorPairIn.gold"},  # chosen and rejected say it
}


def fields_within(value, found):
    """Adds `Model.field` of all that is set in a request and its parts."""
    if is_model(type(value)):
        for name in value.model_fields_set:
            found.add(f"{type(value).__name__}.{name}")
            fields_within(getattr(value, name), found)
    elif isinstance(value, list):
        for one in value:
            fields_within(one, found)
    return found


def fields_of(model, found):
    for name, within in models_of(model).items():
        found.add(f"{model.__name__}.{name}")
        if within is not None:
            fields_of(within, found)
    return found


@pytest.mark.parametrize("name", REQUESTS)
def test_every_field_of_a_request_can_be_written_by_the_client(name):
    model, _ = REQUESTS[name]
    set_over_http = set()
    for call in FULL[name]:
        over_http, *_ = arrivals(call, model, getattr(pb, name)())
        fields_within(over_http, set_over_http)
    assert fields_of(model, set()) - set_over_http == NOT_WRITTEN.get(name, set())
