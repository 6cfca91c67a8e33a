"""At score: which samples are marked for an outside label, and what is kept of them."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from r2m.errors import Code, Problem
from r2m_service.application.contract import SampleIn
from r2m_service.application.label_port import LabelStore
from r2m_service.application.ports import (
    Blobs,
)
from r2m_service.application.samples import prompt_hash, text_hash, text_of
from r2m_service.application.scoring_items import Item, Queried, Scored
from r2m_service.domain.audit import marked_for_audit, use_of
from r2m_service.domain.labels import KeptSample
from r2m_service.domain.runs import Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeepLimits:
    """Bounds of what a run keeps of marked samples.

    Attributes:
        samples: how many.
        bytes: of their hidden states.
    """

    samples: int = 10_000
    bytes: int = 4 << 30


@dataclass(frozen=True, slots=True)
class ScoredBy:
    """The version that gave a score's rewards."""

    run: Run
    head: int
    branch: str


class Marking:
    """Marks samples by their group and the run's seed, and keeps them until their label comes."""

    def __init__(self, labels: LabelStore, blobs: Blobs, limits: KeepLimits) -> None:
        self._labels = labels
        self._blobs = blobs
        self._limits = limits

    async def keep(
        self,
        by: ScoredBy,
        samples: Sequence[SampleIn],
        items: Sequence[Item | Problem],
        results: Sequence[Scored | Queried | Problem],
    ) -> set[str]:
        """Keep those of the scored samples that are marked; ids of what is kept.

        A store that fails costs the marks and never the rewards.
        """
        method = by.run.method
        if method.audit_rate <= 0:
            return set()
        marked = [
            (sample, item, result)
            for sample, item, result in zip(samples, items, results, strict=True)
            if isinstance(result, Scored)
            and isinstance(item, Item)
            and marked_for_audit(method.seed, sample.group or sample.id, method.audit_rate)
        ]
        if not marked:
            return set()
        try:
            return await asyncio.to_thread(self._keep, by, marked)
        except Problem as problem:
            logger.warning("run %s: samples could not be marked: %s", by.run.name, problem.message)
            return set()

    def _keep(self, by: ScoredBy, marked: Sequence[tuple[SampleIn, Item, Scored]]) -> set[str]:
        kept: list[KeptSample] = []
        try:
            for sample, item, result in marked:
                kept.append(self._kept(by, sample, item, result))
            done, unneeded = self._labels.keep_samples(
                by.run.name, kept, most=self._limits.samples, most_bytes=self._limits.bytes
            )
        except Problem as problem:
            # Only what surely was not committed may go; after a storage failure nobody knows.
            if problem.code == Code.RUN_ARCHIVED:
                self._delete(one.file.key for one in kept if one.file is not None)
            raise
        self._delete(unneeded)
        return done

    def _delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._blobs.delete(key)

    def _kept(self, by: ScoredBy, sample: SampleIn, item: Item, result: Scored) -> KeptSample:
        run = by.run
        prompt = prompt_hash(sample)
        use = use_of(run.method.seed, prompt, run.method.judge_share)
        feedback, file = None, None
        if use == "train" and item.feedback is not None:
            # Only what is learnt from again needs its states.
            feedback = {"dtype": item.feedback.dtype, "shape": list(item.feedback.shape)}
            file = self._blobs.put(
                f"{run.key}/samples/{uuid.uuid4().hex}.bin", bytes(item.feedback.data)
            )
        return KeptSample(
            id=sample.id,
            group=sample.group or sample.id,
            use=use,
            prompt=prompt,
            content=text_hash(sample),
            head=by.head,
            branch=by.branch,
            reward=result.reward,
            vanilla_reward=result.vanilla_reward,
            text=text_of(sample),
            at=datetime.now(UTC),
            feedback=feedback,
            file=file,
        )
