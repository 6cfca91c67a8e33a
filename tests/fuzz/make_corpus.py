"""Write the corpus: one small valid input of every kind, and some that are nearly so.

    python tests/fuzz/make_corpus.py

Inputs that once found something are kept beside them by hand, as `found-*`.
"""

from __future__ import annotations

import json
import struct

from fuzz_targets import HERE, joined

from r2m.v1 import r2m_pb2 as pb
from r2m_service.transports.compat.messages import example_of
from r2m_service.transports.compat.routes import MESSAGES
from r2m_service.transports.http.examples import REQUESTS


def safetensors(request, tensors):
    header = {"__metadata__": {"request": json.dumps(request)}}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + b"".join(one[2] for one in tensors.values())


def sample(name, shape=(2, 4)):
    return pb.Sample(
        id=name,
        prompt="p",
        response="r",
        feedback=pb.Feedback(dtype="bfloat16", shape=shape),
    )


def trainers():
    """What each trainer sends, and what only some of them may."""
    yield from (example_of(one) for one in MESSAGES)
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": [1]}'}
    output = [call, {"type": "function_call_output", "call_id": "c", "output": "4"}]
    asked = {"instructions": "i", "input": "p", "tools": [{"type": "function", "name": "f"}]}
    yield {"responses_create_params": asked, "response": {"output": output}}
    yield {"prompt": [{"role": "user", "content": "p"}], "response": "r", "label": {"a": 1}}
    yield {"input": [[1, 2], [3]], "activation": None, "encoding_format": "base64"}
    yield {"text": ["a", "b"], "query": [], "prompts": []}


def score_frames():
    first = pb.ScoreStreamRequest(open=pb.ScoreRequest(run="a", head="live"))
    a = pb.ScoreStreamRequest(sample=sample("a"))
    b = pb.ScoreStreamRequest(sample=sample("b"))
    chunks = [pb.ScoreStreamRequest(chunk=pb.Chunk(id=name, data=bytes(8))) for name in ("a", "b")]
    return [
        [first, a, chunks[0], chunks[0], b, chunks[1], chunks[1]],
        [first, a, b, chunks[1], chunks[0], chunks[0], chunks[1]],
        [first, a, chunks[0], chunks[0], chunks[0]],
        [first, a],
        [a],
    ]


def align_frames():
    request = pb.AlignRequest(
        run="a",
        step=1,
        groups=[pb.Group(id="g", samples=[sample("a"), sample("b")], preferred=["a", "b"])],
        anchors=[pb.AnchorStates(id="p", chosen=sample("p/chosen"), rejected=sample("p/rejected"))],
    )
    first = pb.AlignStreamRequest(request=request)
    names = ("a", "b", "p/chosen", "p/rejected")
    chunks = [pb.AlignStreamRequest(chunk=pb.Chunk(id=n, data=bytes(16))) for n in names]
    return [[first, *chunks], [first, *chunks[::-1]], [first, chunks[0], chunks[0]], chunks]


def main():
    feedback = {"dtype": "bfloat16", "shape": [2, 4]}
    inputs = {
        "json_body": [json.dumps(one).encode() for one in REQUESTS.values()],
        "trainers_body": [json.dumps(one).encode() for one in trainers()],
        "safetensors_body": [
            safetensors(
                {"samples": [{"id": "a", "prompt": "p", "response": "r", "feedback": feedback}]},
                {"a": ("BF16", [2, 4], bytes(16))},
            ),
            safetensors({"samples": []}, {}),
            safetensors({"samples": [{"id": "a"}]}, {"a": ("F64", [1], bytes(8))}),
        ],
        "protobuf_message": [
            pb.ScoreRequest(run="a", samples=[sample("a")], step=1).SerializeToString(),
            pb.AlignRequest(
                run="a", step=1, groups=[pb.Group(id="g", samples=[sample("a")])]
            ).SerializeToString(),
            pb.AddLabelsRequest(run="a", labels=[pb.Label(id="x", grade=1)]).SerializeToString(),
        ],
        "score_stream": [joined(m.SerializeToString() for m in one) for one in score_frames()],
        "align_stream": [joined(m.SerializeToString() for m in one) for one in align_frames()],
        "head_file": [head()],
    }
    for target, seeds in inputs.items():
        folder = HERE / "corpus" / target
        folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds):
            (folder / f"seed-{number:02}").write_bytes(seed)


def head():
    import torch

    from r2m_service.modeling.head import first_head

    return first_head(
        weight_R=torch.ones(4), bias=torch.zeros(1), width_P=3, inner=2, seed=0, attends=True,
        metadata={"omega": 0.6},
    ).to_bytes()  # fmt: skip


if __name__ == "__main__":
    main()
