"""An application that answers without thinking, and bodies to send to it."""

from __future__ import annotations

import asyncio
import json
import math
import struct
import zlib
from typing import Any

from r2m.errors import Code, Problem
from r2m_service.application import contract

WEIGHTS = bytes(range(256)) * 8192 + b"end"  # two whole chunks and a rest


def run_out(name: str) -> contract.RunOut:
    return contract.RunOut(
        run=name,
        fingerprint="f" * 64,
        policy=contract.PolicyOut(hidden_size=4, hidden_state="post_norm", last_token=True),
        feedback="policy",
        method={"width": 256, "max_grad_norm": None, "omega": {"kind": "constant", "value": 0.6}},
        branch="main",
        step=2,
        next_step=3,
        head=1,
        aliases={"live": 1},
        archived=False,
        created_at="2026-01-01T00:00:00Z",
        branches=[contract.BranchOut(branch="main", head=1, step=2)],
    )


def head_out(run: str, head: str) -> contract.HeadOut:
    return contract.HeadOut(
        run=run,
        head=int(head),
        branch="main",
        step=2,
        t=1,
        omega=0.6,
        reference=0,
        accepted=True,
        verdict="accepted",
        reason="",
        metrics={"loss": {"bt": 0.5, "gre": None}, "groups": 3},
        created_at="2026-01-01T00:00:00Z",
        sha256="a" * 64,
        bytes=len(WEIGHTS),
        aliases=["live"],
    )


class FakeScoring:
    """Rewards that tell the bytes that came: their sum, and their number."""

    def __init__(self, application: FakeApplication, opened: contract.ScoreAnswer) -> None:
        self._application = application
        self.opened = opened

    async def score(self, sample: contract.SampleIn) -> contract.ScoreOut:
        app = self._application
        app.scoring += 1
        app.most_scoring = max(app.most_scoring, app.scoring)
        try:
            app._call("score_one", sample)
            await app._pause("score_one", app.score_seconds)
            await app.gate.wait()
        finally:
            app.scoring -= 1
        data = bytes(sample.feedback.data) if sample.feedback else b""
        if sample.feedback and len(data) != 2 * math.prod(sample.feedback.shape):
            error = contract.ErrorOut(code="feedback_size", message="size", retryable=False)
            return contract.ScoreOut(id=sample.id, error=error)
        return contract.ScoreOut(id=sample.id, reward=zlib.crc32(data), vanilla_reward=len(data))


