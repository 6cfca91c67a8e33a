"""Rewards of a few samples by any head, from their texts and states, on the device thread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from r2m.errors import Code, Problem
from r2m_service.application.align_job import Told
from r2m_service.application.scoring_items import Item, Trace, Vector
from r2m_service.engine.embedding import Embedder
from r2m_service.engine.pooling import own_states, pool_states, uploads_of, why_not_finite
from r2m_service.engine.states import States
from r2m_service.modeling.attention import Pooled
from r2m_service.modeling.backbone import Encoded
from r2m_service.modeling.head import Head, Parts

NOTHING: Told = {}
Errors = dict[int, Problem]
"""By the sample's place."""


class Measuring:
    """Texts to RTEs, states to pooled states, both to rewards.

    Args:
        states: whether the run attends, so that samples without feedback need their tokens' states.
        keeps_states: whether somebody asks for all samples' later: they come out of the same pass.
        one_by_one: deterministic mode: no product over more than one sample's query.
    """

    def __init__(
        self, embedder: Embedder, *, states: bool, one_by_one: bool, keeps_states: bool = False
    ) -> None:
        self._embedder = embedder
        self._states = states
        self._keeps_states = keeps_states
        self._one_by_one = one_by_one

    def encoded(self, items: Sequence[Item]) -> list[Encoded]:
        """RTEs, and token states where they are attended to."""
        states = self._keeps_states or (
            self._states and any(item.feedback is None and item.split is None for item in items)
        )
        return self._embedder.embed(
            [item.token_ids for item in items], states=[states] * len(items)
        )

    def pool(
        self,
        head: Head,
        items: Sequence[Item],
        encoded: Sequence[Encoded],
        rte_KR: Tensor,
        omega: float,
        errors: Errors,
    ) -> list[Pooled]:
        """c and j of each sample under a head's query; j along z = (1 − ω) v."""
        assert head.v_P is not None
        z_P = (1.0 - omega) * head.v_P
        queries_KP = self.queries(head, rte_KR)
        uploads = uploads_of(items, z_P.device)
        found: dict[int, Pooled] = {}
        for place, item in enumerate(items):
            try:
                if item.split is not None:
                    found[place] = _told_pooled(item, 1.0 - omega, z_P.device)
                else:
                    states = _or_own(uploads.take(place), encoded[place])
                    found[place] = pool_states(states, queries_KP[place], z_P)
            except Problem as problem:
                errors[place] = problem
        contexts = {place: one.c_P for place, one in found.items() if items[place].split is None}
        _note_not_finite(items, encoded, contexts, errors)
        return list(found.values())

    def parts(
        self,
        head: Head,
        items: Sequence[Item],
        encoded: Sequence[Encoded],
        rte_KR: Tensor,
        errors: Errors,
        told: Told = NOTHING,
    ) -> Parts | None:
        """Rewards by weights that are only asked, not trained; None where there is an error.

        Args:
            told: v·c under these weights of states that stay with the trainer.
        """
        if head.blind:
            return head.parts(rte_KR, None)
        assert head.v_P is not None
        queries_KP = self.queries(head, rte_KR)
        uploads = uploads_of(items, rte_KR.device)
        fused: list[Tensor] = []
        contexts: dict[int, Tensor] = {}
        for place, item in enumerate(items):
            try:
                if item.split is None:
                    states = _or_own(uploads.take(place), encoded[place])
                    contexts[place] = pool_states(states, queries_KP[place]).c_P
                    fused.append(contexts[place] @ head.v_P)
                else:
                    fused.append(_told_fused(item.split.id, told, rte_KR))
            except Problem as problem:
                errors[place] = problem
        _note_not_finite(items, encoded, contexts, errors)
        return None if errors else head.parts(rte_KR, None, torch.stack(fused))

    def queries(self, head: Head, rte_KR: Tensor) -> Tensor:
        """u of each sample."""
        if self._one_by_one:
            return torch.cat([head.queries(rte_R[None]) for rte_R in rte_KR])
        return head.queries(rte_KR)


def _or_own(uploaded: States | None, encoded: Encoded) -> States:
    """What a sample brought, or else the backbone's own."""
    return own_states(encoded) if uploaded is None else uploaded


def _note_not_finite(
    items: Sequence[Item],
    encoded: Sequence[Encoded],
    contexts: Mapping[int, Tensor],
    errors: Errors,
) -> None:
    """Note whose pooled states are no numbers. All are asked at once: a GPU is waited for once.

    Args:
        contexts: c by the sample's place.
    """
    if not contexts:
        return
    good = torch.isfinite(torch.stack(list(contexts.values()))).all(dim=1).tolist()
    for place, fine in zip(contexts, good, strict=True):
        problem = None if fine else why_not_finite(items[place], encoded[place], contexts[place])
        if problem is not None:
            errors[place] = problem


def _told_pooled(item: Item, share: float, device: torch.device) -> Pooled:
    """What the trainer pooled under this very head; j as the reward at ω has it.

    Raises:
        Problem: unanswered.
    """
    assert item.split is not None
    if item.split.pooled is None:
        raise unanswered("c and j")
    c_P, j_P = torch.tensor(item.split.pooled, device=device)
    return Pooled(c_P, share * j_P)


def _told_fused(name: str, told: Told, like: Tensor) -> Tensor:
    if name not in told:
        raise unanswered("v·c")
    return like.new_tensor(told[name])


def unanswered(what: str) -> Problem:
    """A trainer that keeps its hidden states did not say what was asked of one of them."""
    return Problem(
        Code.UNANSWERED,
        f"{what} of this sample's hidden states, which stay with the trainer, did not come",
        field="feedback.split",
    )


def require_rewards(rewards: Sequence[float], errors: Errors) -> None:
    """Note every reward that is not a number."""
    for place, reward in enumerate(rewards):
        if not math.isfinite(reward):
            errors[place] = Problem(
                Code.REWARD_NOT_FINITE, f"the reward of this sample is {reward}"
            )


def trace_of(
    rte_R: Tensor,
    u_P: Tensor | None,
    c_P: Tensor | None,
    j_P: Tensor | None = None,
    fused: Tensor | None = None,
) -> Trace:
    """What a reward was made of, off the device."""

    def off(vector: Tensor | None) -> Vector | None:
        return None if vector is None else vector.detach().float().cpu().numpy().copy()

    rte = off(rte_R)
    assert rte is not None
    return Trace(rte, off(u_P), off(c_P), off(j_P), None if fused is None else float(fused))
