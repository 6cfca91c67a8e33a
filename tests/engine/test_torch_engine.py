"""The engine on a real tiny model: frozen for good, the same bit for bit, never in the way long."""

import asyncio
import dataclasses
import math

import numpy as np
import pytest
import torch
from support.rollouts import PROMPTS, RESPONSES, states

from r2m.errors import Code, Problem
from r2m.tensors import tensor_value
from r2m_service.application.align_job import AlignGroup, AlignJob
from r2m_service.application.scoring_items import HeadKey, HeadSource, Item, Text
from r2m_service.domain.method import Gate, MethodSettings, Omega
from r2m_service.domain.runs import TextRules
from r2m_service.engine.torch_engine import EngineLimits, TorchEngine
from r2m_service.modeling.head import Head
from r2m_service.modeling.loading import load_backbone

WIDTH_P = 24
METHOD = MethodSettings(
    profile="guarded", width=16, alpha=0.3, learning_rate=1e-2, weight_decay=0.0,
    max_grad_norm=1.0, omega=Omega(kind="constant", value=0.6), kl_weight=1.0,
    labels="outside_first",
)  # fmt: skip


@pytest.fixture(scope="module")
def backbone(reward_model):
    return load_backbone(str(reward_model))


@pytest.fixture(params=[False, True], ids=["batched", "deterministic"])
def engine(backbone, request):
    one = TorchEngine(backbone, deterministic=request.param)
    one.start()
    yield one
    one.stop()


def source(data, *, omega=0.6, feedback="policy"):
    return HeadSource("r", HeadKey(str(hash(data)), omega), feedback, lambda: data)


async def items(engine, seed, count):
    texts = [
        Text(PROMPTS[seed % 3], f"{RESPONSES[(seed + n) % 5]} " * (1 + n % 4) + str(n))
        for n in range(count)
    ]
    ids = [one.token_ids for one in await engine.encode(texts, rules=TextRules())]
    return [
        Item(one, tensor_value(states(100 * seed + n, width=WIDTH_P), dtype="float32"))
        for n, one in enumerate(ids)
    ]


async def job(engine, data, seed, *, t=0, optimizer=None, size=4, **changes):
    groups = [AlignGroup(await items(engine, 10 * seed + g, size), None) for g in range(3)]
    return AlignJob(
        **{
            "parent": source(data), "reference": source(first(engine)),
            "origin": source(first(engine)), "optimizer": optimizer,
            "t": t, "method": METHOD, "candidate_omega": 0.6, "groups": groups, **changes,
        }
    )  # fmt: skip


async def nobody(asked):
    raise AssertionError("all states are here: there is nothing to ask")


def first(engine, feedback="policy"):
    width = WIDTH_P if feedback == "policy" else engine.info.hidden_size
    return engine.first_head(policy_width=width, feedback=feedback, method=METHOD)


async def trained(engine, steps=3):
    data, optimizer = first(engine), None
    for n in range(steps):
        update = await engine.align(
            await job(engine, data, n, t=n, optimizer=optimizer), lambda _: None, nobody
        )
        assert update.finite
        data, optimizer = update.weights, update.optimizer
    return data


def test_the_backbone_is_bit_identical_after_training(engine, backbone):
    before = backbone.fingerprint
    data = asyncio.run(trained(engine, steps=4))
    assert Head.from_bytes(data).metadata["t"] == 4
    assert backbone.compute_fingerprint() == before


def test_deterministic_rewards_are_the_same_bit_for_bit_in_any_batch(backbone):
    async def rewards(engine, data):
        batch = await items(engine, 5, 12)
        together = await engine.score(source(data), batch)
        backwards = await engine.score(source(data), batch[::-1])
        alone = [(await engine.score(source(data), [item]))[0] for item in batch]
        assert together == backwards[::-1] == alone
        return together

    async def scenario():
        engine = TorchEngine(backbone, deterministic=True)
        cold = TorchEngine(backbone, deterministic=True, limits=EngineLimits(cache_bytes=0))
        for one in (engine, cold):
            one.start()
        try:
            data = await trained(engine)
            assert await trained(cold) == data
            assert await rewards(engine, data) == await rewards(cold, data)
        finally:
            engine.stop()
            cold.stop()

    asyncio.run(scenario())


def test_batched_rewards_differ_by_rounding_alone(backbone):
    async def scenario():
        engine = TorchEngine(backbone, limits=EngineLimits(cache_bytes=0))
        engine.start()
        try:
            data = await trained(engine)
            batch = await items(engine, 5, 12)
            together = await engine.score(source(data), batch)
            alone = [(await engine.score(source(data), [item]))[0] for item in batch]
        finally:
            engine.stop()
        found, expected = (np.array([s.reward for s in side]) for side in (together, alone))
        assert np.abs(found - expected).max() < 1e-5 * expected.std()

    asyncio.run(scenario())


