"""A batch of samples to rewards: one forward pass for all, the head stage by version."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from r2m.errors import Code, Problem
from r2m_service.application.metrics_port import NO_METRICS, Batched, Metrics
from r2m_service.application.scoring_items import Item, Queried, Scored, Trace
from r2m_service.application.timings import Timings
from r2m_service.engine.embedding import Embedder
from r2m_service.engine.measuring import trace_of
from r2m_service.engine.pooling import own_states, pool_states, uploads_of, why_not_finite
from r2m_service.engine.states import States
from r2m_service.modeling.backbone import Backbone
from r2m_service.modeling.backbone import Encoded as Embedded
from r2m_service.modeling.head import Head, Parts


@dataclass(frozen=True, slots=True)
class ScoreWork:
    """One sample on its way through the device. `head` is None for vanilla rewards."""

    head: Head | None
    omega: float
    keeps_states: bool
    item: Item
    timings: Timings


class BatchScorer:
    """Scores batches. Called on the device thread.

    Args:
        one_by_one: deterministic mode: no product over more than one sample.
        trace: tell what the rewards were made of, for the journal.
        metrics: hears of each batch.
    """

    def __init__(
        self,
        backbone: Backbone,
        embedder: Embedder,
        *,
        one_by_one: bool,
        trace: bool,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._metrics = metrics
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
        began, computed = time.perf_counter(), self._embedder.text_tokens
        # On a GPU the states travel while the backbone computes.
        uploads = uploads_of([work.item for work in batch], self._backbone.device)
        encoded = self._embedder.embed(
            [work.item.token_ids for work in batch],
            states=[work.keeps_states for work in batch],
        )
        embedded = time.perf_counter()
        found: list[Scored | Queried | Problem] = [
            Problem(Code.COMPUTE_FAILED, "not scored")
        ] * len(batch)
        for places in self._by_head(batch):
            works = [batch[place] for place in places]
            answers = self._by_one_head(
                works,
                [encoded[place] for place in places],
                [uploads.take(place) for place in places],
            )
            for place, answer in zip(places, answers, strict=True):
                found[place] = answer
        ended = time.perf_counter()
        for spent in _calls(batch):
            spent.add("backbone", embedded - began)
            spent.add("head", ended - embedded)
            if spent.intervals is not None:
                spent.took("queue", spent.waiting_since, began)
                spent.took(
                    "backbone",
                    began,
                    embedded,
                    batch_samples=len(batch),
                    batch_tokens=sum(len(work.item.token_ids) for work in batch),
                    tokens_computed=self._embedder.text_tokens - computed,
                )
                spent.took("head", embedded, ended, batch_samples=len(batch))
                spent.waiting_since = ended
        self._metrics.batched(
            Batched(
                samples=len(batch),
                tokens=sum(len(work.item.token_ids) for work in batch),
                feedback_bytes=sum(
                    len(work.item.feedback.data) for work in batch if work.item.feedback
                ),
                backbone=embedded - began,
                head=ended - embedded,
            )
        )
        return found

    def _by_one_head(
        self,
        works: Sequence[ScoreWork],
        encoded: Sequence[Embedded],
        uploaded: Sequence[States | None],
    ) -> list[Scored | Queried | Problem]:
        """Rewards of samples of one version, or u where a trainer is to tell v·c.

        A GPU is waited for once, when the rewards are read.
        """
        head, omega = works[0].head, works[0].omega
        rte_NR = torch.stack([one.rte_R for one in encoded])
        vanilla_N = self._backbone.vanilla(rte_NR)
        if head is None:
            return [_scored(value, value, None) for value in vanilla_N.tolist()]
        queries_NP = head.queries(rte_NR) if head.attends else None
        contexts: list[Tensor] | None = None
        if queries_NP is not None:
            contexts = [
                _pooled(work, one, states, u_P)
                for work, one, states, u_P in zip(works, encoded, uploaded, queries_NP, strict=True)
            ]
        parts = _parts(head, [one.rte_R for one in encoded], contexts)
        if head.attends:
            parts = _with_told(parts, works)
        both_2N = torch.stack([parts.rewards(omega), vanilla_N]).tolist()
        asked = None
        found: list[Scored | Queried | Problem] = []
        for row, (work, reward, vanilla) in enumerate(zip(works, *both_2N, strict=True)):
            if queries_NP is not None and _asks(work):
                asked = queries_NP.cpu().numpy() if asked is None else asked
                found.append(Queried(asked[row].copy()))
                continue
            told = None if work.item.split is None else work.item.split.fused
            c_P = None if contexts is None or told is not None else contexts[row]
            if c_P is not None and not math.isfinite(reward):
                problem = why_not_finite(work.item, encoded[row], c_P)
                if problem is not None:
                    found.append(problem)
                    continue
            made_of = None
            if self._trace:
                u_P = None if queries_NP is None else queries_NP[row]
                made_of = trace_of(
                    encoded[row].rte_R, u_P, c_P, fused=None if told is None else parts.fused_N[row]
                )
            found.append(_scored(reward, vanilla, made_of))
        return found

    def _by_head(self, batch: Sequence[ScoreWork]) -> list[list[int]]:
        """Places of those that are scored together: by one version, at one ω."""
        if self._one_by_one:
            return [[place] for place in range(len(batch))]
        groups: dict[tuple[int, float], list[int]] = {}
        for place, work in enumerate(batch):
            groups.setdefault((id(work.head), work.omega), []).append(place)
        return list(groups.values())


def _calls(batch: Sequence[ScoreWork]) -> list[Timings]:
    """The calls that a batch is of, and the streams that those are parts of, each once."""
    parts = {id(work.timings): work.timings for work in batch}
    wholes = {id(one.whole): one.whole for one in parts.values() if one.whole is not None}
    return list({**parts, **wholes}.values())


def _pooled(work: ScoreWork, encoded: Embedded, uploaded: States | None, u_P: Tensor) -> Tensor:
    """c of a sample; zero where its states stay with the trainer."""
    if work.item.split is not None:
        return torch.zeros_like(u_P)
    return pool_states(own_states(encoded) if uploaded is None else uploaded, u_P).c_P


def _parts(head: Head, rtes: Sequence[Tensor], contexts: Sequence[Tensor] | None) -> Parts:
    """Rewards before ω: on a GPU all at once, on a CPU one by one.

    There a product over one row is as quick, and its bits do not depend on the rows beside it.
    """
    if rtes[0].device.type != "cpu":
        return head.parts(
            torch.stack(list(rtes)), None if contexts is None else torch.stack(list(contexts))
        )
    each = [
        head.parts(rte_R[None], None if contexts is None else contexts[row][None])
        for row, rte_R in enumerate(rtes)
    ]
    fused_N = torch.cat([one.fused_N for one in each])
    return Parts(fused_N, torch.cat([one.base_N for one in each]), each[0].bias)


def _asks(work: ScoreWork) -> bool:
    """Whether its trainer has yet to tell v·c."""
    return work.item.split is not None and work.item.split.fused is None


def _with_told(parts: Parts, works: Sequence[ScoreWork]) -> Parts:
    """The same with v·c as the trainers told it, where they did."""
    told = {
        row: work.item.split.fused
        for row, work in enumerate(works)
        if work.item.split is not None and work.item.split.fused is not None
    }
    if not told:
        return parts
    fused_N = parts.fused_N.clone()
    fused_N[list(told)] = fused_N.new_tensor(list(told.values()))
    return replace(parts, fused_N=fused_N)


def _scored(reward: float, vanilla: float, trace: Trace | None) -> Scored | Problem:
    for name, value in (("reward", reward), ("vanilla reward", vanilla)):
        if not math.isfinite(value):
            return Problem(Code.REWARD_NOT_FINITE, f"the {name} of this sample is {value}")
    return Scored(reward, vanilla, trace=trace)
