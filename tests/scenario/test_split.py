"""Split attention: the hidden states stay with the trainer, and rewards and heads are the same."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load
from support.rollouts import WIDTH_P, groups, samples, states
from test_anchors_judge import anchor_states, gold_pairs

from r2m_client import Client, Group, Sample, ServerError
from r2m_client.split import Context, States

METHOD = {"width": 16, "learning_rate": 3e-4}
TWINS = ("streamed", "split")


@pytest.fixture
def twins(client, run_name):
    """Two runs of the same settings: one is sent hidden states, the other keeps them."""
    return make_twins(client, run_name, METHOD)


def make_twins(client, name, method):
    for twin in TWINS:
        client.create_run(f"{name}-{twin}"[-90:], policy_hidden_size=WIDTH_P, method=method)
    return {twin: f"{name}-{twin}"[-90:] for twin in TWINS}


def step(client, twins, n, **more):
    """Score and align one step on both; what both answered."""
    scored, aligned = {}, {}
    for twin, run in twins.items():
        scored[twin] = client.score(
            [one for group in groups(n) for one in group.samples], run=run, feedback=twin
        ).raise_for_errors()
        context = {"context": scored[twin].context} if twin == "split" else {}
        aligned[twin] = client.align(
            run, step=n, groups=groups(n), feedback=twin, **context, **more
        )
    return scored, aligned


def same_rewards(scored):
    streamed, split = (np.array(scored[twin].rewards) for twin in TWINS)
    assert np.abs(streamed - split).max() <= 1e-6 * max(1.0, streamed.std())


def same_heads(client, twins):
    streamed, split = (load(client.head_weights(twins[twin])) for twin in TWINS)
    for name, tensor in streamed.items():
        assert torch.allclose(tensor, split[name], atol=2e-6), name


def same_answers(aligned):
    streamed, split = (aligned[twin] for twin in TWINS)
    assert (split.verdict, split.accepted, split.head) == (
        streamed.verdict, streamed.accepted, streamed.head,
    )  # fmt: skip
    assert dataclasses.astuple(split.loss) == pytest.approx(
        dataclasses.astuple(streamed.loss), abs=1e-6
    )
    assert split.gradient_norm == pytest.approx(streamed.gradient_norm, rel=1e-5)
    assert split.drift.samples == streamed.drift.samples
    assert split.drift.spread_ratio == pytest.approx(streamed.drift.spread_ratio, abs=1e-5)
    assert split.groups == streamed.groups


def test_it_equals_streamed_feedback_step_by_step(client, twins):
    for n in (1, 2, 3):
        scored, aligned = step(client, twins, n)
        assert aligned["streamed"].accepted, aligned["streamed"].reason
        same_rewards(scored)
        same_answers(aligned)
        same_heads(client, twins)
    (score, *_), (other, *_) = (scored[twin].scores for twin in TWINS[::-1])
    assert score.vanilla_reward == pytest.approx(other.vanilla_reward, abs=1e-6)
    assert (score.states, score.tokens) == (other.states, other.tokens)


def test_a_reference_that_attends_is_asked_for(client, twins):
    """The pull and drift want its rewards of states that it has never seen."""
    for n in (1, 2):
        step(client, twins, n)
    for run in twins.values():
        client.set_alias(run, "reference", 1)
    _, aligned = step(client, twins, 3)
    assert aligned["split"].drift.reference == 1
    assert aligned["split"].loss.kl > 1e-9  # it is another head than the parent
    same_answers(aligned)
    same_heads(client, twins)


def test_anchors_are_judged_by_numbers(client, run_name):
    gate = {"anchors_every": 2, "anchors_margin": 0.3, "anchors_looks": 1, "anchors_alpha": 0.4}
    twins = make_twins(client, run_name, {**METHOD, "learning_rate": 1e-4, "gate": gate})
    pairs = gold_pairs(client)
    for run in twins.values():
        client.put_anchors(run, pairs)
    step(client, twins, 1)
    for run in twins.values():
        client.set_alias(run, "reference", 1)  # one that attends: three heads to ask about
    _, aligned = step(client, twins, 2, anchors=anchor_states(pairs))
    assert aligned["split"].anchors == aligned["streamed"].anchors
    assert aligned["split"].anchors.pairs == len(pairs)
    same_answers(aligned)


def test_without_context_the_server_asks_for_c_and_j(client, twins):
    step(client, twins, 1)
    answers = [
        client.align(run, step=2, groups=groups(2), feedback=twin) for twin, run in twins.items()
    ]
    same_answers(dict(zip(TWINS, answers, strict=True)))
    same_heads(client, twins)


def test_numbers_of_another_head_are_stale(client, twins):
    """What came with head 0 is of no use once head 1 is live: at align the server asks again."""
    run = twins["split"]
    old = client.score(
        [one for group in groups(2) for one in group.samples], run=run, feedback="split"
    )
    assert old.head == 0
    step(client, twins, 1)
    for twin, context in (("streamed", None), ("split", old.context)):
        answer = client.align(twins[twin], step=2, groups=groups(2), feedback=twin, context=context)
        assert answer.accepted
    same_heads(client, twins)


def test_a_stale_number_is_no_reward_and_brings_the_right_u_and_v(client, twins):
    from r2m_client import _calls
    from r2m_client._samples import Kept

    run = twins["split"]
    step(client, twins, 1)
    sample = samples(5, count=1)[0]
    call = _calls.score(
        [sample], run=run, head="live", wire_dtype="float32",
        kept={sample.id: Kept(len(sample.hidden_states), head=0, fused=0.5)},
    )  # fmt: skip
    answer = client._send(call)
    (score,) = answer.scores
    assert (score.reward, score.error.code) == (None, "stale_context")
    assert "head 0" in str(score.error)
    assert "head 1" in str(score.error)
    assert len(score.u) == len(answer.v) == 4 * WIDTH_P


def test_a_response_takes_four_vectors_whatever_its_length(client, twins):
    run = twins["split"]
    took = {}
    for n, tokens in ((1, 5), (2, 400)):
        batch = [
            dataclasses.replace(one, hidden_states=states(n, tokens=tokens))
            for one in samples(1, count=4)
        ]
        scored = client.score(batch, run=run, feedback="split")
        answer = client.align(
            run, step=n, groups=[Group("g", batch)], feedback="split", context=scored.context
        )
        assert answer.drift.samples == 4, answer.reason
        took[tokens] = sum(one.feedback_bytes for one in scored.scores) + answer.feedback_bytes
    assert took[5] == took[400]
    # u, c, j, u' of each; v' once; one number each for score and gate.
    assert took[5] == 4 * (4 * 4 * WIDTH_P) + 4 * WIDTH_P + 4 * 8 + 4 * 8


@pytest.mark.parametrize("kind", ["nan", "huge", "zero tokens", "no tokens"])
def test_a_wrong_sample_costs_itself(client, twins, kind):
    run = twins["split"]
    batch = samples(1, count=3)
    bad = {
        "nan": dataclasses.replace(batch[1], hidden_states=np.full((3, WIDTH_P), np.nan)),
        "huge": dataclasses.replace(batch[1], prompt=""),
        "zero tokens": dataclasses.replace(batch[1], hidden_states=np.zeros((0, WIDTH_P))),
        "no tokens": dataclasses.replace(batch[1], tokens=0),
    }[kind]
    good = client.score(batch, run=run, feedback="split").rewards
    scored = client.score([batch[0], bad, batch[2]], run=run, feedback="split")
    assert [one.error is None for one in scored.scores] == [True, False, True]
    assert [scored.rewards[0], scored.rewards[2]] == [good[0], good[2]]
    aligned = client.align(
        run, step=1, feedback="split", context=scored.context,
        groups=[Group("a", [batch[0], bad, batch[2]]), Group("b", samples(2, group="h"))],
    )  # fmt: skip
    assert aligned.groups.skipped_because == {"error": 1}
    assert aligned.groups.used == 1
    assert {(one.id, one.group) for one in aligned.errors} == {(bad.id, "a")}


class Silent(States):
    """A trainer that never answers about some samples' candidates, or about any."""

    def __init__(self, source, silent):
        super().__init__(source._states)
        self.silent = silent

    def fused(self, context):
        told = super().fused(context)
        if context.head is None:  # the candidate's: the gate asks
            told = {name: value for name, value in told.items() if not self.silent(name)}
        return told


