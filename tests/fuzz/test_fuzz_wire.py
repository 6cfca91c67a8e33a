"""What a client writes is what the service reads, and back, in every encoding; no field is lost."""

import base64
import dataclasses
import json
import types
import typing

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from r2m.tensors import TensorValue
from r2m.v1 import r2m_pb2 as pb
from r2m_client import _label_results, _results
from r2m_client._calls import align, score
from r2m_client._grpc_wire import _attach, _fill, to_json
from r2m_client._reading import read, read_list
from r2m_client._safetensors import safetensors_pieces
from r2m_client._samples import AnchorStates, Group, Kept, Sample
from r2m_service.application import contract
from r2m_service.application.parsing import parse, parse_json
from r2m_service.application.samples import content_hash, decode_feedback
from r2m_service.transports.grpc.messages import decode, to_bytes, to_value
from r2m_service.transports.http.tensors import attach
from r2m_service.transports.http.tensors import decode as decode_safetensors

# ------------------------------------------------------------------ every field is mapped

REQUESTS = {  # message: (contract, what HTTP has in its path)
    "ScoreRequest": (contract.ScoreRequest, {"run"}),
    "AlignRequest": (contract.AlignRequest, {"run"}),
    "CreateRunRequest": (contract.CreateRunRequest, set()),
    "UpdateRunRequest": (contract.UpdateRunRequest, {"run"}),
    "SetAliasRequest": (contract.AliasRequest, {"run", "alias"}),
    "RollbackRequest": (contract.RollbackRequest, {"run"}),
    "EvaluateRequest": (contract.EvaluateRequest, {"run"}),
    "PutAnchorsRequest": (contract.AnchorsRequest, {"run"}),
    "AddLabelsRequest": (contract.LabelsRequest, {"run"}),
    "ReplyAlignRequest": (contract.ReplyAlignRequest, {"run", "ticket"}),
}
ANSWERS = {
    "ScoreResponse": contract.ScoreAnswer,
    "AlignResponse": contract.AlignAnswer,
    "Progress": contract.Progress,
    "Run": contract.RunOut,
    "ListRunsResponse": contract.RunList,
    "Head": contract.HeadOut,
    "ListHeadsResponse": contract.HeadList,
    "ListChangesResponse": contract.ChangeList,
    "Alias": contract.AliasOut,
    "EvaluateResponse": contract.EvaluateAnswer,
    "GetServerResponse": contract.ServerOut,
    "Anchors": contract.AnchorsOut,
    "AddLabelsResponse": contract.LabelsAnswer,
    "ListSamplesResponse": contract.KeptSampleList,
}
# An align that asks answers with these instead, over HTTP as a message of its own.
PENDING = {"ticket", "questions"}
CLIENT = {
    contract.AlignPending: _results.AlignPending,
    contract.ScoreAnswer: _results.ScoreResult,
    contract.AlignAnswer: _results.AlignResult,
    contract.Progress: _results.AlignProgress,
    contract.RunOut: _results.RunInfo,
    contract.HeadOut: _results.HeadInfo,
    contract.ChangeOut: _results.Change,
    contract.AliasOut: _results.AliasInfo,
    contract.EvaluateAnswer: _results.Evaluation,
    contract.ServerOut: _results.ServerInfo,
    contract.AnchorsOut: _label_results.AnchorsInfo,
    contract.LabelsAnswer: _label_results.LabelsResult,
    contract.KeptSampleList: _label_results.KeptSamples,
}


def inner(hint, wanted):
    """The model or dataclass within a hint: a list of it, it or None, a tuple of it."""
    if wanted(hint):
        return hint
    for one in typing.get_args(hint):
        found = inner(one, wanted)
        if found is not None:
            return found
    return None


def is_model(hint):
    return isinstance(hint, type) and hasattr(hint, "model_fields")


def models_of(model):
    """A model's fields, each with the model within it, if there is one."""
    return {name: inner(field.annotation, is_model) for name, field in model.model_fields.items()}


def same_fields(descriptor, model, *, extra=frozenset(), where=""):
    ours = {field.name: field for field in descriptor.fields}
    theirs = models_of(model)
    assert ours.keys() - extra == theirs.keys(), where or descriptor.name
    for name, within in theirs.items():
        message = ours[name].message_type
        if within is not None:
            assert message is not None, f"{where}{name}"
            same_fields(message, within, where=f"{where}{name}.")


@pytest.mark.parametrize("name", REQUESTS)
def test_every_field_of_a_request_is_in_both_forms(name):
    model, in_path = REQUESTS[name]
    same_fields(pb.DESCRIPTOR.message_types_by_name[name], model, extra=in_path)


@pytest.mark.parametrize("name", ANSWERS)
def test_every_field_of_an_answer_is_in_both_forms(name):
    extra = PENDING if name == "AlignResponse" else set()
    same_fields(pb.DESCRIPTOR.message_types_by_name[name], ANSWERS[name], extra=extra)


