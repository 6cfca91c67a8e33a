"""The fake side by side with a real server: the same story, all but the numbers."""

import dataclasses
import re

import numpy as np
import pytest
from safetensors.torch import load
from support.fakes import fake_server
from support.models import WIDTH_R
from support.rollouts import WIDTH_P, groups, samples, states
from test_main_job import METHOD, bad_samples, checked, story

from r2m_client import AnchorStates, Client, Group, Label, Pair, R2MError, Sample
from r2m_client.testing import FakeServer


@pytest.fixture
def both(server):
    """A real server's client and a fake's."""
    with (
        Client(server.urls["http"], wire_dtype="float32", retries=0) as real,
        fake_server().client(wire_dtype="float32", retries=0) as fake,
    ):
        yield real, fake


UNLIKE = {
    "created_at": "when",
    "since": "when",
    "sha256": "hash",
    "bytes": 0,
    "fingerprint": "model",
    # The fake keeps every head and has no disk.
    "disk": None,
    "optimizer_bytes": None,
    "tokens": 0,  # a matter of the tokenizer
    "feedback_gain": None,  # the fake asks for no reward with another sample's states
}
MEASURED = {"loss", "drift", "sigma", "gradient_norm", "evidence", "anchors"}


def masked(value, *, numbers=(float,)):
    """The value's shape: floats, also those in sentences, are only seen to be there."""
    if dataclasses.is_dataclass(value):
        found = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
        if "branches" in found:  # in no promised order
            found["branches"] = sorted(found["branches"], key=lambda one: one.branch)
        return masked({key: UNLIKE.get(key, one) for key, one in found.items()}, numbers=numbers)
    if isinstance(value, dict):
        # Among a head's metrics a float that happens to be whole comes as an int.
        return {
            key: masked(one, numbers=(int, float) if key in MEASURED else numbers)
            for key, one in value.items()
            if key not in UNLIKE
        }
    if isinstance(value, list | tuple):
        return [masked(one, numbers=numbers) for one in value]
    if isinstance(value, R2MError):
        return type(value), value.code, value.field, value.message
    if isinstance(value, numbers):
        return "a number"
    return re.sub(r"-?\d+\.\d+", "#", value) if isinstance(value, str) else value


def said(call):
    """How a call was refused."""
    with pytest.raises(R2MError) as caught:
        call()
    error = caught.value
    return type(error), error.code, error.field, error.message, error.status, error.retryable


def test_the_fake_tells_the_same_story(server):
    with Client(server.urls["http"], wire_dtype="float32", retries=0) as real:
        theirs = story(real, "story-beside-fake")
    with fake_server().client(wire_dtype="float32", retries=0) as fake:
        ours = story(fake, "story-fake")
    assert ours[0] == theirs[0]  # the resolved method: numbers that both must have
    assert len(ours) == len(theirs)
    for mine, other in zip(masked(ours), masked(theirs), strict=True):
        assert mine == other


def test_bad_samples_have_the_words_of_the_real_server(both, run_name):
    found = []
    for client in both:
        client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
        bad = {what: one for what, (one, _) in bad_samples().items()}
        # How many tokens a text has is the tokenizer's matter, and so is whether they are counted.
        bad["too long"] = numbered("x " * 140)
        bad["empty prompt"] = Sample("a", "", "r", states(1))
        errors = [checked(client, run_name, one) for one in bad.values()]
        found.append([
            (type(e), e.code, re.sub(r"^\d+ tokens", "# tokens", e.message), e.field)
            for e in errors
        ])  # fmt: skip
    assert found[0] == found[1]


def numbered(response="r", **changes):
    return Sample("a", "p", response, states(1), **changes)


def pair(**changes):
    return [Group("g", samples(1, count=2), **changes)]


