"""Every method over both transports, blocking and asyncio: what arrives, and what comes back."""

import numpy as np
import pytest
from client_servers import HEAD, RUN, WEIGHTS

from r2m_client import (
    AliasInfo,
    BranchInfo,
    Drift,
    Group,
    GroupCounts,
    Loss,
    PolicyInfo,
    ProtocolError,
    Sample,
    SampleProblem,
    SamplesFailed,
    ServerInfo,
)

A = Sample("a", "why?", "because", group="g")
B = Sample("b", "why?", "no idea ☃", format="raw")


def test_server(caller, script):
    info = caller("server")
    assert isinstance(info, ServerInfo)
    assert (info.model, info.max_length, info.chat_template) == ("tiny", 64, True)
    assert script.seen[0].rpc == "GetServer"


def test_create_run(caller, script):
    run = caller(
        "create_run",
        "tldr",
        policy_hidden_size=np.int64(4),
        hidden_state="pre_norm",
        last_token=False,
        method={"width": 8, "kl_weight": 0.5, "max_grad_norm": None, "omega": {"kind": "constant"}},
    )
    request = script.seen[0].request
    assert request["run"] == "tldr"
    assert request["feedback"] == "policy"
    assert int(request["policy"].pop("hidden_size")) == 4
    assert request["policy"] == {"hidden_state": "pre_norm", "last_token": False}
    assert request["method"] == {
        "width": 8,
        "kl_weight": 0.5,
        "max_grad_norm": None,
        "omega": {"kind": "constant"},
    }
    assert run.policy == PolicyInfo(4, "post_norm", True)
    assert repr(sorted(run.method.items())) == repr(sorted(RUN["method"].items()))  # ints too
    assert run.aliases == {"live": 1, "reference": 0}
    assert run.branches[1] == BranchInfo("b1", 0, 0, origin_branch="main", origin_step=0)
    assert type(run.step) is int
    assert type(run.aliases["live"]) is int


def test_create_run_leaves_out_what_was_not_given(caller, script):
    caller("create_run", "text", feedback="backbone")
    assert script.seen[0].request == {"run": "text", "feedback": "backbone"}


@pytest.mark.parametrize(
    ("method", "arguments", "rpc"),
    [("run", ["a b/c"], "GetRun"), ("archive_run", ["tldr"], "DeleteRun")],
)
def test_one_run(caller, script, method, arguments, rpc):
    assert caller(method, *arguments).next_step == 3
    assert script.seen[0].rpc == rpc
    # A name with a slash stays one segment of the path; the fake does not decode it.
    assert script.seen[0].request["run"] in (
        arguments[0],
        arguments[0].replace(" ", "%20").replace("/", "%2F"),
    )


def test_lists(caller):
    assert [run.run for run in caller("runs")] == ["tldr"]
    heads = caller("heads", "tldr")
    assert [(head.head, head.parent) for head in heads] == [(0, None), (1, 0)]
    assert heads[1].metrics == HEAD["metrics"]
    assert heads[1].aliases == ("live",)
    assert type(heads[1].bytes) is int


def test_no_runs(caller, script):
    script.steps.append({})
    assert caller("runs") == []


@pytest.mark.parametrize("named", [3, "live", np.int32(3)])
def test_head_by_number_or_alias(caller, script, named):
    caller("head", "tldr", named)
    assert script.seen[0].request == {"run": "tldr", "head": str(named)}


def test_head_weights(caller, script):
    assert caller("head_weights", "tldr") == WEIGHTS
    assert script.seen[0].request == {"run": "tldr", "head": "live"}


def test_a_page_is_no_head(caller, script):
    script.steps.append(b"<html>welcome to nginx</html>")
    with pytest.raises(ProtocolError, match="welcome"):
        caller("head_weights", "tldr")


@pytest.mark.parametrize("expect", [None, 0])
def test_set_alias(caller, script, expect):
    moved = caller("set_alias", "tldr", "best", 1, expect)
    assert moved == AliasInfo("tldr", "best", 1, 0)
    request = script.seen[0].request
    assert int(request["head"]) == 1
    assert request.get("expect") in (expect, None if expect is None else str(expect))
    assert ("expect" in request) == (expect is not None)


def test_rollback(caller, script):
    caller("rollback", "tldr", to_step=0, branch="main", reason="worse")
    request = script.seen[0].request
    assert int(request.pop("to_step")) == 0
    assert request == {"run": "tldr", "branch": "main", "reason": "worse"}
    caller("rollback", "tldr", to=0)
    assert {key: str(value) for key, value in script.seen[1].request.items()} == {
        "run": "tldr",
        "to": "0",
    }


def test_score_of_a_run(caller, script):
    result = caller("score", (s for s in [A, B]), run="tldr", head=12)
    assert (result.run, result.head, result.branch, result.omega) == ("tldr", 12, "main", 0.6)
    assert result.rewards == [0.5, 1.5]
    assert [s.vanilla_reward for s in result.scores] == [0.0, 1.0]
    assert result.raise_for_errors() is result
    request = script.seen[0].request
    assert request["head"] == "12"
    assert request["samples"] == [
        {"id": "a", "prompt": "why?", "response": "because", "format": "chat", "group": "g"},
        {"id": "b", "prompt": "why?", "response": "no idea ☃", "format": "raw"},
    ]


def test_vanilla_score(caller, script):
    result = caller("score", [A, B])
    assert (result.run, result.head, result.omega) == (None, None, None)
    assert result.rewards == [0.0, 1.0]
    assert set(script.seen[0].request) == {"samples"}