@pytest.mark.parametrize(
    ("silent", "verdict", "measured"),
    [
        (lambda name: name == "g0-0", "accepted", 8),
        (lambda name: name[:2] != "g0", "undecided", 4),
        (lambda name: True, "undecided", 0),
    ],
    ids=["one", "most", "all"],
)
def test_the_gate_fails_shut_where_nobody_answers(client, twins, silent, verdict, measured):
    run = twins["split"]
    batch = groups(1)
    answers = Silent(States.of_step(batch), silent)
    answer = client.align(run, step=1, groups=batch, feedback=answers)
    assert (answer.verdict, answer.accepted) == (verdict, verdict == "accepted")
    assert answer.drift.samples == measured
    assert any("did not say" in note for note in answer.notes)
    assert client.score(samples(1), run=run, feedback="split").head == answer.head


def test_another_ticket_is_refused_and_the_step_goes_on(client, twins):
    from r2m_client import _calls

    with pytest.raises(ServerError) as caught:
        client._send(_calls.reply_align(twins["split"], "nonsense", []))
    assert caught.value.code == "unknown_ticket"


def test_retries_join_the_align_that_asks(server, client, twins):
    """Whoever lost the questions asks for them again by sending the same align."""
    from r2m_client import _split_talk

    run = twins["split"]

    def talk():
        return _split_talk.align(
            run, "split", None, step=1, groups=groups(1), branch=None, anchors=(),
            progress=None, wire_dtype="float32",
        )  # fmt: skip

    lost, kept = talk(), talk()
    asked = client._send(next(lost))  # and this answer never arrives
    with Client(server.urls["http"], wire_dtype="float32", retries=0) as other:
        again = other._send(next(kept))
        assert again.ticket == asked.ticket
        gate = other._send(kept.send(again))
        answer = other._send(kept.send(gate))
    assert answer.accepted
    assert client.align(run, step=1, groups=groups(1), feedback="split") == answer
    # The one that was left behind gets the same answer in the end.
    call = lost.send(asked)
    with pytest.raises(ServerError) as caught:
        client._send(call)
    assert caught.value.code == "unknown_ticket"
    assert client._send(lost.throw(caught.value)) == answer


