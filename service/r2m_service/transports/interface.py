"""The application as the transports see it. Every method may raise `r2m.errors.Problem`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from r2m_service.application.contract import (
    AliasOut,
    AliasRequest,
    AlignAnswer,
    AlignPending,
    AlignRequest,
    AnchorsOut,
    AnchorsRequest,
    ChangeList,
    CreateRunRequest,
    EvaluateAnswer,
    EvaluateRequest,
    HeadList,
    HeadOut,
    KeptSampleList,
    LabelsAnswer,
    LabelsRequest,
    Progress,
    ReplyAlignRequest,
    RollbackRequest,
    RunList,
    RunOut,
    SampleIn,
    ScoreAnswer,
    ScoreOut,
    ScoreRequest,
    ServerOut,
    UpdateRunRequest,
    VanillaRequest,
)

OnProgress = Callable[[Progress], None]
"""Called in the event loop."""


class Scoring(Protocol):
    """Samples one by one, all by one head."""

    @property
    def opened(self) -> ScoreAnswer:
        """Which head it is; without scores."""
        ...

    async def score(self, sample: SampleIn) -> ScoreOut:
        """A sample's rewards or its error."""
        ...


class Application(Protocol):
    """The use cases, one method for each."""

    async def score(self, run: str | None, request: ScoreRequest | VanillaRequest) -> ScoreAnswer:
        """Rewards; without a run, the frozen reward model's own."""
        ...

    async def open_scoring(
        self, run: str | None, request: ScoreRequest | VanillaRequest
    ) -> Scoring:
        """A session for a stream; the request's samples are not looked at."""
        ...

    async def align(
        self, run: str, request: AlignRequest, progress: OnProgress | None = None
    ) -> AlignAnswer | AlignPending:
        """One update of a run's head, or what its trainer is asked first."""
        ...

    async def reply_align(
        self, run: str, ticket: str, request: ReplyAlignRequest
    ) -> AlignAnswer | AlignPending:
        """Go on with an align that asked."""
        ...

    async def create_run(self, request: CreateRunRequest) -> tuple[RunOut, bool]:
        """A run, and whether this call made it."""
        ...

    async def list_runs(self) -> RunList:
        """All runs."""
        ...

    async def get_run(self, run: str) -> RunOut:
        """One run."""
        ...

    async def archive_run(self, run: str) -> RunOut:
        """Make a run read-only."""
        ...

    async def list_heads(self, run: str) -> HeadList:
        """A run's versions."""
        ...

    async def get_head(self, run: str, head: str) -> HeadOut:
        """One version, by number or alias."""
        ...

    async def head_weights(self, run: str, head: str) -> tuple[HeadOut, bytes]:
        """One version and its safetensors file."""
        ...

    async def set_alias(self, run: str, alias: str, request: AliasRequest) -> AliasOut:
        """Move an alias."""
        ...

    async def rollback(self, run: str, request: RollbackRequest) -> RunOut:
        """Open a branch at an earlier head or step."""
        ...

    async def evaluate(self, run: str, request: EvaluateRequest) -> EvaluateAnswer:
        """Accuracy of heads on preference pairs."""
        ...

    async def update_run(self, run: str, request: UpdateRunRequest) -> RunOut:
        """Change what may change of a run's settings."""
        ...

    async def list_changes(self, run: str) -> ChangeList:
        """A run's audit trail."""
        ...

    async def put_anchors(self, run: str, request: AnchorsRequest) -> AnchorsOut:
        """Make a set of held-out pairs the one that judges."""
        ...

    async def get_anchors(self, run: str) -> AnchorsOut:
        """The set that judges."""
        ...

    async def add_labels(self, run: str, request: LabelsRequest) -> LabelsAnswer:
        """Outside labels of marked samples."""
        ...

    async def list_samples(
        self, run: str, *, after: int = 0, limit: int = 100, waiting: bool = False
    ) -> KeptSampleList:
        """Marked samples, oldest first."""
        ...

    def server(self) -> ServerOut:
        """What this server holds."""
        ...

    def require_ready(self) -> None:
        """Refuse (not_ready) while starting or draining."""
        ...

    def require_room(self, run: str | None) -> None:
        """Refuse (not_ready, overloaded) a call with samples to score, before its body is read."""
        ...

    def waiting(self) -> tuple[int, int]:
        """Samples in the line for the device, and how many there may be."""
        ...
