"""The use case `align`: one update, exactly once for (run, branch, step)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from r2m.errors import Code, Problem
from r2m_service.application.about import tell
from r2m_service.application.align_conclusion import Conclusion, Feedback
from r2m_service.application.align_context import AlignContext
from r2m_service.application.align_form import (
    decoded_hash,
    preferred_places,
    require_form,
    require_labels_taken,
    sample_error,
)
from r2m_service.application.align_job import AlignGroup, AlignJob, GroupResult
from r2m_service.application.align_progress import GroupsTold, OnProgress
from r2m_service.application.asking import Asking
from r2m_service.application.contract import (
    AlignAnswer,
    AlignPending,
    AlignRequest,
    GroupIn,
    ReplyAlignRequest,
    SampleError,
)
from r2m_service.application.dialogue import Dialogue, Dialogues, told
from r2m_service.application.engine_port import Engine
from r2m_service.application.journaling import Journaling
from r2m_service.application.lessons import Lesson, Lessons, unlabelled
from r2m_service.application.lookup import (
    find_head,
    find_run,
    find_stored,
    head_source,
    read_file,
)
from r2m_service.application.ports import (
    Blobs,
    Registry,
)
from r2m_service.application.samples import items_of, tell_texts
from r2m_service.application.scoring_items import HeadSource, Item
from r2m_service.application.timings import timings
from r2m_service.application.usage import Usage, bytes_of
from r2m_service.domain.repair import REPAIRED
from r2m_service.domain.runs import REFERENCE, Branch, Head, Run


class Align:
    """Runs aligns; those of one run one after the other.

    Another replica may still commit first: the registry's compare-and-swap decides, and the loser
    gets the retryable align_conflict.

    Args:
        heavy: what bounds work that holds several copies of a head.
        usage: counters by run.
        lessons: what is learnt and judged beside the groups sent.
        journaling: what is written down.
        committed: hears the run's name after each step.
        reply_seconds: how long a trainer has to answer what an align asks.
    """

    def __init__(
        self,
        registry: Registry,
        blobs: Blobs,
        engine: Engine,
        heavy: asyncio.Semaphore,
        usage: Usage,
        lessons: Lessons,
        journaling: Journaling,
        committed: Callable[[str], None] = lambda _: None,
        reply_seconds: float = 60.0,
    ) -> None:
        self._registry = registry
        self._blobs = blobs
        self._engine = engine
        self._heavy = heavy
        self._usage = usage
        self._lessons = lessons
        self._journaling = journaling
        self._committed = committed
        self._conclusion = Conclusion(registry, blobs)
        self._dialogues = Dialogues(reply_seconds)
        self._locks: dict[str, asyncio.Lock] = {}
        self._running: set[asyncio.Task[AlignAnswer]] = set()

    async def __call__(
        self, name: str, request: AlignRequest, progress: OnProgress | None = None
    ) -> AlignAnswer | AlignPending:
        """One update; a retry gets the first answer.

        Where hidden states stay with the trainer there may be questions first (`AlignPending`);
        `reply` goes on. The same content again, meanwhile, joins the align that is under way.

        Raises:
            Problem: unknown_run, unknown_branch, run_archived, backbone_mismatch, step_conflict,
                step_out_of_order, align_conflict, duplicate_id, invalid_request, storage_failed.
        """
        require_form(request)
        await find_run(self._registry, name)  # no lock for names that nobody created
        tell(
            run=name,
            step=request.step,
            branch=request.branch,
            groups=len(request.groups),
            samples=sum(len(group.samples) for group in request.groups),
        )
        for group in request.groups:
            tell_texts(group.samples)
        hashed = await asyncio.to_thread(decoded_hash, request)
        dialogue = self._dialogues.find(name, hashed)
        if dialogue is None:
            dialogue = await self._begin(name, request, hashed, progress)
        else:
            dialogue.join()
        return told(await dialogue.next())

    async def reply(
        self, name: str, ticket: str, request: ReplyAlignRequest
    ) -> AlignAnswer | AlignPending:
        """Go on with what the trainer says: the answer, or more questions.

        Raises:
            Problem: unknown_run, unknown_ticket, invalid_request, and as the align.
        """
        await find_run(self._registry, name)
        dialogue = self._dialogues.by_ticket(name, ticket)
        tell(run=name)
        dialogue.join()
        dialogue.reply(request.replies)
        return told(await dialogue.next())

    async def _begin(
        self, name: str, request: AlignRequest, hashed: str, progress: OnProgress | None
    ) -> Dialogue:
        lock = self._locks.setdefault(name, asyncio.Lock())
        await lock.acquire()
        try:
            await self._heavy.acquire()
        except BaseException:
            lock.release()
            raise
        # From here on a caller who gives up changes nothing: the work goes on and its retry finds
        # the answer. Otherwise an align longer than the client's deadline would never end. Only
        # those that hold both locks are kept alive, so impatient callers cannot pile up.
        dialogue = self._dialogues.open(name, request.step, hashed)
        task = asyncio.create_task(self._locked(name, request, hashed, progress, dialogue))
        dialogue.task = task
        self._running.add(task)
        task.add_done_callback(lambda _: (lock.release(), self._heavy.release()))
        task.add_done_callback(lambda _: self._dialogues.close(name, hashed))
        task.add_done_callback(self._running.discard)
        task.add_done_callback(dialogue.concluded)
        return dialogue

    @asynccontextmanager
    async def between_steps(self, name: str) -> AsyncGenerator[None]:
        """Hold a run still: no align of it is under way in this process."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            yield

    async def _locked(
        self,
        name: str,
        request: AlignRequest,
        hashed: str,
        progress: OnProgress | None,
        dialogue: Dialogue,
    ) -> AlignAnswer:
        with timings().taking("registry.run"):
            state = await find_run(self._registry, name)
        state.run.require_open(self._engine.info)
        branch = state.branch(request.branch)
        answered = await self._answered(name, branch, request.step, hashed)
        if answered is not None:
            return answered
        if branch.name != state.current:
            raise Problem(
                Code.BRANCH_LEFT,
                f"a rollback has moved run {name!r} to branch {state.current!r}; branch "
                f"{branch.name!r} takes no new steps{_repaired(state.branch(None))}",
                field="branch",
            )
        require_labels_taken(state.run, request)
        context = AlignContext(
            state=state,
            branch=branch,
            parent=await find_stored(self._registry, state, branch.live),
            reference=await find_stored(self._registry, state, REFERENCE),
            step=request.step,
            hash=hashed,
        )
        try:
            if state.run.frozen is not None:
                answer = await asyncio.to_thread(
                    self._conclusion.freeze, context, len(request.groups)
                )
            else:
                lesson = await self._lessons.of(state, request)
                dialogue.branch = branch.name
                answer = await self._align(context, request.groups, lesson, progress, dialogue)
        except Problem as problem:
            if problem.code != Code.HEAD_PRUNED:
                raise
            # Parent and reference were kept a moment ago, and are let go only once others follow.
            raise Problem(
                Code.ALIGN_CONFLICT,
                f"run {name!r} went on meanwhile, and head {context.parent.number} or "
                f"{context.reference.number} was let go: send the same request again",
            ) from problem
        self._usage.concluded(name, answer.verdict, [one.error.code for one in answer.errors])
        self._committed(name)
        return answer

    async def _answered(
        self, name: str, branch: Branch, step: int, hashed: str
    ) -> AlignAnswer | None:
        stored = await asyncio.to_thread(self._registry.answered_step, name, branch.name, step)
        if stored is not None:
            if stored.content_hash != hashed:
                raise Problem(
                    Code.STEP_CONFLICT,
                    f"step {step} of branch {branch.name!r} was answered for other content; a "
                    "trainer that resumed from an older checkpoint calls rollback with to_step "
                    "first and gets a branch of its own",
                    field="step",
                )
            return AlignAnswer.model_validate_json(stored.answer)
        if step != branch.step + 1:
            raise Problem(
                Code.STEP_OUT_OF_ORDER,
                f"branch {branch.name!r} expects step {branch.step + 1}, got {step}"
                f"{_repaired(branch)}",
                field="step",
            )
        return None

    async def _align(
        self,
        context: AlignContext,
        groups: list[GroupIn],
        lesson: Lesson,
        progress: OnProgress | None,
        dialogue: Dialogue,
    ) -> AlignAnswer:
        groups = [
            unlabelled(group) if place in lesson.withheld else group
            for place, group in enumerate(groups)
        ]
        jobs, results, errors = await self._prepared(context.run, groups)
        heard = GroupsTold(progress, groups, list(jobs))
        heard.left_out(results, errors)
        asking = Asking(
            context,
            dialogue,
            self._engine,
            parent=self._source(context, context.parent),
            reference=self._source(context, context.reference),
        )
        jobs = await asking.before(jobs, lesson.anchors.values())
        job = await self._job(context, list(jobs.values()), lesson)
        update = await self._engine.align(job, heard.measured, asking.gate)
        took = asking.bytes + sum(
            bytes_of(item) or 0 for group in jobs.values() for item in group.items
        )
        self._usage.aligned(context.run.name, update.device_seconds, took)
        for place, result in zip(jobs, update.groups, strict=True):
            results[place] = result
            for member, problem in result.errors.items():
                errors.append(sample_error(groups[place], member, problem))
        answer = await asyncio.to_thread(
            self._conclusion.conclude,
            context,
            lesson,
            update,
            [results[place] for place in sorted(results)],
            errors,
            Feedback(took, asking.untold),
        )
        await asyncio.to_thread(
            self._journaling.aligned, context, list(jobs.values()), lesson, update, answer
        )
        return answer

    async def _prepared(
        self, run: Run, groups: list[GroupIn]
    ) -> tuple[dict[int, AlignGroup], dict[int, GroupResult], list[SampleError]]:
        """Groups the engine can use, by place; the others are skipped whole."""
        samples = [sample for group in groups for sample in group.samples]
        checked = iter(await items_of(self._engine, run, samples))
        jobs: dict[int, AlignGroup] = {}
        results: dict[int, GroupResult] = {}
        errors: list[SampleError] = []
        for place, group in enumerate(groups):
            found = [next(checked) for _ in group.samples]
            items = [one for one in found if isinstance(one, Item)]
            for member, one in enumerate(found):
                if isinstance(one, Problem):
                    errors.append(sample_error(group, member, one))
            if len(items) < len(found):
                # A group short of a member has other labels: leave it out rather than guess.
                results[place] = GroupResult("error", {})
            else:
                jobs[place] = AlignGroup(items, preferred_places(group))
        return jobs, results, errors

    async def _job(
        self, context: AlignContext, groups: list[AlignGroup], lesson: Lesson
    ) -> AlignJob:
        parent = context.parent
        optimizer = None
        if (groups or lesson.replay) and parent.t > 0:
            if parent.optimizer is None:
                raise Problem(
                    Code.HEAD_DAMAGED,
                    f"head {parent.number} has no optimizer state to go on from",
                )
            optimizer = await asyncio.to_thread(
                read_file,
                self._registry,
                self._blobs,
                context.run.name,
                parent,
                parent.optimizer,
            )
        first = await find_head(self._registry, context.state, 0)
        return AlignJob(
            parent=self._source(context, parent),
            reference=self._source(context, context.reference),
            origin=self._source(context, first if first.stored else parent),
            optimizer=optimizer,
            t=parent.t,
            method=context.run.method,
            candidate_omega=context.candidate_omega,
            groups=groups,
            replay=lesson.replay,
            anchors=list(lesson.anchors.values()),
        )

    def _source(self, context: AlignContext, head: Head) -> HeadSource:
        return head_source(self._registry, self._blobs, context.run, head)


def _repaired(branch: Branch) -> str:
    """What a trainer should know of a branch that it did not ask for."""
    reason = branch.reason or ""
    return f" ({reason})" if reason.startswith(REPAIRED) else ""