def test_every_field_of_a_question_is_in_both_forms():
    message = pb.DESCRIPTOR.message_types_by_name["AlignResponse"]
    rest = {field.name for field in message.fields} - contract.AlignPending.model_fields.keys()
    same_fields(message, contract.AlignPending, extra=rest)


def test_no_message_is_forgotten():
    service = pb.DESCRIPTOR.services_by_name["RewardModelService"]
    shown = {*REQUESTS, *ANSWERS}
    by_hand = {"GetRunRequest", "DeleteRunRequest", "ListRunsRequest", "GetServerRequest",
               "ListHeadsRequest", "GetHeadRequest", "GetHeadWeightsRequest", "GetAnchorsRequest",
               "ListChangesRequest", "ListSamplesRequest", "GetHeadWeightsResponse",
               "ScoreStreamRequest", "ScoreStreamResponse", "AlignStreamRequest",
               "AlignStreamResponse"}  # fmt: skip
    for method in service.methods:
        assert {method.input_type.name, method.output_type.name} <= shown | by_hand


def fields_of(kind):
    hints = typing.get_type_hints(kind)
    return {
        one.name: inner(hints[one.name], dataclasses.is_dataclass)
        for one in dataclasses.fields(kind)
    }


@pytest.mark.parametrize("model", CLIENT, ids=lambda model: model.__name__)
def test_every_field_of_an_answer_is_in_the_client(model):
    def same(model, kind, where):
        theirs, ours = models_of(model), fields_of(kind)
        if kind is _results.ScoreResult:
            assert ours.pop("context", None)  # the client's own: what align takes u and v from
        assert theirs.keys() == ours.keys(), where
        for name, within in theirs.items():
            if within is not None and ours[name] is not None:
                same(within, ours[name], f"{where}.{name}")

    same(model, CLIENT[model], model.__name__)


# ------------------------------------------------------------------ round trips

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
# `__metadata__`, which hypothesis finds in the code it tests, is no name of a tensor in the format.
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__"
)
tensors = st.builds(
    lambda s, d, fill: TensorValue("bfloat16", (s, d), bytes([fill]) * (2 * s * d)),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 255),
)
more = {
    "hidden_states": st.none() | tensors,
    "group": texts,
    "finish_reason": st.none() | texts,
    "hidden_state": st.none() | st.sampled_from(["post_norm", "pre_norm"]),
    "last_token": st.none() | st.booleans(),
    "tokens": st.none() | st.integers(0, 2**31),
}
turns = st.fixed_dictionaries(
    {"role": texts, "content": texts},
    optional={
        "name": texts,
        "tool_call_id": texts,
        "tool_calls": texts | st.lists(st.fixed_dictionaries({"type": texts}), max_size=2),
    },
)
forms = st.one_of(
    st.builds(Sample, names, texts, texts, format=st.sampled_from(["chat", "raw"]), **more),
    st.builds(Sample, names, messages=st.lists(turns, min_size=1, max_size=3),
              tools=st.none() | st.just([{"name": "f"}]), **more),
    st.builds(Sample, names, token_ids=st.lists(st.integers(0, 2**31), min_size=1), **more),
)  # fmt: skip
batches = st.lists(forms, max_size=3, unique_by=lambda one: one.id)


def arrivals(call, model, message):
    """The request as the service reads it: JSON with base64, safetensors, protobuf."""
    body = json.loads(json.dumps(call.body))
    plain = json.loads(json.dumps(call.body))
    held = {tensor.name: tensor.value for tensor in call.tensors}

    def fill(value):
        if isinstance(value, dict):
            if "feedback" in value and value.get("id") in held:
                data = bytes(held[value["id"]].data)
                value["feedback"]["data"] = base64.b64encode(data).decode()
            for one in value.values():
                fill(one)
        elif isinstance(value, list):
            for one in value:
                fill(one)

    fill(plain)
    _fill(message, {**call.names, **body})
    _attach(call, message)
    over_grpc = to_value(decode(type(message), message.SerializeToString()))
    for name in {"run", *call.names} - body.keys():
        over_grpc.pop(name, None)
    over_grpc = {key: value for key, value in over_grpc.items() if value != "" or key != "head"}
    file = b"".join(safetensors_pieces(call.body, call.tensors)) if call.tensors else None
    found = [parse_json(model, json.dumps(plain).encode()), parse(model, over_grpc)]
    if file is not None:
        found.append(parse(model, attach(*decode_safetensors(bytearray(file)))))
    return found


def plain_of(request, samples):
    decode_feedback(samples)
    for one in samples:
        if one.feedback is not None:  # protobuf has no absent bytes
            one.feedback.data = bytes(one.feedback.data or b"")
    return request.model_dump()