WRONG = {
    "run name": lambda c, run: c.create_run("../x", policy_hidden_size=3),
    "width 0": lambda c, run: c.create_run("x", policy_hidden_size=0),
    "width huge": lambda c, run: c.create_run("x", policy_hidden_size=1 << 21),
    "convention": lambda c, run: c.create_run("x", policy_hidden_size=3, hidden_state="mid"),
    "feedback": lambda c, run: c.create_run("x", feedback="hope"),
    "backbone's width": lambda c, run: c.create_run("x", feedback="backbone", policy_hidden_size=9),
    "other feedback": lambda c, run: c.create_run(run, feedback="none", method=METHOD),
    "other convention": lambda c, run: c.create_run(
        run, policy_hidden_size=WIDTH_P, hidden_state="pre_norm", method=METHOD
    ),
    "other omega": lambda c, run: c.create_run(
        run,
        policy_hidden_size=WIDTH_P,
        method={**METHOD, "omega": {"kind": "ramp", "steps": 3, "floor": 0.5}},
    ),
    "unknown run": lambda c, run: c.run("nobody"),
    "unknown head": lambda c, run: c.head(run, 9),
    "unknown head's weights": lambda c, run: c.head_weights(run, "best"),
    "head below 0": lambda c, run: c.set_alias(run, "best", -1),
    "expect huge": lambda c, run: c.set_alias(run, "best", 0, expect=1 << 31),
    "alias not set": lambda c, run: c.set_alias(run, "best", 0, expect=0),
    "sample id": lambda c, run: c.score([Sample("", "p", "r")]),
    "long id": lambda c, run: c.score([Sample("x" * 257, "p", "r")]),
    "format": lambda c, run: c.score([numbered(format="html")], run=run),
    "sample's convention": lambda c, run: c.score([numbered(hidden_state="mid")], run=run),
    "long finish_reason": lambda c, run: c.score([numbered(finish_reason="x" * 101)], run=run),
    "vanilla ids": lambda c, run: c.score([Sample("a", "p", "r"), Sample("a", "p", "q")]),
    "step 0": lambda c, run: c.align(run, step=0, groups=[]),
    "step huge": lambda c, run: c.align(run, step=1 << 31, groups=[]),
    "step 2": lambda c, run: c.align(run, step=2, groups=[]),
    "id in a group": lambda c, run: c.align(
        run, step=1, groups=[Group("g", [numbered()]), Group("h", [Sample("", "p", "r")])]
    ),
    "group id": lambda c, run: c.align(run, step=1, groups=[Group("", [])]),
    "group ids": lambda c, run: c.align(run, step=1, groups=[Group("g", []), Group("g", [])]),
    "three preferred": lambda c, run: c.align(
        run, step=1, groups=pair(preferred=["g-0", "g-1", "g-2"])
    ),
    "one preferred": lambda c, run: c.align(run, step=1, groups=pair(preferred=["g-0"])),
    "strange preferred": lambda c, run: c.align(run, step=1, groups=pair(preferred=["g-0", "x"])),
    "no target": lambda c, run: c.rollback(run),
    "two targets": lambda c, run: c.rollback(run, to=0, to_step=0),
    "step to come": lambda c, run: c.rollback(run, to_step=1),
    "head to come": lambda c, run: c.rollback(run, to=1),
    "target below 0": lambda c, run: c.rollback(run, to=-1),
    "branch unknown": lambda c, run: c.rollback(run, to_step=0, branch="b7"),
    "long branch": lambda c, run: c.rollback(run, to=0, branch="x" * 101),
    "align on a long branch": lambda c, run: c.align(run, step=1, groups=[], branch="x" * 101),
    "long reason": lambda c, run: c.rollback(run, to=0, reason="x" * 1001),
    "nothing to change": lambda c, run: c.update_run(run, {}),
    "a fixed key": lambda c, run: c.update_run(run, {"width": 3}),
    "a wrong value": lambda c, run: c.update_run(run, {"alpha": 2}),
    "a wrong gate": lambda c, run: c.update_run(run, {"gate": {"spread_min": 9}}),
    "a gate that is none": lambda c, run: c.update_run(run, {"gate": None}),
    "change's reason": lambda c, run: c.update_run(run, {"alpha": 1}, reason="x" * 1001),
    "nobody's changes": lambda c, run: c.changes("nobody"),
    "no anchors": lambda c, run: c.anchors(run),
    "anchors of nobody": lambda c, run: c.put_anchors("nobody", [gold()]),
    "empty anchors": lambda c, run: c.put_anchors(run, []),
    "anchors' ids": lambda c, run: c.put_anchors(run, [gold(), gold()]),
    "anchor's id": lambda c, run: c.put_anchors(run, [gold("")]),
    "equal sides": lambda c, run: c.put_anchors(run, [gold(worse="yes")]),
    "an empty prompt": lambda c, run: c.put_anchors(
        run, [Pair("p", Sample("a", "", "r"), Sample("b", "", "q"))]
    ),
    "a side's id": lambda c, run: c.put_anchors(
        run, [Pair("p", Sample("", "p", "r"), Sample("b", "p", "q"))]
    ),
    "a side without text": lambda c, run: c.put_anchors(
        run, [Pair("p", Sample("a", "p", "r"), Sample("b"))]
    ),
    "states of no set": lambda c, run: c.align(
        run, step=1, groups=[], anchors=[AnchorStates("p", states(1), states(2))]
    ),
    "label of nobody": lambda c, run: c.add_labels("nobody", [Label(id="a", grade=1.0)]),
    "label's id": lambda c, run: c.add_labels(run, [Label(id="", grade=1.0)]),
    "label's source": lambda c, run: c.add_labels(
        run, [Label(id="a", grade=1.0, source="x" * 101)]
    ),
    "samples of nobody": lambda c, run: c.samples("nobody"),
    "no samples": lambda c, run: c.samples(run, limit=0),
    "many samples": lambda c, run: c.samples(run, limit=1001),
    "before the first": lambda c, run: c.samples(run, after=-1),
    "after the last": lambda c, run: c.samples(run, after=1 << 63),
    "pairs' ids": lambda c, run: c.evaluate(run, [gold(), gold()]),
    "pair's head": lambda c, run: c.evaluate(run, [gold()], heads=["best"]),
    "pair's id": lambda c, run: c.evaluate(
        run, [Pair("x" * 257, Sample("a", "p", "r"), Sample("b", "p", "q"))]
    ),
    "freeze nobody": lambda c, run: c.freeze("nobody"),
}


