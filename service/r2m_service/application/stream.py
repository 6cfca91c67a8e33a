"""The use case `score`, one sample at a time: for streams."""

from __future__ import annotations

from r2m_service.application.contract import (
    SampleIn,
    ScoreAnswer,
    ScoreOut,
    ScoreRequest,
    VanillaRequest,
)
from r2m_service.application.ports import Blobs, Engine, HeadSource, Registry
from r2m_service.application.score import resolved, score_samples
from r2m_service.application.usage import Usage
from r2m_service.domain.runs import Run


class ScoringSession:
    """Scores samples as they come, all by the version that was found when it was opened.

    An align, a rollback or an archived run changes nothing in a session that is open: its answers
    would otherwise be of two heads while `opened` names one.

    Args:
        opened: run, head, branch, omega and fingerprint of every answer, without scores.
    """

    def __init__(
        self,
        engine: Engine,
        usage: Usage,
        run: Run | None,
        head: HeadSource | None,
        opened: ScoreAnswer,
    ) -> None:
        self._engine = engine
        self._usage = usage
        self._run = run
        self._head = head
        self._opened = opened

    @property
    def opened(self) -> ScoreAnswer:
        """What every answer has in common."""
        return self._opened

    async def score(self, sample: SampleIn) -> ScoreOut:
        """A sample's rewards or its error. Calls at the same time are batched by the engine.

        Raises:
            Problem: head_damaged, storage_failed, compute_failed, not_ready.
        """
        (answer,) = await score_samples(self._engine, self._usage, self._run, self._head, [sample])
        return answer


async def open_scoring(
    registry: Registry,
    blobs: Blobs,
    engine: Engine,
    usage: Usage,
    name: str | None,
    request: ScoreRequest | VanillaRequest,
) -> ScoringSession:
    """A session with a run's head, or with the frozen reward model where no run is named.

    Args:
        name: the run.
        request: names the head; its samples are not looked at.

    Raises:
        Problem: as `resolved`.
    """
    if name is None:
        opened = ScoreAnswer(fingerprint=engine.info.fingerprint, scores=[])
        return ScoringSession(engine, usage, None, None, opened)
    assert isinstance(request, ScoreRequest), "a run is scored with its own request"
    run, source, opened = await resolved(registry, blobs, engine, name, request)
    return ScoringSession(engine, usage, run, source, opened)
