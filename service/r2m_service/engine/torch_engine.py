"""The engine port on torch: scoring batches and one align at a time, on one device thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch

from r2m.errors import Problem
from r2m_service.application.align_job import AlignJob, Ask, GroupResult, Update
from r2m_service.application.engine_port import BackboneInfo
from r2m_service.application.metrics_port import NO_METRICS, CacheUse, EngineUse, Metrics
from r2m_service.application.scoring_items import (
    AnyText,
    Encoded,
    HeadKey,
    HeadSource,
    Item,
    Queried,
    Scored,
    Vector,
)
from r2m_service.application.timings import Timings, timings
from r2m_service.domain.method import MethodSettings
from r2m_service.domain.runs import FeedbackSource, TextRules
from r2m_service.engine.align import Aligner
from r2m_service.engine.align_groups import AlignHeads
from r2m_service.engine.cache import BytesCache
from r2m_service.engine.clock import phase, queueing
from r2m_service.engine.controls import Controls
from r2m_service.engine.embedding import Embedder
from r2m_service.engine.measuring import Measuring
from r2m_service.engine.queue import Budgets
from r2m_service.engine.scoring import BatchScorer, ScoreWork
from r2m_service.engine.tokenizing import Tokenizing
from r2m_service.engine.worker import DeviceWorker, Job
from r2m_service.modeling.backbone import Backbone
from r2m_service.modeling.head import Head, first_head
from r2m_service.modeling.update import Moments

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What the engine may use.

    Attributes:
        token_budget: padded tokens of one forward pass.
        batch_items: samples of one batch.
        batch_bytes: of hidden states of one batch.
        cache_bytes: of reward token embeddings (and token states).
        head_cache_bytes: of loaded heads.
    """

    token_budget: int = 16384
    batch_items: int = 256
    batch_bytes: int = 256 << 20
    cache_bytes: int = 1 << 30
    head_cache_bytes: int = 2 << 30