def test_a_score_waits_for_at_most_one_group_of_an_align(engine):
    """Between two turns of an align, a score that came meanwhile has been answered."""

    async def scenario():
        data = first(engine)
        waiting = await items(engine, 7, 1)
        seen, scores = [], []

        def progress(_):
            seen.append((len(seen) + 1, sum(task.done() for task in scores)))
            scores.append(asyncio.ensure_future(engine.score(source(data), waiting)))

        await engine.score(source(data), waiting)  # loaded and embedded
        big = await job(engine, data, 1, size=8)
        await engine.align(big, progress, nobody)
        # By group n + 2 the score that came in after group n was there.
        assert all(finished >= done - 2 for done, finished in seen), seen
        assert len(seen) == 3
        await asyncio.gather(*scores)

    asyncio.run(scenario())


def test_a_broken_head_file_fails_its_own_call(engine):
    async def scenario():
        def read():
            raise Problem(Code.HEAD_DAMAGED, "the file is cut off")

        broken = HeadSource("r", HeadKey("broken", 0.6), "policy", read)
        batch = await items(engine, 1, 2)
        for _ in range(2):
            with pytest.raises(Problem, match="cut off"):
                await engine.score(broken, batch)
        assert len(await engine.score(source(first(engine)), batch)) == 2

    asyncio.run(scenario())


def test_states_that_overflow_have_an_error_and_not_a_number(engine):
    async def scenario():
        data = await trained(engine, steps=1)
        batch = await items(engine, 2, 3)
        huge = tensor_value(np.full((4, WIDTH_P), 3e38, np.float32), dtype="float32")
        batch[1] = Item(batch[1].token_ids, huge)
        scored = await engine.score(source(data), batch)
        assert isinstance(scored[1], Problem)
        assert scored[1].code == Code.REWARD_NOT_FINITE
        assert all(math.isfinite(scored[n].reward) for n in (0, 2))

    asyncio.run(scenario())


def test_a_candidate_that_overflows_is_not_finite(engine):
    async def scenario():
        head = Head.from_bytes(first(engine))
        wild = Head({**head.tensors, "w_v": head.tensors["w_v"] * 1e30}, {}).to_bytes()
        update = await engine.align(await job(engine, wild, 1), lambda _: None, nobody)
        assert not update.finite

    asyncio.run(scenario())


def test_rewards_that_overflow_are_noticed_with_drift_switched_off(engine):
    """Loss, gradient and weights are finite here; only the candidate's rewards are not."""

    async def scenario():
        bare = Gate(spread_min=None, spread_max=None, rank_correlation_min=None)
        method = dataclasses.replace(METHOD, gate=bare, max_grad_norm=None)
        # Beyond what a run may ask for: the quickest way to weights whose products overflow.
        object.__setattr__(method, "learning_rate", 1e37)
        update = await engine.align(
            await job(engine, first(engine), 1, method=method), lambda _: None, nobody
        )
        assert math.isfinite(update.total)
        assert math.isfinite(update.gradient_norm)
        weights = Head.from_bytes(update.weights).tensors.values()
        assert all(bool(torch.isfinite(tensor).all()) for tensor in weights)
        assert not update.finite

    asyncio.run(scenario())


def test_the_reference_pulls_and_feedback_of_the_backbone_needs_no_states(engine):
    async def scenario():
        data = await trained(engine)
        moved = await engine.align(await job(engine, data, 5, t=3), lambda _: None, nobody)
        assert moved.kl > 0
        at_start = await engine.align(await job(engine, first(engine), 5), lambda _: None, nobody)
        assert at_start.kl == pytest.approx(0.0, abs=1e-9)
        own = first(engine, "backbone")
        plain = [Item(item.token_ids, None) for item in await items(engine, 3, 4)]
        update = await engine.align(
            AlignJob(
                parent=source(own, feedback="backbone"),
                reference=source(own, feedback="backbone"),
                origin=source(own, feedback="backbone"),
                optimizer=None,
                t=0,
                method=METHOD,
                candidate_omega=0.6,
                groups=[AlignGroup(plain, None)],
            ),
            lambda _: None,
            nobody,
        )
        assert update.finite
        assert Head.from_bytes(update.weights).tensors["w_o"].any()
        with torch.no_grad():
            assert not Head.from_bytes(own).tensors["w_o"].any()

    asyncio.run(scenario())