def gold(name="p", better="yes", worse="no"):
    return Pair(name, Sample(f"{name}-a", "p", better), Sample(f"{name}-b", "p", worse))


@pytest.mark.parametrize("what", list(WRONG))
def test_wrong_calls_are_refused_in_the_words_of_the_real_server(both, run_name, what):
    found = []
    for client in both:
        client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
        found.append(said(lambda client=client: WRONG[what](client, run_name)))
    assert found[0] == found[1]


TURN = {"role": "user", "content": "p"}
ANSWER = {"role": "assistant", "content": "r"}
TEXTS = [
    {"messages": [TURN]},
    {"messages": [TURN, {"role": "assistant", "content": ""}]},
    {"messages": [TURN, {"role": "assistant"}]},
    {"messages": [TURN, ANSWER], "token_ids": [1]},
    {"prompt": "p", "response": "r", "messages": [TURN, ANSWER]},
    {"prompt": "p", "token_ids": [1]},
    {"token_ids": [1, -2]},
    {"messages": [TURN, {**ANSWER, "tool_calls": "{}"}]},
    {"messages": [TURN, {**ANSWER, "tool_calls": "[1"}]},
    {"prompt": ""},
    {"response": "r"},
    {"prompt": "p"},
    {"response": "r", "format": "raw"},
    {"response": "r", "format": "raw", "special_tokens": False, "truncation": "left"},
    {"prompt": "p", "response": "r", "special_tokens": False},
    {"prompt": "p", "response": "r", "truncation": "right"},
    {"token_ids": [1], "special_tokens": True},
    {"messages": [TURN, ANSWER], "truncation": "left"},
]


