"""The use case `score`, one sample at a time: for streams."""

from __future__ import annotations

from r2m_service.application.contract import (
    SampleIn,
    ScoreAnswer,
    ScoreOut,
    ScoreRequest,
    VanillaRequest,
)
from r2m_service.application.line import Line
from r2m_service.application.score import Scoring, Version


class ScoringSession:
    """Scores samples as they come, all by the version that was found when it was opened.

    An align, a rollback or an archived run changes nothing in a session that is open: its answers
    would otherwise be of two heads while `opened` names one.

    Args:
        line: where each sample waits for a place.
        version: None: the frozen reward model.
        opened: run, head, branch, omega, v and fingerprint of every answer, without scores.
    """

    def __init__(
        self, scoring: Scoring, line: Line, version: Version | None, opened: ScoreAnswer
    ) -> None:
        self._scoring = scoring
        self._line = line
        self._version = version
        self._opened = opened

    @property
    def opened(self) -> ScoreAnswer:
        """What every answer has in common."""
        return self._opened

    async def score(self, sample: SampleIn) -> ScoreOut:
        """A sample's rewards or its error. Calls at the same time are batched by the engine.

        It waits for a place in line. Who has one needs nothing but the device, so nobody waits for
        ever, whatever else the sample holds.

        Raises:
            Problem: head_damaged, storage_failed, compute_failed, not_ready.
        """
        async with self._line.wait(self._opened.run or ""):
            (answer,) = await self._scoring.samples(self._version, [sample])
        return answer


async def open_scoring(
    scoring: Scoring, line: Line, name: str | None, request: ScoreRequest | VanillaRequest
) -> ScoringSession:
    """A session with a run's head, or with the frozen reward model where no run is named.

    Args:
        line: for the device.
        name: the run.
        request: names the head; its samples are not looked at.

    Raises:
        Problem: as `Scoring.resolved`.
    """
    if name is None:
        return ScoringSession(scoring, line, None, scoring.unnamed())
    assert isinstance(request, ScoreRequest), "a run is scored with its own request"
    version, opened = await scoring.resolved(name, request)
    if version.name.run.feedback == "policy":
        # Whether states will stay with the trainer nobody knows yet; u comes with each such sample.
        opened = opened.model_copy(update={"v": await scoring.direction(version)})
    return ScoringSession(scoring, line, version, opened)
