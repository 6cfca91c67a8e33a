"""At align: the pairs with outside labels that are learnt from again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from r2m.errors import Code, Problem
from r2m_service.application.align_job import AlignGroup
from r2m_service.application.contract import FeedbackIn, SampleIn
from r2m_service.application.engine_port import Engine
from r2m_service.application.label_port import LabelStore
from r2m_service.application.ports import (
    Blobs,
)
from r2m_service.application.samples import items_of
from r2m_service.application.scoring_items import Item
from r2m_service.domain.labels import KeptSample, LabelledPair, pairs_of
from r2m_service.domain.runs import Run

logger = logging.getLogger(__name__)


class Replay:
    """The buffer of labelled groups: the newest ones that train."""

    def __init__(self, labels: LabelStore, blobs: Blobs, engine: Engine) -> None:
        self._labels = labels
        self._blobs = blobs
        self._engine = engine

    async def groups(self, run: Run, judging: frozenset[str]) -> list[AlignGroup]:
        """One pair a group; what is lost or cannot be scored any more is left out.

        Args:
            judging: hashes of prompts that judge, and so never train.

        Raises:
            Problem: storage_failed.
        """
        if run.method.replay_groups == 0 or run.method.labels == "pseudo":
            return []
        samples = await asyncio.to_thread(self._read, run, judging)
        items = await items_of(self._engine, run, samples)
        found: list[AlignGroup] = []
        for winner, loser in zip(items[::2], items[1::2], strict=True):
            if isinstance(winner, Item) and isinstance(loser, Item):
                found.append(AlignGroup([winner, loser], (0, 1)))
        return found

    def _read(self, run: Run, judging: frozenset[str]) -> list[SampleIn]:
        """Winner and loser of each pair, in turns."""
        kept, said = self._labels.training_labels(run.name, groups=run.method.replay_groups)
        found: list[SampleIn] = []
        for pair in pairs_of([one for one in kept if one.prompt not in judging], said):
            found += self._sides(run, pair)
        return found

    def _sides(self, run: Run, pair: LabelledPair) -> Sequence[SampleIn]:
        try:
            return [
                self._again(side, f"{place}/{side.id}"[:256])
                for place, side in enumerate((pair.winner, pair.loser))
            ]
        except Problem as problem:
            if problem.code != Code.HEAD_DAMAGED:
                raise  # a store that is away for a moment must not change what is learnt
            logger.warning("run %s: a labelled pair is lost: %s", run.name, problem.message)
            return []

    def _again(self, sample: KeptSample, name: str) -> SampleIn:
        """The sample as it was scored."""
        feedback = None
        if sample.file is not None and sample.feedback is not None:
            feedback = FeedbackIn(**sample.feedback, data=self._blobs.get(sample.file))
        found = SampleIn.model_validate({**sample.text, "id": name})
        return found.model_copy(update={"feedback": feedback})