@pytest.mark.parametrize("text", TEXTS, ids=str)
def test_texts_are_refused_alike(both, text):
    found = []
    for client in both:
        (score,) = client.score([Sample("a", **text)]).scores
        error = score.error
        found.append(error and (type(error), error.code, error.field, error.message))
    for one in ("token id", "not valid JSON"):  # how far the vocabulary goes; where the JSON breaks
        if found[0] and one in found[0][-1]:
            found = [(*error[:-1], error[-1].split(one)[0]) for error in found]
    assert found[0] == found[1]


def labelled_story(client, run):
    """Anchors, marks, labels, evaluation, settings and a freeze."""
    # One look with a margin that two pairs can be within.
    gate = {"anchors_every": 2, "anchors_margin": 0.49, "anchors_alpha": 0.49, "anchors_looks": 1}
    method = {**METHOD, "audit_rate": 1, "judge_share": 0.5, "gate": gate}
    yield client.create_run(run, policy_hidden_size=WIDTH_P, method=method)
    yield client.put_anchors(run, [gold("p"), gold("q", "better", "worse")])
    yield client.put_anchors(run, [gold("p"), gold("q", "better", "worse")], reason="again")
    yield client.align(run, step=1, groups=groups(1))
    mine = [
        Sample(f"{prompt}-{n}", prompt, "r" * n, states(n), group=prompt)
        for prompt in ("one", "two", "three", "four")
        for n in (1, 2, 3)
    ]
    yield client.score(mine, run=run)
    yield client.score(mine[:3], run=run, head=0)
    yield client.score([Sample("one-1", "one", "other", states(1), group="one")], run=run)
    labels = [
        *(Label(id=f"{prompt}-1", grade=1.0, source="me") for prompt in ("one", "two", "three")),
        Label(chosen="one-2", rejected="one-1"),
        Label(chosen="four-3", rejected="four-1"),
        Label(chosen="one-2", rejected="two-1"),
        Label(chosen="one-2", rejected="one-2"),
        Label(id="one-1", chosen="one-2"),
        Label(id="nobody", grade=1.0),
        Label(id="two-2", grade=0.0),
    ]
    yield client.add_labels(run, labels)
    again = [Label(id="one-1", grade=1.0), labels[3], Label(id="one-1", grade=2.0)]
    yield client.add_labels(run, again)
    yield client.samples(run)
    yield client.samples(run, waiting=True, limit=2)
    anchors = [AnchorStates(name, states(1), states(2)) for name in ("p", "q", "other")]
    sent = [Group(g.id, g.samples, (f"{g.id}-0", f"{g.id}-1")) for g in groups(2)]
    sent.append(Group("anchored", [Sample(f"a{n}", "p", "r" * n, states(n)) for n in (1, 2, 3)],
                      ("a1", "a2")))  # fmt: skip
    yield client.align(run, step=2, groups=sent, anchors=anchors)
    yield client.anchors(run)
    pairs = [
        Pair(
            f"e{n}",
            Sample(f"e{n}a", "p", "r" * n, states(n)),
            Sample(f"e{n}b", "p", "q", states(20 + n)),
        )
        for n in range(1, 5)
    ]
    pairs.append(Pair("bad", Sample("a", "p", "r"), Sample("b", "p", "q", states(1))))
    found = client.evaluate(run, pairs, heads=["live", 0, "reference"])
    yield found.pairs, [one.head for one in found.heads], found.errors, found.heads[0].better
    found = client.evaluate(run, pairs, heads=["live", 0], margins=True)
    yield [len(one.margins) for one in (*found.heads, found.vanilla)]
    yield client.freeze(run, reason="holiday")
    yield client.freeze(run, reason="still")
    yield client.align(run, step=3, groups=groups(3))
    yield client.unfreeze(run)
    yield client.update_run(run, {"alpha": 0.5, "gate": {"spread_max": 3}}, reason="softer")
    yield client.update_run(run, {"alpha": 0.5})
    yield [(one.what, one.detail, one.reason) for one in client.changes(run)]
    yield client.run(run)


