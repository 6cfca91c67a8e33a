"""The Python client of the R2M reward service: blocking and asyncio, over HTTP and gRPC.

    from r2m_client import Client, Group, Sample

    with Client("http://127.0.0.1:8080") as client:
        client.create_run("tldr", policy_hidden_size=2048)
        sample = Sample("a", "Why is the sky blue?", "Because ...", hidden_states)
        result = client.score([sample], run="tldr")

Importing this loads neither httpx nor grpc nor numpy: a client's URL decides what it needs.
"""

from r2m_client._async_client import AsyncClient
from r2m_client._async_score_stream import AsyncScoreStream
from r2m_client._channel_scales import ChannelScales
from r2m_client._client import Client
from r2m_client._control_results import Control, Controls, ControlTotal
from r2m_client._errors import (
    AliasMoved,
    AlignConflict,
    Conflict,
    ConnectError,
    DeadlineError,
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    ProtocolError,
    R2MError,
    RunExists,
    SampleProblem,
    SamplesFailed,
    ServerDeadline,
    ServerError,
    StepConflict,
    StepOutOfOrder,
    StreamFailed,
    TLSError,
    Unauthenticated,
    Unavailable,
)
from r2m_client._label_results import (
    AnchorsInfo,
    AnchorsJudged,
    AuditInfo,
    Evidence,
    KeptSample,
    KeptSamples,
    LabelResult,
    LabelsResult,
    Paired,
)
from r2m_client._results import (
    Accuracy,
    AliasInfo,
    AlignProgress,
    AlignResult,
    BranchInfo,
    Change,
    DiskInfo,
    Drift,
    Evaluation,
    GroupCounts,
    HeadInfo,
    Loss,
    PolicyInfo,
    RunInfo,
    SampleError,
    Score,
    ScoreResult,
    ServerInfo,
    SkippedGroup,
    UsageInfo,
)
from r2m_client._retry import Retry
from r2m_client._samples import AnchorStates, Group, Label, Pair, Sample
from r2m_client._score_stream import ScoreStream

__all__ = [
    "Accuracy",
    "AliasInfo",
    "AliasMoved",
    "AlignConflict",
    "AlignProgress",
    "AlignResult",
    "AnchorStates",
    "AnchorsInfo",
    "AnchorsJudged",
    "AsyncClient",
    "AsyncScoreStream",
    "AuditInfo",
    "BranchInfo",
    "Change",
    "ChannelScales",
    "Client",
    "Conflict",
    "ConnectError",
    "Control",
    "ControlTotal",
    "Controls",
    "DeadlineError",
    "DiskInfo",
    "Drift",
    "Evaluation",
    "Evidence",
    "Forbidden",
    "Group",
    "GroupCounts",
    "HeadInfo",
    "InvalidRequest",
    "KeptSample",
    "KeptSamples",
    "Label",
    "LabelResult",
    "LabelsResult",
    "Loss",
    "NotFound",
    "Overloaded",
    "Pair",
    "Paired",
    "PolicyInfo",
    "ProtocolError",
    "R2MError",
    "Retry",
    "RunExists",
    "RunInfo",
    "Sample",
    "SampleError",
    "SampleProblem",
    "SamplesFailed",
    "Score",
    "ScoreResult",
    "ScoreStream",
    "ServerDeadline",
    "ServerError",
    "ServerInfo",
    "SkippedGroup",
    "StepConflict",
    "StepOutOfOrder",
    "StreamFailed",
    "TLSError",
    "Unauthenticated",
    "Unavailable",
    "UsageInfo",
]