def test_a_run_that_takes_no_states_refuses_numbers_too(client, run_name):
    client.create_run(run_name, feedback="none", method=METHOD)
    answer = client.score(samples(1), run=run_name, feedback="split")
    assert {one.error.code for one in answer.scores} == {"feedback_unexpected"}


def test_evaluate_takes_whole_states(client, twins):
    from r2m_client._calls import Call
    from r2m_client._results import Evaluation

    pair = {
        "id": "p",
        "chosen": {"id": "a", "prompt": "q", "response": "x",
                   "feedback": {"tokens": 3, "split": {"head": 0, "fused": 0.1}}},
        "rejected": {"id": "b", "prompt": "q", "response": "y",
                     "feedback": {"tokens": 3, "split": {"head": 0, "fused": 0.1}}},
    }  # fmt: skip
    run = twins["split"]
    call = Call(
        "Evaluate", "POST", f"/v1/runs/{run}/evaluate",
        lambda data: __import__("r2m_client._reading", fromlist=["read"]).read(Evaluation, data),
        {"run": run}, {"pairs": [pair], "heads": ["live"]},
    )  # fmt: skip
    answer = client._send(call)
    assert {one.error.code for one in answer.errors} == {"feedback_unexpected"}


def test_an_answer_that_would_be_too_large_is_refused_before_it_is_made(client, run_name):
    """A small request can ask for much: 32 MiB of u a call are 128 samples of this width."""
    width = 1 << 16
    client.create_run(run_name, policy_hidden_size=width, method={"width": 1})
    row = np.zeros((1, width), np.float32)
    batch = [Sample(f"s{n}", "q", "a", row) for n in range(129)]
    with pytest.raises(ServerError) as caught:
        client.score(batch, run=run_name, feedback="split")
    assert caught.value.code == "too_large"
    assert "may ask for 128" in str(caught.value)
    assert len(client.score(batch[:2], run=run_name, feedback="split").rewards) == 2
    many = [Group(f"g{n}", [Sample(f"g{n}-{m}", "q", "a", row) for m in range(8)])
            for n in range(65)]  # fmt: skip
    with pytest.raises(ServerError) as caught:
        client.align(run_name, step=1, groups=many, feedback="split")
    assert caught.value.code == "too_large"
    assert client.run(run_name).next_step == 1