def test_labels_anchors_and_changes_look_alike(both, run_name):
    theirs, ours = ([masked(one) for one in labelled_story(client, run_name)] for client in both)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == other


METHODS = [
    {},
    {"profile": "guarded", "width": 64, "gate": {"spread_max": None}},
    {"profile": "paper", "omega": {"kind": "cosine", "total_steps": 9, "floor": 0.6}},
    {"profile": "paper", "omega": {"kind": "constant", "value": 1}, "gate": {"spread_min": 1}},
    {"alpha": 1, "learning_rate": 1, "max_grad_norm": None, "labels": "pseudo", "seed": 7},
    {"omega": {"kind": "ramp", "steps": 4, "floor": 0}},
    # Refused:
    {"profile": "paper"},
    {"profile": "none"},
    {"width": 0},
    {"width": "wide"},
    {"width": 1.5},
    {"alpha": 2},
    {"alpha": None},
    {"alpha": True},
    {"learning_rate": "0.1"},
    {"width": 65537},
    {"learning_rate": 1001},
    {"seed": 2**53},
    {"learning_rate": 0},
    {"weight_decay": -1},
    {"kl_weight": 1e6},
    {"max_grad_norm": 0},
    {"seed": -1},
    {"labels": "some"},
    {"labels": None},
    {"labels": 3},
    {"omega": 0.6},
    {"omega": {}},
    {"omega": {"kind": "linear"}},
    {"omega": {"kind": "ramp", "floor": 0.5}},
    {"omega": {"kind": "constant", "value": 0.5, "floor": 0.5}},
    {"omega": {"kind": "constant", "value": 1.5}},
    {"omega": {"kind": "ramp", "steps": 0, "floor": 0.5}},
    {"omega": {"kind": "cosine", "total_steps": 2**31, "floor": 0.5}},
    {"omega": {"kind": "ramp", "steps": 0, "floor": 7}},
    {"omega": {"kind": "constant", "value": 0.5, "speed": 1}},
    {"gate": {"spread": 1}},
    {"gate": {"spread_min": 0}},
    {"gate": {"spread_min": 3}},
    {"gate": {"rank_correlation_min": 2}},
    {"profile": "labelled", "audit_rate": 0.1, "judge_share": 1, "freeze_on_alarm": True},
    {"profile": "labelled", "gate": {"spread_max": 3, "anchors_every": None}},
    {"gate": {"anchors_every": 5, "undecided": "move", "reference": "anchors"}},
    {"gate": {"anchors_every": 0}},
    {"gate": {"anchors_looks": None}},
    {"gate": {"freeze_after": 2**31}},
    {"gate": {"anchors_margin": 0.5}},
    {"gate": {"anchors_alpha": None}},
    {"gate": {"undecided": "wait"}},
    {"gate": {"reference": None}},
    {"labels": "outside_only", "replay_groups": 5000},
    {"replay_groups": 1.5},
    {"audit_rate": 1.01},
    {"judge_share": True},
    {"freeze_on_alarm": 1},
    {"freeze_on_alarm": "yes"},
]