told = st.builds(
    Kept,
    st.integers(1, 2**31),
    head=st.none() | st.integers(0, 2**31),
    fused=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    pooled=st.none() | st.just(bytes(16)),
)


def kept_of(batch, some):
    """What some samples send in place of their states."""
    return {one.id: kept for one, kept in zip(batch, some, strict=False)}


@given(batches, st.lists(told, max_size=2))
def test_a_score_is_the_same_request_in_every_encoding(batch, some):
    call = score(batch, run="r", head="live", wire_dtype="bfloat16", kept=kept_of(batch, some))
    read_by = arrivals(call, contract.ScoreRequest, pb.ScoreRequest())
    first, *others = [plain_of(one, one.samples) for one in read_by]
    assert [sample["id"] for sample in first["samples"]] == [one.id for one in batch]
    for other in others:
        assert other["samples"] == first["samples"]


@given(batches, st.integers(1, 2**31 - 1), st.booleans(), st.lists(told, max_size=2))
def test_an_align_has_one_hash_in_every_encoding(batch, step, labelled, some):
    preferred = [one.id for one in batch[:2]] if labelled and len(batch) > 1 else None
    anchors = [AnchorStates("pair", TensorValue("bfloat16", (1, 1), b"\0\0"), [[1.0]])]
    call = align(
        "r",
        step=step,
        groups=[Group("g", batch, preferred)],
        branch=None,
        anchors=anchors if not {"pair/chosen", "pair/rejected"} & {s.id for s in batch} else [],
        progress=None,
        wire_dtype="bfloat16",
        kept=kept_of(batch, some),
    )
    hashes = set()
    for request in arrivals(call, contract.AlignRequest, pb.AlignRequest()):
        everyone = [s for group in request.groups for s in group.samples]
        everyone += [one for pair in request.anchors for one in (pair.chosen, pair.rejected)]
        decode_feedback(everyone)
        hashes.add(content_hash(request))
    assert len(hashes) == 1


numbers = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**53)


vectors = st.binary(max_size=8)


def built(model):
    """Any valid answer of a model, by its annotations."""

    def of(hint):
        within = typing.get_origin(hint)
        arguments = typing.get_args(hint)
        if within in (typing.Union, types.UnionType):
            return st.one_of(*(of(one) for one in arguments))
        if within is typing.Annotated:
            return of(arguments[0])
        if within is typing.Literal:
            return st.sampled_from([one for one in arguments if one])
        if within is list:
            return st.lists(of(arguments[0]), max_size=2)
        if within is dict:
            value = counts if arguments[1] is int else st.none() | st.integers(0, 9) | texts
            return st.dictionaries(names, value, max_size=2)
        if is_model(hint):
            return built(hint)
        return {int: counts, float: numbers, str: names, bytes: vectors,
                bool: st.booleans(), type(None): st.none()}[hint]  # fmt: skip

    hints = typing.get_type_hints(model, include_extras=True)
    return st.builds(model, **{name: of(hints[name]) for name in model.model_fields})


@pytest.mark.parametrize("name", [name for name in ANSWERS if ANSWERS[name] in CLIENT])
def test_an_answer_is_read_alike_from_both_transports(name):
    model = ANSWERS[name]
    kind, message = CLIENT[model], getattr(pb, name)

    @given(built(model))
    def same(answer):
        over_http = read(kind, json.loads(answer.model_dump_json(exclude_none=True)))
        over_grpc = read(kind, to_json(message.FromString(to_bytes(answer, message))))
        assert _plain(over_http) == _plain(over_grpc)

    same()


LISTS = {
    "ListRunsResponse": (_results.RunInfo, "runs"),
    "ListHeadsResponse": (_results.HeadInfo, "heads"),
    "ListChangesResponse": (_results.Change, "changes"),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_read_alike_from_both_transports(name):
    (kind, key), message = LISTS[name], getattr(pb, name)

    @given(built(ANSWERS[name]))
    def same(answer):
        over_http = read_list(kind, json.loads(answer.model_dump_json(exclude_none=True)), key)
        over_grpc = read_list(kind, to_json(message.FromString(to_bytes(answer, message))), key)
        assert len(over_http) == len(getattr(answer, key))
        assert _plain(over_http) == _plain(over_grpc)

    same()


def test_every_answer_is_read():
    assert {name for name in ANSWERS if ANSWERS[name] not in CLIENT} == LISTS.keys()


def _plain(value):
    """Results by value: errors compare by identity, and Struct drops what is null."""
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, BaseException):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value


def test_json_format_is_what_the_reader_expects():
    """A number that JSON cannot hold exactly comes as a string from protobuf."""
    message = pb.GetServerResponse(hidden_size=2**60)
    assert json_format.MessageToDict(message)["hiddenSize"] == str(2**60)
