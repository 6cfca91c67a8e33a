"""The one application layer: everything that either transport can ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from r2m.errors import Code, Problem
from r2m_service.application.align import Align, Progress
from r2m_service.application.contract import (
    AlignAnswer,
    AlignRequest,
    ScoreAnswer,
    ScoreRequest,
    ServerOut,
    VanillaRequest,
)
from r2m_service.application.ports import Blobs, Engine, Registry
from r2m_service.application.runs import Runs
from r2m_service.application.score import score_run, score_vanilla
from r2m_service.application.stream import ScoringSession, open_scoring


class Application(Runs):
    """The use cases, bound to their ports; those about runs and heads are inherited.

    Args:
        version: of this program.
        ready: whether the server may take work (warmed up, not draining).
        max_head_bytes: the largest head a run may ask for.
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
    ) -> None:
        super().__init__(registry, blobs, engine, max_head_bytes=max_head_bytes)
        self._version = version
        self._ready = ready
        self._align = Align(registry, blobs, engine)

    async def score(self, run: str | None, request: ScoreRequest | VanillaRequest) -> ScoreAnswer:
        """Rewards by a run's head, or vanilla ones where no run is named.

        Raises:
            Problem: as `score_run`, and not_ready.
        """
        self.require_ready()
        if run is None or isinstance(request, VanillaRequest):
            return await score_vanilla(self._engine, VanillaRequest(samples=request.samples))
        return await score_run(self._registry, self._blobs, self._engine, run, request)

    async def open_scoring(
        self, run: str | None, request: ScoreRequest | VanillaRequest
    ) -> ScoringSession:
        """A session that scores samples one by one, all by the head that `request` names now.

        Raises:
            Problem: as `open_scoring`, and not_ready.
        """
        self.require_ready()
        return await open_scoring(self._registry, self._blobs, self._engine, run, request)

    async def align(
        self, run: str, request: AlignRequest, progress: Progress | None = None
    ) -> AlignAnswer:
        """One update of a run's head, exactly once for (run, branch, step).

        Raises:
            Problem: as `Align`, and not_ready.
        """
        self.require_ready()
        return await self._align(run, request, progress)

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