class TorchEngine:
    """Implements `application.engine_port.Engine`.

    Args:
        deterministic: every text alone and unpadded, every product of one sample, so that a
            reward is the same bit for bit in whatever batch it came.
        trace: tell with every reward what it was made of, for the journal.
        metrics: hears of each batch.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        limits: EngineLimits | None = None,
        deterministic: bool = False,
        trace: bool = False,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._trace = trace
        limits = limits or EngineLimits()
        self._backbone = backbone
        self._deterministic = deterministic
        self._embedder = Embedder(
            backbone,
            cache_bytes=limits.cache_bytes,
            token_budget=limits.token_budget,
            one_by_one=deterministic,
        )
        self._heads: BytesCache[HeadKey, Head] = BytesCache(limits.head_cache_bytes)
        self._loading: dict[HeadKey, asyncio.Task[Head]] = {}
        self._worker: DeviceWorker[ScoreWork, Scored | Queried | Problem] = DeviceWorker(
            BatchScorer(
                backbone, self._embedder, one_by_one=deterministic, trace=trace, metrics=metrics
            ),
            budgets=Budgets(limits.token_budget, limits.batch_items, limits.batch_bytes),
            fatal=_device_is_lost,
        )
        self._tokenizing = Tokenizing(backbone.text)
        self._info = BackboneInfo(
            model=backbone.name,
            fingerprint=backbone.fingerprint,
            hidden_size=backbone.width_R,
            max_length=backbone.text.max_length,
            dtype=str(backbone.dtype).removeprefix("torch."),
            device=str(backbone.device),
            deterministic=deterministic,
            chat_template=backbone.text.has_template,
            template_date=backbone.text.template.date,
        )

    @property
    def info(self) -> BackboneInfo:
        """What it holds."""
        return self._info

    @property
    def alive(self) -> bool:
        """Whether the device thread works."""
        return self._worker.alive

    def use(self) -> EngineUse:
        """The device as it stands. May be called from any thread."""
        return EngineUse(
            alive=self.alive,
            embeddings=_use(self._embedder.cache),
            heads=_use(self._heads),
            text_tokens=self._embedder.text_tokens,
            padding_tokens=self._embedder.padding_tokens,
            memory=_memory(self._backbone.device) if self.alive else {},
        )

    def start(self) -> None:
        """Start the device thread."""
        self._worker.start()

    def stop(self) -> None:
        """Finish the work at hand, fail what waits."""
        self._worker.stop()
        self._tokenizing.stop()

    async def encode(
        self, texts: Sequence[AnyText], *, rules: TextRules
    ) -> list[Encoded | Problem]:
        """Token ids, or why a text has none, for each."""
        return await self._tokenizing.encode(texts, rules=rules)

    async def score(
        self, head: HeadSource | None, items: Sequence[Item]
    ) -> list[Scored | Queried | Problem]:
        """Rewards by one version, or vanilla ones for None, in order."""
        if not items:
            return []
        loaded = await self.load(head) if head else None
        spent = timings()
        jobs = [
            Job(
                ScoreWork(
                    head=loaded,
                    omega=head.key.omega if head else 1.0,
                    keeps_states=head is not None and head.keeps_states,
                    item=item,
                    timings=spent,
                ),
                tokens=len(item.token_ids),
                feedback_bytes=len(item.feedback.data) if item.feedback else 0,
            )
            for item in items
        ]
        with queueing(spent):
            return await self._worker.submit(jobs, flow=head.run if head else "")

    async def direction(self, head: HeadSource) -> Vector:
        """v of a version that attends, float32."""
        v_P = (await self.load(head)).v_P
        assert v_P is not None, "nobody asks a head without attention"
        return v_P.cpu().numpy()

    async def align(
        self, job: AlignJob, progress: Callable[[GroupResult], None], ask: Ask
    ) -> Update:
        """One update; the device is given up between groups."""
        parent = await self.load(job.parent)
        heads = AlignHeads(
            parent,
            # The same object, also where the cache holds less than one head.
            parent if job.reference.key == job.parent.key else await self.load(job.reference),
            await self.load(job.origin),
        )
        measuring = Measuring(
            self._embedder,
            states=parent.attends,
            keeps_states="backbone" in job.method.controls,
            one_by_one=self._deterministic,
        )
        aligner = Aligner(
            job,
            heads=heads,
            moments=await asyncio.to_thread(self._moments, parent, job.optimizer),
            measuring=measuring,
            vanilla=self._backbone.vanilla,
            trace=self._trace,
        )
        spent = timings()
        with phase(spent, "align.learn", groups=len(job.groups), replayed=len(job.replay)):
            for turn in aligner.learning():
                if await self._turn(spent, turn):
                    progress(aligner.results[-1])
        for turn in aligner.asking():
            await self._turn(spent, turn)
        if asked := aligner.asked:
            with spent.taking("align.ask"):
                aligner.hear(await ask(asked))
        with phase(spent, "align.judge", anchors=len(job.anchors)):
            for turn in aligner.judging():
                await self._turn(spent, turn)
        controls = None
        if job.method.controls and aligner.used:
            controls = await asyncio.to_thread(self._controls, job, heads, measuring)
            with phase(spent, "align.controls", controls=len(job.method.controls)):
                for turn in controls.turns(aligner.used):
                    await self._turn(spent, turn)
        # Turning 134 MB of weights into a file takes a while: not on the event loop.
        with spent.taking("align.weights"):
            return await asyncio.to_thread(aligner.result, controls)

    def _controls(self, job: AlignJob, heads: AlignHeads, measuring: Measuring) -> Controls:
        return Controls(
            job,
            heads=heads,
            measuring=measuring,
            weight_R=self._backbone.weight_R,
            bias=self._backbone.bias,
            device=self._backbone.device,
        )

    async def _turn(self, spent: Timings, turn: Callable[[], Value]) -> Value:
        def timed() -> Value:
            began = time.perf_counter()
            try:
                return turn()
            finally:
                spent.add("align", time.perf_counter() - began)

        with queueing(spent):
            return await self._worker.turn(timed)

    def _moments(self, parent: Head, optimizer: bytes | None) -> Moments:
        if optimizer is None:
            return Moments.zeros(parent)
        return Moments.from_bytes(optimizer, self._backbone.device)

    def first_head(
        self, *, policy_width: int, feedback: FeedbackSource, method: MethodSettings
    ) -> bytes:
        """Version 0 as safetensors."""
        return first_head(
            weight_R=self._backbone.weight_R,
            bias=self._backbone.bias,
            width_P=policy_width,
            inner=method.width,
            seed=method.seed,
            attends=feedback != "none",
            metadata={
                "format": "r2m-head-1",
                "fingerprint": self._backbone.fingerprint,
                "feedback": feedback,
                "method": asdict(method),
                "omega": method.omega.at(1),
                "t": 0,
            },
        ).to_bytes()

    async def load(self, source: HeadSource) -> Head:
        """The head of a source, from the cache or read in a worker thread, once for all callers."""
        held = self._heads.get(source.key)
        if held is not None:
            return held
        with timings().taking("registry.head"):
            return await self._loaded(source)

    async def _loaded(self, source: HeadSource) -> Head:
        task = self._loading.get(source.key)
        if task is None:
            task = asyncio.ensure_future(self._load(source))
            self._loading[source.key] = task
            task.add_done_callback(lambda _: self._loading.pop(source.key, None))
        # Shielded: one caller who leaves must not take the head from the others.
        return await asyncio.shield(task)

    async def _load(self, source: HeadSource) -> Head:
        def read() -> Head:
            return Head.from_bytes(source.read()).to(self._backbone.device)

        head = await asyncio.to_thread(read)
        self._heads.put(source.key, head, sum(t.nbytes for t in head.tensors.values()))
        return head


def _use(cache: BytesCache[Any, Any]) -> CacheUse:
    return CacheUse(cache.hits, cache.misses, cache.bytes, cache.capacity)


def _memory(device: torch.device) -> dict[str, int]:
    """Bytes of the device; of a CPU the process's own numbers say it."""
    if device.type != "cuda":
        return {}
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "total": torch.cuda.get_device_properties(device).total_memory,
    }


def _device_is_lost(error: Exception) -> bool:
    """An error after which every later call on the device fails too."""
    lost: type[Exception] | None = getattr(torch, "AcceleratorError", None)
    return lost is not None and isinstance(error, lost)
