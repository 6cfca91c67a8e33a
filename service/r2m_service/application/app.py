"""The one application layer: everything that either transport can ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict

from r2m.errors import Code, Problem
from r2m_service.application.align import Align
from r2m_service.application.align_progress import OnProgress
from r2m_service.application.anchors import Anchors
from r2m_service.application.contract import (
    AlignAnswer,
    AlignPending,
    AlignRequest,
    AnchorsOut,
    AnchorsRequest,
    EvaluateAnswer,
    EvaluateRequest,
    KeptSampleList,
    LabelsAnswer,
    LabelsRequest,
    ReplyAlignRequest,
    RollbackRequest,
    RunOut,
    ScoreAnswer,
    ScoreRequest,
    ServerOut,
    UpdateRunRequest,
    VanillaRequest,
)
from r2m_service.application.engine_port import Engine
from r2m_service.application.evaluate import evaluate
from r2m_service.application.journal_port import Journal
from r2m_service.application.journaling import Journaling
from r2m_service.application.label_port import LabelStore
from r2m_service.application.labels import Labels
from r2m_service.application.lessons import Lessons
from r2m_service.application.line import Line
from r2m_service.application.lookup import find_run
from r2m_service.application.marking import KeepLimits, Marking
from r2m_service.application.ports import (
    Blobs,
    Registry,
)
from r2m_service.application.replay import Replay
from r2m_service.application.runs import Runs
from r2m_service.application.score import Scoring
from r2m_service.application.stream import ScoringSession, open_scoring
from r2m_service.application.tally import Tally
from r2m_service.application.usage import Usage
from r2m_service.application.watching import Places, Watched, Watching
from r2m_service.domain.runs import TextRules

NO_RULES = TextRules()
HEAVY_AT_ONCE = 2
"""Aligns, new heads and head downloads at one time: each holds several copies of a head."""


class Application(Runs):
    """The use cases, bound to their ports; those about runs and heads are inherited.

    Args:
        version: of this program.
        ready: whether the server may take work (warmed up, not draining).
        max_head_bytes: the largest head a run may ask for.
        queue_samples: the line for the device, as of `Line`.
        keep: bounds of what is kept for outside labels.
        journal: where all is written down; None: nowhere.
        committed: hears a run's name after each step of it.
        reply_seconds: how long a trainer has to answer what an align asks.
        watched_runs: how many runs `watch` shows one by one.
        texts: rules of texts that are scored without a run; new runs begin with its rule for empty
            responses.
    """

    def __init__(
        self,
        registry: Registry,
        labels: LabelStore,
        blobs: Blobs,
        engine: Engine,
        *,
        version: str,
        ready: Callable[[], bool],
        max_head_bytes: int,
        queue_samples: int,
        keep: KeepLimits,
        journal: Journal | None = None,
        committed: Callable[[str], None] = lambda _: None,
        reply_seconds: float = 60.0,
        watched_runs: int = 32,
        texts: TextRules = NO_RULES,
    ) -> None:
        heavy = asyncio.Semaphore(HEAVY_AT_ONCE)
        usage = Usage()
        fingerprint = engine.info.fingerprint
        self._watching = Watching(registry, labels, fingerprint, Places(watched_runs))
        super().__init__(
            registry,
            blobs,
            engine,
            heavy,
            usage,
            labels,
            max_head_bytes=max_head_bytes,
            texts=texts,
        )
        self._version = version
        self._ready = ready
        self._line = Line(queue_samples)
        journaling = Journaling(journal)
        marking = Marking(labels, blobs, keep)
        self._scoring = Scoring(registry, blobs, engine, usage, marking, journaling, texts)
        self._anchors = Anchors(registry, labels, blobs, engine)
        self._outside = Labels(registry, labels, engine, usage)
        lessons = Lessons(labels, self._anchors, Replay(labels, blobs, engine))
        self._align = Align(
            registry,
            blobs,
            engine,
            heavy,
            usage,
            lessons,
            journaling,
            committed,
            reply_seconds,
        )

    async def score(self, run: str | None, request: ScoreRequest | VanillaRequest) -> ScoreAnswer:
        """Rewards by a run's head, or vanilla ones where no run is named.

        Raises:
            Problem: as `Scoring.run`, and not_ready.
        """
        self.require_ready()
        with self._line.hold(run or "", len(request.samples)):
            if run is None:
                return await self._scoring.vanilla(VanillaRequest(samples=request.samples))
            assert isinstance(request, ScoreRequest), "a run is scored with its own request"
            return await self._scoring.run(run, request)

    async def open_scoring(
        self, run: str | None, request: ScoreRequest | VanillaRequest
    ) -> ScoringSession:
        """A session that scores samples one by one, all by the head that `request` names now.

        Raises:
            Problem: as `open_scoring`, and not_ready.
        """
        self.require_ready()
        return await open_scoring(self._scoring, self._line, run, request)

    async def align(
        self, run: str, request: AlignRequest, progress: OnProgress | None = None
    ) -> AlignAnswer | AlignPending:
        """One update of a run's head, exactly once for (run, branch, step).

        Raises:
            Problem: as `Align`, and not_ready.
        """
        self.require_ready()
        return await self._align(run, request, progress)

    async def reply_align(
        self, run: str, ticket: str, request: ReplyAlignRequest
    ) -> AlignAnswer | AlignPending:
        """Go on with an align that asked about hidden states which stay with the trainer.

        Raises:
            Problem: as `Align.reply`.
        """
        return await self._align.reply(run, ticket, request)

    async def evaluate(self, run: str, request: EvaluateRequest) -> EvaluateAnswer:
        """Accuracy of one or more heads on preference pairs.

        Raises:
            Problem: as `evaluate`, and not_ready.
        """
        self.require_ready()
        with self._line.hold(run, 2 * len(request.pairs)):
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

    async def put_anchors(self, run: str, request: AnchorsRequest) -> AnchorsOut:
        """Make a set of held-out pairs the one that judges; an align under way ends first.

        Raises:
            Problem: as `Anchors.put`, and not_ready.
        """
        self.require_ready()
        await find_run(self._registry, run)
        async with self._align.between_steps(run):
            return await self._anchors.put(run, request)

    async def get_anchors(self, run: str) -> AnchorsOut:
        """The set that judges. Raises Problem(unknown_run, no_anchors)."""
        return await self._anchors.get(run)

    async def add_labels(self, run: str, request: LabelsRequest) -> LabelsAnswer:
        """Outside labels of marked samples.

        Raises:
            Problem: as `Labels.add`.
        """
        return await self._outside.add(run, request)

    async def list_samples(
        self, run: str, *, after: int = 0, limit: int = 100, waiting: bool = False
    ) -> KeptSampleList:
        """Marked samples, oldest first.

        Raises:
            Problem: as `Labels.list`.
        """
        return await self._outside.list(run, after=after, limit=limit, waiting=waiting)

    def server(self) -> ServerOut:
        """What this server holds."""
        return ServerOut(version=self._version, **asdict(self._engine.info), **asdict(self._texts))

    def require_ready(self) -> None:
        """Refuse work that cannot be done now.

        Raises:
            Problem: not_ready.
        """
        if not self._ready():
            raise Problem(Code.NOT_READY, "the server is starting, draining, or lost its device")

    def require_room(self, run: str | None) -> None:
        """Refuse a call with samples to score before its body is read. None: no run.

        Raises:
            Problem: not_ready, overloaded.
        """
        self.require_ready()
        self._line.require_room(run or "")

    def waiting(self) -> tuple[int, int]:
        """Samples in the line for the device, and how many there may be."""
        return self._line.used, self._line.most

    @property
    def ready(self) -> bool:
        """Whether work is taken."""
        return self._ready()

    def refused(self) -> int:
        """Calls that found the line for the device full, since the start."""
        return self._line.refused

    def counted(self) -> tuple[Mapping[str, Tally], Mapping[str, int]]:
        """What each run has used, and how many samples failed by code, since the start."""
        return self._usage.tallies(), dict(self._usage.errors)

    async def watch(self, tallies: Mapping[str, Tally]) -> Watched:
        """Runs as they stand, with what was counted of each. One call at a time."""
        return await asyncio.to_thread(self._watching.look, tallies)
