"""The one application layer: everything that either transport can ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict

from r2m.errors import Code, Problem
from r2m_service.application.align import Align, Progress
from r2m_service.application.contract import (
    AlignAnswer,
    AlignRequest,
    EvaluateAnswer,
    EvaluateRequest,
    RollbackRequest,
    RunOut,
    ScoreAnswer,
    ScoreRequest,
    ServerOut,
    UpdateRunRequest,
    VanillaRequest,
)
from r2m_service.application.evaluate import evaluate
from r2m_service.application.lookup import find_run
from r2m_service.application.ports import Blobs, Engine, Registry
from r2m_service.application.runs import Runs
from r2m_service.application.score import score_run, score_vanilla
from r2m_service.application.stream import ScoringSession, open_scoring
from r2m_service.application.usage import Usage

HEAVY_AT_ONCE = 2
"""Aligns, new heads and head downloads at one time: each holds several copies of a head."""


class Application(Runs):
    """The use cases, bound to their ports; those about runs and heads are inherited.

    Args:
        version: of this program.
        ready: whether the server may take work (warmed up, not draining).
        max_head_bytes: the largest head a run may ask for.
        committed: hears a run's name after each step of it.
    """

    def __init__(
        self,
        registry: Registry,
        blobs: Blobs,
        engine: Engine,
        *,
        version: str,
        ready: Callable[[], bool],
        max_head_bytes: int,
        committed: Callable[[str], None] = lambda _: None,
    ) -> None:
        heavy = asyncio.Semaphore(HEAVY_AT_ONCE)
        usage = Usage()
        super().__init__(registry, blobs, engine, heavy, usage, max_head_bytes=max_head_bytes)
        self._version = version
        self._ready = ready
        self._align = Align(registry, blobs, engine, heavy, usage, committed)

    async def score(self, run: str | None, request: ScoreRequest | VanillaRequest) -> ScoreAnswer:
        """Rewards by a run's head, or vanilla ones where no run is named.

        Raises:
            Problem: as `score_run`, and not_ready.
        """
        self.require_ready()
        if run is None:
            return await score_vanilla(
                self._engine, self._usage, VanillaRequest(samples=request.samples)
            )
        assert isinstance(request, ScoreRequest), "a run is scored with its own request"
        return await score_run(self._registry, self._blobs, self._engine, self._usage, run, request)

    async def open_scoring(
        self, run: str | None, request: ScoreRequest | VanillaRequest
    ) -> ScoringSession:
        """A session that scores samples one by one, all by the head that `request` names now.

        Raises:
            Problem: as `open_scoring`, and not_ready.
        """
        self.require_ready()
        return await open_scoring(
            self._registry, self._blobs, self._engine, self._usage, run, request
        )

    async def align(
        self, run: str, request: AlignRequest, progress: Progress | None = None
    ) -> AlignAnswer:
        """One update of a run's head, exactly once for (run, branch, step).

        Raises:
            Problem: as `Align`, and not_ready.
        """
        self.require_ready()
        return await self._align(run, request, progress)

    async def evaluate(self, run: str, request: EvaluateRequest) -> EvaluateAnswer:
        """Accuracy of one or more heads on preference pairs.

        Raises:
            Problem: as `evaluate`, and not_ready.
        """
        self.require_ready()
        return await evaluate(self._registry, self._blobs, self._engine, run, request)

    async def update_run(self, run: str, request: UpdateRunRequest) -> RunOut:
        """Change settings; an align that is under way is finished first.

        Raises:
            Problem: as `Runs.update_run`.
        """
        await find_run(self._registry, run)
        async with self._align.between_steps(run):
            return await super().update_run(run, request)

    async def rollback(self, run: str, request: RollbackRequest) -> RunOut:
        """Open a branch; an align that is under way is finished first.

        Raises:
            Problem: as `Runs.rollback`.
        """
        await find_run(self._registry, run)
        async with self._align.between_steps(run):
            return await super().rollback(run, request)

    def server(self) -> ServerOut:
        """What this server holds."""
        return ServerOut(version=self._version, **asdict(self._engine.info))

    def require_ready(self) -> None:
        """Refuse work that cannot be done now.

        Raises:
            Problem: not_ready.
        """
        if not self._ready():
            raise Problem(Code.NOT_READY, "the server is starting, draining, or lost its device")
