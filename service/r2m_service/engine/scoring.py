"""A batch of samples to rewards: one forward pass for all, the head stage by version."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from r2m.errors import Code, Problem
from r2m_service.application.engine_port import Item, Queried, Scored, Trace
from r2m_service.application.timings import Timings
from r2m_service.engine.embedding import Embedder
from r2m_service.engine.measuring import trace_of
from r2m_service.engine.pooling import pool_item
from r2m_service.modeling.backbone import Backbone
from r2m_service.modeling.backbone import Encoded as Embedded
from r2m_service.modeling.head import Head


@dataclass(frozen=True, slots=True)
class ScoreWork:
    """One sample on its way through the device. `head` is None for vanilla rewards."""

    head: Head | None
    omega: float
    attends_to_backbone: bool
    item: Item
    timings: Timings


class BatchScorer:
    """Scores batches. Called on the device thread.

    Args:
        one_by_one: deterministic mode: no product over more than one sample.
        trace: tell what the rewards were made of, for the journal.
    """

    def __init__(
        self, backbone: Backbone, embedder: Embedder, *, one_by_one: bool, trace: bool
    ) -> None:
        self._backbone = backbone
        self._embedder = embedder
        self._one_by_one = one_by_one
        self._trace = trace

    def __call__(self, batch: Sequence[ScoreWork]) -> list[Scored | Queried | Problem]:
        """A batch's rewards, each with its share of the time by tokens."""
        started = time.perf_counter()
        found = self._rewards(batch)
        spent = time.perf_counter() - started
        share = spent / sum(len(work.item.token_ids) for work in batch)
        return [
            replace(one, device_seconds=share * len(work.item.token_ids))
            if isinstance(one, Scored)
            else one
            for one, work in zip(found, batch, strict=True)
        ]

    @torch.inference_mode()
    def _rewards(self, batch: Sequence[ScoreWork]) -> list[Scored | Queried | Problem]:
        began = time.perf_counter()
        encoded = self._embedder.embed(
            [work.item.token_ids for work in batch],
            states=[work.attends_to_backbone for work in batch],
        )
        embedded = time.perf_counter()
        found: list[Scored | Queried | Problem] = [
            Problem(Code.COMPUTE_FAILED, "not scored")
        ] * len(batch)
        for places in self._by_head(batch):
            head = batch[places[0]].head
            rte_NR = torch.stack([encoded[place].rte_R for place in places])
            vanilla_N = self._backbone.vanilla(rte_NR)
            queries_NP = head.queries(rte_NR) if head is not None and head.attends else None
            for row, place in enumerate(places):
                if head is None:
                    found[place] = _scored(vanilla_N[row], vanilla_N[row], None)
                    continue
                u_P = None if queries_NP is None else queries_NP[row]
                try:
                    found[place] = self._reward(
                        head, batch[place], encoded[place], u_P, vanilla_N[row]
                    )
                except Problem as problem:
                    found[place] = problem
        ended = time.perf_counter()
        for spent in {id(work.timings): work.timings for work in batch}.values():
            spent.add("backbone", embedded - began)
            spent.add("head", ended - embedded)
        return found

    def _reward(
        self, head: Head, work: ScoreWork, encoded: Embedded, u_P: Tensor | None, vanilla: Tensor
    ) -> Scored | Queried | Problem:
        """A sample's reward by a version; u, where its trainer is to tell v·c.

        Raises:
            Problem: of its states.
        """
        split, c_P, fused_N = work.item.split, None, None
        if u_P is not None and split is not None:
            if split.fused is None:
                return Queried(u_P.cpu().numpy().copy())
            fused_N = u_P.new_tensor([split.fused])
        elif u_P is not None:
            c_P = pool_item(work.item, encoded, u_P).c_P
        parts = head.parts(encoded.rte_R[None], None if c_P is None else c_P[None], fused_N)
        made_of = None
        if self._trace:
            made_of = trace_of(encoded.rte_R, u_P, c_P, fused=fused_N)
        return _scored(parts.rewards(work.omega)[0], vanilla, made_of)

    def _by_head(self, batch: Sequence[ScoreWork]) -> list[list[int]]:
        if self._one_by_one:
            return [[place] for place in range(len(batch))]
        groups: dict[int, list[int]] = {}
        for place, work in enumerate(batch):
            groups.setdefault(id(work.head), []).append(place)
        return list(groups.values())


def _scored(reward: Tensor, vanilla: Tensor, trace: Trace | None) -> Scored | Problem:
    rewards = float(reward), float(vanilla)
    for name, value in zip(("reward", "vanilla reward"), rewards, strict=True):
        if not math.isfinite(value):
            return Problem(Code.REWARD_NOT_FINITE, f"the {name} of this sample is {value}")
    return Scored(*rewards, trace=trace)