def test_samples_of_a_stream_too(server, twins):
    """ScoreStream answers with u, and the same sample comes again with its number."""
    import asyncio

    import grpc.aio

    from r2m.v1 import r2m_pb2 as pb
    from r2m_client.split import Context

    run = twins["split"]
    (sample,) = samples(1, count=1)
    answers = States.of([sample])

    def message(**split):
        one = pb.Sample(id=sample.id, prompt=sample.prompt, response=sample.response)
        one.feedback.tokens = len(sample.hidden_states)
        one.feedback.split.SetInParent()
        for key, value in split.items():
            setattr(one.feedback.split, key, value)
        return pb.ScoreStreamRequest(sample=one).SerializeToString()

    async def talk():
        async with grpc.aio.insecure_channel(server.urls["grpc"].removeprefix("grpc://")) as wire:
            call = wire.stream_stream("/r2m.v1.RewardModelService/ScoreStream")()

            async def read():
                return pb.ScoreStreamResponse.FromString(await call.read())

            opening = pb.ScoreStreamRequest(open=pb.ScoreRequest(run=run))
            await call.write(opening.SerializeToString())
            opened = (await read()).opened
            await call.write(message())
            asked = (await read()).score
            context = Context(opened.v, {sample.id: asked.u}, opened.head)
            fused = answers.fused(context)[sample.id]
            await call.write(message(head=opened.head, fused=fused))
            scored = (await read()).score
            await call.done_writing()
            return asked, scored

    asked, scored = asyncio.run(talk())
    assert not asked.HasField("reward")
    with Client(server.urls["grpc"], wire_dtype="float32") as client:
        assert scored.reward == client.score([sample], run=run, feedback="split").rewards[0]


def test_long_states_on_any_device_pool_alike():
    """numpy and torch, float32 and bfloat16, against the plain formula in float64."""
    from r2m_client.split import Context

    draw = np.random.default_rng(0)
    h = draw.standard_normal((2500, 32)).astype(np.float32)
    u, v = (draw.standard_normal(32).astype(np.float32) for _ in range(2))
    context = Context(v.tobytes(), {"a": u.tobytes()})
    wide = h.astype(np.float64)
    a = np.exp(wide @ u - (wide @ u).max())
    a /= a.sum()
    c = a @ wide
    j = (a * (wide @ v)) @ wide - (c @ v) * c
    for states_of in (h, torch.from_numpy(h), torch.from_numpy(h).bfloat16(), h.tolist()):
        held = States({"a": states_of})
        close = 2e-2 if getattr(states_of, "dtype", None) is torch.bfloat16 else 2e-5
        assert held.fused(context)["a"] == pytest.approx(c @ v, abs=close)
        both = np.frombuffer(held.pooled(context)["a"], dtype="<f4").reshape(2, 32)
        assert np.abs(both - np.stack([c, j])).max() < close * 5
        held.free()
        assert held.tokens() == {}


def test_a_wrong_width_is_said_before_anything_is_sent(client, twins):
    wrong = Sample("a", "q", "r", states(1, width=WIDTH_P + 1))
    with pytest.raises(ValueError, match="expected \\[tokens, 24\\]"):
        client.score([wrong], run=twins["split"], feedback="split")


def test_scores_in_the_background_make_the_same_step(client, twins):
    """A call a group, and one context of all of them for the align."""
    step(client, twins, 1)
    steps = groups(2)
    streamed = client.score(
        [one for group in steps for one in group.samples], run=twins["streamed"]
    ).rewards
    futures = [
        client.score_async(group.samples, run=twins["split"], step=2, feedback="split")
        for group in steps
    ]
    scored = [future.result() for future in futures]
    rewards = [reward for result in scored for reward in result.rewards]
    assert rewards == pytest.approx(streamed, abs=1e-6)
    context = Context.joined(result.context for result in scored)
    assert len(context.queries) == len(streamed)
    client.align(twins["streamed"], step=2, groups=steps)
    client.align(twins["split"], step=2, groups=steps, feedback="split", context=context)
    same_heads(client, twins)