@pytest.mark.parametrize("feedback", ["policy", "none"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_methods_are_resolved_and_refused_alike(both, method, feedback):
    run = f"method-{METHODS.index(method)}-{feedback}"
    width = WIDTH_P if feedback == "policy" else None
    found = []
    for client in both:
        try:
            info = client.create_run(
                run, policy_hidden_size=width, feedback=feedback, method=method
            )
            found.append((info.method, client.score([], run=run).omega))
        except R2MError as error:
            found.append((type(error), error.code, error.field, error.message))
    assert found[0] == found[1]


def test_runs_and_heads_look_alike(both, run_name):
    found = []
    for client in both:
        client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
        answers = [client.align(run_name, step=n, groups=groups(n)) for n in (1, 2, 3)]
        # The real server keeps few optimizer states beside those of aliased heads.
        answers.append(client.set_alias(run_name, "one", 1))
        answers.append(client.rollback(run_name, to_step=2, reason="why not"))
        answers.append(client.align(run_name, step=3, groups=groups(7)))
        answers.append(client.rollback(run_name, to=1))
        answers += [client.rollback(run_name, to_step=n, branch="b1") for n in (0, 1, 2, 3)]
        answers.append(client.align(run_name, step=3, groups=groups(7), branch="b1"))
        answers.append(
            said(lambda client=client: client.align(run_name, step=4, groups=[], branch="b1"))
        )
        answers += [client.run(run_name), *client.heads(run_name)]
        answers.append({n: t.shape for n, t in load(client.head_weights(run_name)).items()})
        found.append(masked(answers))
    assert found[0] == found[1]


def test_scores_and_what_they_add_up_to_look_alike(both, run_name):
    """All but how many tokens a text has, which is the tokenizer's matter."""
    broken = states(2)
    broken[0, 0] = np.nan
    batch = [*samples(1), Sample("nan", "p", "r", broken), Sample("bare", "p", "r"),
             numbered(finish_reason="stop"), Sample("none", hidden_states=states(1)),
             Sample("half", "p", hidden_states=states(1), finish_reason="length")]  # fmt: skip
    found = []
    for client in both:
        client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
        client.align(run_name, step=1, groups=groups(1))
        scores = client.score(batch, run=run_name).scores
        scores += client.score([Sample("own", "p", "r")]).scores
        usage = client.run(run_name).usage
        assert usage.tokens > sum(one.tokens or 0 for one in scores[:-1])  # that of "nan" counts
        found.append(masked([
            usage.samples, usage.failed, usage.feedback_bytes, usage.aligns,
            [(one.id, one.states, one.tokens is None, one.truncated, one.error and one.error.code)
             for one in scores],
            [(one.error and one.error.message, one.finish_reason) for one in scores],
            client.runs()[-1].usage, client.archive_run(run_name).live,
        ]))  # fmt: skip
    assert found[0] == found[1]


def test_scores_name_the_branch_that_goes_on(both, run_name):
    found = []
    for client in both:
        client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
        for step in (1, 2):
            client.align(run_name, step=step, groups=groups(step))
        client.rollback(run_name, to_step=1)
        answers = [client.score([], run=run_name, head=head) for head in ("live", 0, 1, 2)]
        # The same by step: what a trainer that knows its clock asks for.
        steps = [(1, None), (2, None), (1, "main"), (2, "main"), (3, "main"), (None, "main")]
        answers += [client.score([], run=run_name, step=n, branch=b) for n, b in steps]
        refused = [
            said(lambda client=client, asked=asked: client.score([], run=run_name, **asked))
            for asked in (
                {"step": 3},
                {"step": 0},
                {"step": 1 << 31},
                {"branch": "b7"},
                {"step": 1, "head": 0},
                {"branch": "main", "head": "previous"},
            )
        ]
        found.append(([(one.head, one.branch, one.omega) for one in answers], refused))
    assert found[0] == found[1]
    assert [one[:2] for one in found[0][0]] == [
        (1, "b1"), (0, "main"), (1, "b1"), (2, "main"),
        (0, "b1"), (1, "b1"), (0, "main"), (1, "main"), (2, "main"), (2, "main"),
    ]  # fmt: skip


def test_omega_follows_the_same_schedule(both, run_name):
    found = []
    for client in both:
        client.create_run(
            run_name,
            policy_hidden_size=WIDTH_P,
            last_token=False,
            method={**METHOD, "omega": {"kind": "ramp", "steps": 5, "floor": 0.3}},
        )
        answers = [client.align(run_name, step=n, groups=groups(n)) for n in (1, 2, 3)]
        heads = [(one.t, one.omega) for one in client.heads(run_name)]
        # One token has no state: the last.
        told = [Sample(str(n), "p", "r", states(1, tokens=5), tokens=n) for n in (5, 6)]
        scores = client.score(told, run=run_name).scores
        found.append(
            ([one.omega for one in answers], heads, scores[0].error.message, scores[1].error)
        )
    assert found[0] == found[1]
    assert len(set(found[0][0])) == 3


@pytest.mark.parametrize("feedback", ["backbone", "none"])
def test_weights_of_runs_without_hidden_states_look_alike(both, run_name, feedback):
    found = []
    for client in both:
        client.create_run(run_name, feedback=feedback, method=METHOD)
        weights = load(client.head_weights(run_name))
        found.append({name: (one.shape, one.dtype) for name, one in weights.items()})
    assert found[0] == found[1]


def test_losses_are_computed_as_the_real_server_does(server, run_name):
    """The one place where numbers are compared: the same rewards give the same objective."""
    method = {
        "profile": "paper",
        "width": 16,
        "learning_rate": 0.01,
        "omega": {"kind": "constant", "value": 0.6},
        "kl_weight": 0.5,
    }
    batch = [*groups(1, size=5), Group("two", samples(40, group="two", count=2))]
    batch.append(Group("three", samples(50, group="three", count=3)))
    everyone = [sample for group in batch for sample in group.samples]
    with Client(server.urls["http"], wire_dtype="float32", retries=0) as real:
        real.create_run(run_name, policy_hidden_size=WIDTH_P, method=method)
        theirs = [real.align(run_name, step=step, groups=batch) for step in (1, 2)]
        scored = {
            (one.id, head): one.reward
            for head in (0, 1)
            for one in real.score(everyone, run=run_name, head=head).scores
        }
    fake = FakeServer(lambda sample, head: scored[sample.id, head], hidden_size=WIDTH_R).client()
    fake.create_run(run_name, policy_hidden_size=WIDTH_P, method=method)
    ours = [fake.align(run_name, step=step, groups=batch) for step in (1, 2)]
    assert theirs[0].loss.kl == 0
    assert theirs[1].loss.kl > 1e-3  # far enough from the reference to tell the two directions
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("bt", "gre", "kl", "total"):
            # Scored in other batches, the rewards differ in their last bits; σ makes that more.
            expected = getattr(other.loss, name)
            assert getattr(mine.loss, name) == pytest.approx(expected, abs=1e-4)
        assert mine.sigma == pytest.approx(other.sigma, rel=1e-5)
        assert (mine.notes, mine.groups) == (other.notes, other.groups)


def test_both_take_pseudo_labels_alone_where_the_run_says_so(both, run_name):
    found = []
    for client in both:
        client.create_run(
            run_name, policy_hidden_size=WIDTH_P, method={**METHOD, "labels": "pseudo"}
        )
        found.append(
            said(
                lambda client=client: client.align(
                    run_name, step=1, groups=pair(preferred=["g-0", "g-1"])
                )
            )
        )
    assert found[0] == found[1]


def test_infinite_states_are_found_in_whatever_dtype_they_came(both, run_name):
    wrong = states(3)
    wrong[1, 2], wrong[2, 0] = np.nan, np.inf
    found = set()
    for client in both:
        client.create_run(run_name, policy_hidden_size=WIDTH_P, method=METHOD)
        for dtype in (np.float32, np.float16):
            bad = Sample("a", "p", "r", wrong.astype(dtype))
            found.add(client.score([bad], run=run_name).scores[0].error.message)
    assert len(found) == 1
