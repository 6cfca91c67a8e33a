"""The use cases around runs, heads and aliases."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from datetime import UTC, datetime

from r2m.errors import Code, Problem
from r2m_service.application.about import caller_name
from r2m_service.application.contract import (
    ChangeList,
    ChangeOut,
    CreateRunRequest,
    RunList,
    RunOut,
    UpdateRunRequest,
)
from r2m_service.application.engine_port import Engine
from r2m_service.application.heads import Heads
from r2m_service.application.label_port import LabelStore
from r2m_service.application.lookup import (
    find_run,
    run_out,
    timestamp,
)
from r2m_service.application.ports import (
    Blobs,
    Registry,
)
from r2m_service.application.run_settings import (
    changed,
    creation_settings,
    require_same,
    settings_of,
)
from r2m_service.application.usage import Usage
from r2m_service.domain.runs import (
    FIRST_BRANCH,
    Change,
    ChangeKind,
    DiskUse,
    Head,
    Policy,
    Run,
    TextRules,
)

FLOAT32_BYTES = 4


class Runs(Heads):
    """Create, see, change and archive runs; what concerns their heads is inherited.

    Args:
        usage: counters by run.
        max_head_bytes: of one version's weights: what a run's sizes may ask for.
        texts: of the server; its rule for empty responses is that of a run that states none.
    """

    def __init__(
        self,
        registry: Registry,
        blobs: Blobs,
        engine: Engine,
        heavy: asyncio.Semaphore,
        usage: Usage,
        labels: LabelStore,
        *,
        max_head_bytes: int,
        texts: TextRules,
    ) -> None:
        super().__init__(registry, blobs, engine, heavy, usage, labels)
        self._texts = texts
        self._max_head_bytes = max_head_bytes

    async def create_run(self, request: CreateRunRequest) -> tuple[RunOut, bool]:
        """A new run with version 0, or the run as it is where the same settings come again.

        Returns:
            The run, and whether it is new.

        Raises:
            Problem: invalid_request, run_exists, backbone_mismatch, storage_failed.
        """
        run = self._run(request)
        existing = await asyncio.to_thread(self._registry.run_state, run.name)
        if existing is None:
            try:
                async with self._heavy:
                    await asyncio.to_thread(self._store, run)
            except Problem as problem:
                if problem.code != Code.RUN_EXISTS:
                    raise
                existing = await find_run(self._registry, run.name)  # somebody was faster
        if existing is not None:
            existing.run.require_open(self._engine.info)
            changes = await asyncio.to_thread(self._registry.changes, run.name)
            created = next((one.detail for one in changes if one.what == "created"), None)
            if not request.empty_response:  # it states none, so it asks for no other than there is
                run = replace(
                    run, texts=replace(run.texts, empty_response=existing.run.texts.empty_response)
                )
            require_same(run, created)
            return run_out(existing), False
        return run_out(await find_run(self._registry, run.name)), True

    def _run(self, request: CreateRunRequest) -> Run:
        info = self._engine.info
        feedback = request.feedback or "policy"
        given = request.policy.hidden_size if request.policy else None
        if feedback == "policy" and given is None:
            raise Problem(
                Code.INVALID_REQUEST,
                "a run with feedback policy needs its policy's hidden size",
                field="policy.hidden_size",
            )
        if feedback != "policy" and given not in (None, info.hidden_size):
            raise Problem(
                Code.INVALID_REQUEST,
                f"a run with feedback {feedback} reads the backbone's own states, which are "
                f"{info.hidden_size} wide, not {given}",
                field="policy.hidden_size",
            )
        policy = Policy(hidden_size=given or info.hidden_size)
        if request.policy is not None and feedback == "policy":
            policy = Policy(
                hidden_size=policy.hidden_size,
                hidden_state=request.policy.hidden_state or "post_norm",
                last_token=request.policy.last_token is not False,
            )
        method = settings_of(request.method, policy.hidden_size, feedback)
        if feedback != "none":
            self._require_size(policy.hidden_size, method.width)
        if "backbone" in method.controls:
            self._require_size(info.hidden_size, method.width, "the control backbone: ")
        return Run(
            name=request.run,
            key=uuid.uuid4().hex,
            fingerprint=info.fingerprint,
            policy=policy,
            feedback=feedback,
            method=method,
            created_at=datetime.now(UTC),
            texts=TextRules(
                request.truncation or "none", request.empty_response or self._texts.empty_response
            ),
            template_date=info.template_date,
        )

    def _require_size(self, policy_width: int, inner: int, whose: str = "") -> None:
        size = 2 * inner * (policy_width + self._engine.info.hidden_size) * FLOAT32_BYTES
        if size > self._max_head_bytes:
            raise Problem(
                Code.INVALID_REQUEST,
                f"{whose}a head of hidden size {policy_width} and width {inner} takes {size} "
                f"bytes, this server allows {self._max_head_bytes}",
                field="method.width",
            )

    def _store(self, run: Run) -> None:
        weights = self._engine.first_head(
            policy_width=run.policy.hidden_size, feedback=run.feedback, method=run.method
        )
        ref = self._blobs.put(f"{run.key}/{uuid.uuid4().hex}.safetensors", weights)
        head = Head(
            number=0,
            parent=None,
            branch=FIRST_BRANCH,
            step=0,
            t=0,
            omega=run.method.omega.at(1),
            reference=0,
            accepted=True,
            verdict="accepted",
            reason="version 0: ranks as the frozen reward model",
            metrics={},
            created_at=run.created_at,
            weights=ref,
        )
        try:
            change = Change(run.created_at, "created", creation_settings(run), caller=caller_name())
            self._registry.create_run(run, head, change)
        except Problem as problem:
            if problem.code == Code.RUN_EXISTS:
                self._blobs.delete(ref.key)
            raise

    async def list_runs(self) -> RunList:
        """All runs, oldest first."""
        states = await asyncio.to_thread(self._registry.run_states)
        disk = await asyncio.to_thread(self._registry.disk_use)
        return RunList(
            runs=[run_out(state, disk=disk.get(state.run.name, DiskUse())) for state in states]
        )

    async def update_run(self, run: str, request: UpdateRunRequest) -> RunOut:
        """Change settings that may change in a run's life; what is not given stays.

        Raises:
            Problem: invalid_request, unknown_run, run_archived, backbone_mismatch.
        """
        state = await find_run(self._registry, run)
        state.run.require_open(self._engine.info)
        now = datetime.now(UTC)
        method, detail = state.run.method, {}
        if request.method or request.frozen is None:
            method, detail = changed(state.run, request.method)
        if request.frozen is not None:
            await self._set_frozen(state.run, request, now)
        if request.method:
            change = Change(now, "updated", detail, request.reason, caller_name())
            await asyncio.to_thread(self._registry.update_method, run, method, change)
        return await self.get_run(run)

    async def _set_frozen(self, run: Run, request: UpdateRunRequest, now: datetime) -> None:
        """Freeze or lift; the same again changes nothing."""
        if (run.frozen is not None) == request.frozen:
            return
        reason = (request.reason or "frozen by hand") if request.frozen else None
        what: ChangeKind = "frozen" if request.frozen else "unfrozen"
        detail = {} if run.frozen is None else {"was": run.frozen}
        change = Change(now, what, detail, request.reason, caller_name())
        await asyncio.to_thread(self._registry.set_frozen, run.name, reason, change)

    async def list_changes(self, run: str) -> ChangeList:
        """A run's audit trail, oldest first. Raises Problem(unknown_run)."""
        await find_run(self._registry, run)
        changes = await asyncio.to_thread(self._registry.changes, run)
        return ChangeList(
            changes=[
                ChangeOut(
                    at=timestamp(one.at),
                    what=one.what,
                    detail=dict(one.detail),
                    reason=one.reason,
                    caller=one.caller,
                )
                for one in changes
            ]
        )

    async def archive_run(self, run: str) -> RunOut:
        """Make a run read-only; doing it again is fine. Raises Problem(unknown_run)."""
        state = await find_run(self._registry, run)
        if not state.run.archived:
            state.run.require_open(self._engine.info)
            change = Change(datetime.now(UTC), "archived", {}, caller=caller_name())
            await asyncio.to_thread(self._registry.archive_run, run, change)
        return await self.get_run(run)
