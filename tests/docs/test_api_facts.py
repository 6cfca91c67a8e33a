"""What docs/api.md states in tables: limits and retryable errors are those of the code."""

from __future__ import annotations

import inspect
import re
import typing

from api_blocks import PAGE

from r2m.errors import TABLE
from r2m_service import bootstrap, listeners
from r2m_service.application.contract import (
    MAX_SAMPLES,
    NAME_PATTERN,
    AlignRequest,
    AnchorsRequest,
    ControlOut,
    EvaluateRequest,
    GroupIn,
    LabelsRequest,
    PairIn,
    PolicyIn,
    RollbackRequest,
    SampleIn,
    ScoreRequest,
    UpdateRunRequest,
)
from r2m_service.application.contract.scoring import AlignAnswer
from r2m_service.application.heads import ALIAS
from r2m_service.domain.method import MAX_WIDTH
from r2m_service.domain.runs import ChangeKind
from r2m_service.settings import Settings
from r2m_service.transports.grpc.uploads import MAX_CHUNK_BYTES
from r2m_service.transports.http.app import build_app
from r2m_service.transports.http.tensors import MAX_HEADER_BYTES

TEXT = PAGE.read_text()


def table(heading, first):
    """The rows of the table below a heading whose first column is called so."""
    part = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = part.split(f"| {first} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("| ").split(" |")] for row in rows]


def test_the_retryable_errors_are_those_of_the_table():
    (row,) = [row for row in table("Errors, and what to do", "what came") if "retryable" in row[0]]
    stated = {
        (code, int(status))
        for codes, status in re.findall(r"(`\w+`(?:, `\w+`)*) \((\d+)\)", row[0])
        for code in re.findall(r"\w+", codes)
    }
    assert stated == {(code.value, row.http) for code, row in TABLE.items() if row.retryable}


def test_every_code_that_the_page_names_is_one():
    codes = {code.value for code in TABLE}
    likely = re.compile(rf"`((?:{'|'.join({code.split('_')[0] for code in codes})})_\w+)`")
    named = set(likely.findall(TEXT))
    assert len(named) > 10
    # A reason why a group is skipped, keys of answers, and what controls say.
    others = {"too_few", "feedback_bytes", "feedback_gain"}
    others |= set(typing.get_args(ControlOut.model_fields["verdict"].annotation))
    assert named - others <= codes


def test_the_verdicts_are_those_of_the_contract():
    verdicts = typing.get_args(AlignAnswer.model_fields["verdict"].annotation)
    assert [row[0] for row in table("Align", "verdict")] == [f"`{one}`" for one in verdicts]


def test_the_changes_are_those_of_the_domain():
    sentence = TEXT.split("`what` is ")[1].split(". ")[0]
    assert set(re.findall(r"`(\w+)`", sentence)) == set(typing.get_args(ChangeKind))


def bound(model, field, name):
    """A bound of a field, as JSON Schema calls it; that of its alternatives, too."""
    schema = model.model_json_schema()["properties"][field]
    (found,) = {one[name] for one in (schema, *schema.get("anyOf", ())) if name in one}
    return found


def only(*values):
    """The one value that all of them are."""
    (found,) = set(values)
    return found


def size(count):
    units = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10}
    name, unit = next((name, unit) for name, unit in units.items() if count >= unit)
    assert count % unit == 0
    return f"{count // unit} {name}"


def length_of(pattern):
    return int(re.search(r"\{0,(\d+)\}", pattern)[1]) + 1


def test_the_limits_are_those_of_the_code():
    default = {name: field.default for name, field in Settings.model_fields.items()}
    listed = only(
        MAX_SAMPLES,
        bound(ScoreRequest, "samples", "maxItems"),
        bound(AlignRequest, "groups", "maxItems"),
        bound(EvaluateRequest, "pairs", "maxItems"),
    )
    identifier = only(*(bound(one, "id", "maxLength") for one in (SampleIn, GroupIn, PairIn)))
    name = only(
        length_of(NAME_PATTERN),
        length_of(ALIAS.pattern),
        bound(AlignRequest, "branch", "maxLength"),
    )
    reason = only(
        *(bound(one, "reason", "maxLength") for one in (UpdateRunRequest, RollbackRequest))
    )
    idle = inspect.signature(build_app).parameters["idle_seconds"].default
    body = size(default["max_body_bytes"])
    assert {row[0]: row[1] for row in table("Limits", "what")} == {
        "body of an HTTP request": body,
        "a gRPC message": size(default["grpc_message_bytes"]),
        "hidden states of one AlignStream, or of one sample of a ScoreStream": body,
        "head of an HTTP request, with all its headers": size(listeners.MAX_HEAD_BYTES),
        "all requests in memory at once": size(default["inflight_bytes"]),
        "requests in hand at once, streams aside": f"{default['inflight_requests']:,}",
        "samples in line for the device": f"{default['queue_samples']:,}",
        "pairs of an anchor set": f"{bound(AnchorsRequest, 'pairs', 'maxItems'):,}",
        "labels of a call": f"{bound(LabelsRequest, 'labels', 'maxItems'):,}",
        "samples kept for labels, by run": f"{default['label_samples']:,}",
        "hidden states kept with them, by run": size(default["label_bytes"]),
        "a chunk on a stream": size(MAX_CHUNK_BYTES),
        "samples of one ScoreStream without an answer": f"{default['stream_samples']:,}",
        "header of a safetensors body": size(MAX_HEADER_BYTES),
        "a pause within a body or a stream": f"{idle:g} s",
        "gRPC calls at once, streams too": f"{bootstrap.MAX_GRPC_CALLS:,}",
        "samples of a score, groups of an align, pairs of an evaluate": f"{listed:,}",
        "samples of a group": f"{bound(GroupIn, 'samples', 'maxItems'):,}",
        "heads of an evaluate": f"{bound(EvaluateRequest, 'heads', 'maxItems')}",
        "id of a sample, group or pair": f"{identifier} characters",
        "name of a run, branch or alias": f"{name} characters",
        "`reason`": f"{reason:,} characters",
        "`finish_reason`": f"{bound(SampleIn, 'finish_reason', 'maxLength')} characters",
        "`step`": f"{bound(AlignRequest, 'step', 'exclusiveMaximum') - 1:,}",
        "tokens of a text": "what the model states",
        "`policy.hidden_size`": f"{bound(PolicyIn, 'hidden_size', 'maximum'):,}",
        "`method.width`": f"{MAX_WIDTH:,}",
        "weights of one head": size(default["max_head_bytes"]),
    }


def test_links_within_the_docs_lead_to_headings():
    found = re.findall(r"\]\((\w+\.md)?#([^)]+)\)", TEXT)
    assert len(found) > 10
    for page, anchor in found:
        assert anchor in anchors(PAGE.parent / (page or PAGE.name)), (page, anchor)


def anchors(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