def test_a_head_without_a_run_is_refused(caller, script):
    with pytest.raises(ValueError, match="which run"):
        caller("score", [A], head=3)
    assert not script.seen


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_is_another_route_is_refused(caller, script, name):
    with pytest.raises(ValueError, match="cannot be the name"):
        caller("score", [A], run=name)
    with pytest.raises(ValueError, match="cannot be the name"):
        caller("head", "tldr", name)
    assert not script.seen


def test_a_samples_error_is_an_exception_in_its_place(caller, script):
    error = {"code": "feedback_width", "message": "too narrow", "field": "feedback.shape"}
    script.steps.append(
        {
            "run": "tldr",
            "fingerprint": "f",
            "scores": [{"id": "a", "reward": 1.0}, {"id": "b", "error": error}],
        }
    )
    result = caller("score", [A, B], run="tldr")
    assert result.rewards == [1.0, None]
    found = result.scores[1].error
    assert type(found) is SampleProblem
    assert (found.code, found.field, found.status) == ("feedback_width", "feedback.shape", 400)
    assert not found.retryable
    with pytest.raises(SamplesFailed, match=r"1 of 2.*'b': feedback_width: too narrow") as caught:
        result.raise_for_errors()
    assert caught.value.errors == {"b": found}
    assert caught.value.__cause__ is found


@pytest.mark.parametrize(
    "scores",
    [
        [{"id": "a", "reward": 1.0}],
        [{"id": "b", "reward": 1.0}, {"id": "a", "reward": 2.0}],
        [{"id": "a", "reward": float("nan")}, {"id": "b", "reward": 2.0}],
        [{"id": "a", "reward": 1.0}, {"id": "b", "vanilla_reward": float("inf")}],
    ],
    ids=["missing", "swapped", "nan", "infinite"],
)
def test_wrong_scores_are_no_rewards(caller, script, scores):
    script.steps.append({"run": "tldr", "fingerprint": "f", "scores": scores})
    with pytest.raises(ProtocolError):
        caller("score", [A, B], run="tldr")
    assert len(script.seen) == 1  # and asking again would not help


def test_align(caller, script):
    groups = [Group("g", iter([A, B]), preferred=("a", "b")), Group("h", [Sample("c", "x", "y")])]
    result = caller("align", "tldr", step=7, groups=iter(groups), branch="b1")
    request = script.seen[0].request
    assert (request["run"], int(request["step"]), request["branch"]) == ("tldr", 7, "b1")
    assert [g["id"] for g in request["groups"]] == ["g", "h"]
    assert [s["id"] for g in request["groups"] for s in g["samples"]] == ["a", "b", "c"]
    assert request["groups"][0]["preferred"] == ["a", "b"]
    assert not request["groups"][1].get("preferred")
    assert (result.step, result.candidate, result.accepted) == (7, 1, False)
    assert result.loss == Loss(bt=0.7, total=0.75)
    assert result.groups == GroupCounts(1, 1, 1, 0, {"tie": 1})
    assert result.drift == Drift(0, 4, spread_ratio=1.5)
    assert result.gradient_norm is None
    assert result.notes == ("look",)
    assert (result.errors[0].id, result.errors[0].group) == ("b", "g")
    assert isinstance(result.errors[0].error, SampleProblem)


def test_step_must_be_a_whole_number(caller, script):
    with pytest.raises(TypeError):
        caller("align", "tldr", step=1.5, groups=[])
    assert not script.seen


def test_headers_and_user_agent(server, script, open_caller, is_async):
    caller = open_caller(server.url, is_async=is_async, headers={"X-Team": "blue"})
    caller("runs")
    headers = {key.lower(): value for key, value in script.seen[0].headers.items()}
    assert headers["x-team"] == "blue"
    assert headers["user-agent"].startswith("r2m-client/")


def test_bytes_are_counted(caller, script):
    caller("score", [A, B])
    first = len(script.seen[0].payloads[0])
    assert caller.client.bytes_sent == first > 0
    received = caller.client.bytes_received
    assert received > 0
    caller("score", [A])
    assert caller.client.bytes_sent == first + len(script.seen[1].payloads[0])
    assert received < caller.client.bytes_received < 2 * received


# ------------------------------------------------------------------ other versions of the server


def test_unknown_fields_of_a_newer_server_are_ignored(http_server, script, open_caller):
    script.steps.append({**RUN, "colour": "blue", "branches": [{**RUN["branches"][0], "x": [1]}]})
    assert open_caller(http_server.url)("run", "tldr").branches == (BranchInfo("main", 1, 2),)


def test_absent_optional_fields_are_none(http_server, script, open_caller):
    script.steps.append({**HEAD, "parent": None, "metrics": None, "aliases": None})
    head = open_caller(http_server.url)("head", "tldr", 0)
    assert (head.parent, head.metrics, head.aliases) == (None, {}, ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accepted": None}, "no HeadInfo.accepted"),
        ({"accepted": 1}, "HeadInfo.accepted in the answer is 1"),
        ({"t": 1.5}, "HeadInfo.t"),
        ({"t": True}, "HeadInfo.t"),
        ({"omega": "warm"}, "HeadInfo.omega"),
        ({"aliases": "live"}, "HeadInfo.aliases"),
        ({"verdict": 3}, "HeadInfo.verdict"),
        ({"metrics": []}, "HeadInfo.metrics"),
    ],
)
def test_a_required_field_is_never_made_up(http_server, script, open_caller, change, message):
    script.steps.append({**HEAD, **change})
    with pytest.raises(ProtocolError, match=message):
        open_caller(http_server.url)("head", "tldr", 0)


def test_a_list_that_is_none(http_server, script, open_caller):
    script.steps.append({"runs": {"a": 1}})
    with pytest.raises(ProtocolError, match="not a list"):
        open_caller(http_server.url)("runs")