class FakeApplication:
    """Remembers its calls; raises `error` where one is set."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.error: BaseException | None = None
        self.ready = True
        self.full = False
        self.in_line = 0
        self.align_seconds = 0.0
        self.score_seconds = 0.0
        self.cancelled: list[str] = []
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()  # of FakeScoring
        self.gate.set()
        self.scoring = self.most_scoring = 0

    def _call(self, *call: Any) -> None:
        self.calls.append(call)
        self.begun.set()
        if self.error is not None:
            raise self.error

    async def _pause(self, name: str, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise

    async def score(self, run: Any, request: Any) -> contract.ScoreAnswer:
        self._call("score", run, request)
        await self._pause("score", self.score_seconds)
        scores = [
            contract.ScoreOut(id=one.id, reward=len(one.response or "") / 4, vanilla_reward=0.0)
            for one in request.samples
        ]
        if run is None:
            return contract.ScoreAnswer(fingerprint="f" * 64, scores=scores)
        return contract.ScoreAnswer(
            run=run, head=0, branch="main", omega=0.6, fingerprint="f" * 64, scores=scores
        )

    async def open_scoring(self, run: Any, request: Any) -> FakeScoring:
        self.require_ready()
        self._call("open_scoring", run, request)
        opened = contract.ScoreAnswer(fingerprint="f" * 64, scores=[])
        if run is not None:
            update = {"run": run, "head": 3, "branch": "main", "omega": 0.6}
            opened = opened.model_copy(update=update)
        return FakeScoring(self, opened)

    async def align(self, run: str, request: Any, progress: Any = None) -> contract.AlignAnswer:
        self._call("align", run, request)
        groups = len(request.groups)
        for done in range(groups):
            await self._pause("align", self.align_seconds)
            if progress is not None:
                progress(contract.Progress(groups_done=done + 1, groups_total=groups))
        return contract.AlignAnswer(
            run=run,
            step=request.step,
            branch="main",
            head=1,
            parent=0,
            candidate=1,
            accepted=True,
            verdict="accepted",
            reason="",
            omega=0.6,
            loss=contract.LossOut(bt=0.5, total=0.5),
            groups=contract.GroupCounts(
                used=groups, skipped=0, pseudo=groups, labelled=0, skipped_because={"equal": 0}
            ),
            errors=[
                contract.SampleError(
                    id="x",
                    group="g",
                    error=contract.ErrorOut(code="text_empty", message="m", retryable=False),
                )
            ],
        )

    async def reply_align(self, run: str, ticket: str, request: Any) -> contract.AlignPending:
        self._call("reply_align", run, ticket, request)
        return contract.AlignPending(run=run, step=1, branch="main", ticket=ticket, questions=[])

    async def create_run(self, request: Any) -> tuple[contract.RunOut, bool]:
        self._call("create_run", request)
        return run_out(request.run), sum(one[0] == "create_run" for one in self.calls) == 1

    async def list_runs(self) -> contract.RunList:
        self._call("list_runs")
        return contract.RunList(runs=[run_out("a"), run_out("b")])

    async def get_run(self, run: str) -> contract.RunOut:
        self._call("get_run", run)
        return run_out(run)

    async def archive_run(self, run: str) -> contract.RunOut:
        self._call("archive_run", run)
        return run_out(run).model_copy(update={"archived": True})

    async def list_heads(self, run: str) -> contract.HeadList:
        self._call("list_heads", run)
        return contract.HeadList(heads=[head_out(run, "0")])

    async def get_head(self, run: str, head: str) -> contract.HeadOut:
        self._call("get_head", run, head)
        return head_out(run, head)

    async def head_weights(self, run: str, head: str) -> tuple[contract.HeadOut, bytes]:
        self._call("head_weights", run, head)
        return head_out(run, head), WEIGHTS

    async def set_alias(self, run: str, alias: str, request: Any) -> contract.AliasOut:
        self._call("set_alias", run, alias, request)
        return contract.AliasOut(run=run, alias=alias, head=request.head, previous=request.expect)

    async def rollback(self, run: str, request: Any) -> contract.RunOut:
        self._call("rollback", run, request)
        return run_out(run)

    async def evaluate(self, run: str, request: Any) -> contract.EvaluateAnswer:
        self._call("evaluate", run, request)
        nothing = contract.AccuracyOut(accuracy=0.5, low=0.0, high=1.0, correct=0, ties=0)
        return contract.EvaluateAnswer(
            run=run, pairs=0, heads=[nothing], vanilla=nothing, errors=[]
        )

    async def update_run(self, run: str, request: Any) -> contract.RunOut:
        self._call("update_run", run, request)
        return run_out(run)

    async def list_changes(self, run: str) -> contract.ChangeList:
        self._call("list_changes", run)
        detail = {"alpha": [0.3, 0.5]}
        return contract.ChangeList(
            changes=[contract.ChangeOut(at="2026-01-01T00:00:00Z", what="updated", detail=detail)]
        )

    async def put_anchors(self, run: str, request: Any) -> contract.AnchorsOut:
        self._call("put_anchors", run, request)
        return anchors_out(run, pairs=len(request.pairs))

    async def get_anchors(self, run: str) -> contract.AnchorsOut:
        self._call("get_anchors", run)
        return anchors_out(run)

    async def add_labels(self, run: str, request: Any) -> contract.LabelsAnswer:
        self._call("add_labels", run, request)
        return contract.LabelsAnswer(
            run=run,
            labels=[contract.LabelOut(id="s", use="judge")],
            audit=contract.AuditOut(judged=1, waiting=2),
            advice="ok",
        )

    async def list_samples(
        self, run: str, *, after: int = 0, limit: int = 100, waiting: bool = False
    ) -> contract.KeptSampleList:
        self._call("list_samples", run, after, limit, waiting)
        return contract.KeptSampleList(samples=[], next=after + limit)

    def server(self) -> contract.ServerOut:
        self._call("server")
        return contract.ServerOut(
            version="0",
            model="m",
            fingerprint="f" * 64,
            hidden_size=8,
            max_length=128,
            dtype="float32",
            device="cpu",
            deterministic=True,
            chat_template=True,
        )

    def require_room(self, run: Any) -> None:
        self.require_ready()
        if self.full:
            raise Problem(Code.OVERLOADED, "the line is full")

    def waiting(self) -> tuple[int, int]:
        return self.in_line, 100

    def require_ready(self) -> None:
        if not self.ready:
            raise Problem(Code.NOT_READY, "the server is starting")


def anchors_out(run: str, *, pairs: int = 3) -> contract.AnchorsOut:
    return contract.AnchorsOut(run=run, set=1, pairs=pairs, looks=0, sha256="a" * 64, next_step=10)


def safetensors(
    request: Any, tensors: dict[str, tuple[str, list[int], bytes]], *, pad: bool = True
) -> bytes:
    """A safetensors body, written without the package."""
    header: dict[str, Any] = {}
    if request is not None:
        text = request if isinstance(request, str) else json.dumps(request)
        header["__metadata__"] = {"request": text}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    raw = json.dumps(header).encode()
    if pad:
        raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + b"".join(one[2] for one in tensors.values())


def sample(name: str = "a", **more: Any) -> dict[str, Any]:
    return {"id": name, "prompt": "p", "response": "r", **more}
