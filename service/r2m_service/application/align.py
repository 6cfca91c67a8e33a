"""The use case `align`: one update, exactly once for (run, branch, step)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager

from r2m.errors import Code, Problem
from r2m_service.application.align_conclusion import Conclusion
from r2m_service.application.align_context import AlignContext
from r2m_service.application.contract import (
    AlignAnswer,
    AlignRequest,
    GroupIn,
    Progress,
    SampleError,
    SkippedGroup,
)
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
    AlignGroup,
    AlignJob,
    Blobs,
    Engine,
    GroupResult,
    Item,
    Registry,
)
from r2m_service.application.samples import (
    content_hash,
    decode_feedback,
    error_out,
    items_of,
    require_distinct,
)
from r2m_service.application.usage import Usage
from r2m_service.domain.repair import REPAIRED
from r2m_service.domain.runs import REFERENCE, Branch, Run

OnProgress = Callable[[Progress], None]


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
        self._locks: dict[str, asyncio.Lock] = {}
        self._running: set[asyncio.Task[AlignAnswer]] = set()

    async def __call__(
        self, name: str, request: AlignRequest, progress: OnProgress | None = None
    ) -> AlignAnswer:
        """One update; a retry gets the first answer.

        Raises:
            Problem: unknown_run, unknown_branch, run_archived, backbone_mismatch, step_conflict,
                step_out_of_order, align_conflict, duplicate_id, invalid_request, storage_failed.
        """
        _require_form(request)
        await find_run(self._registry, name)  # no lock for names that nobody created
        hashed = await asyncio.to_thread(_decoded_hash, request)
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
        task = asyncio.create_task(self._locked(name, request, hashed, progress))
        self._running.add(task)
        task.add_done_callback(lambda _: (lock.release(), self._heavy.release()))
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

    @asynccontextmanager
    async def between_steps(self, name: str) -> AsyncGenerator[None]:
        """Hold a run still: no align of it is under way in this process."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            yield

    async def _locked(
        self, name: str, request: AlignRequest, hashed: str, progress: OnProgress | None
    ) -> AlignAnswer:
        state = await find_run(self._registry, name)
        state.run.require_open(self._engine.info.fingerprint)
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
        _require_labels_taken(state.run, request)
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
                answer = await self._align(context, request.groups, lesson, progress)
        except Problem as problem:
            if problem.code != Code.HEAD_PRUNED:
                raise
            # Parent and reference were kept a moment ago, and are let go only once others follow.
            raise Problem(
                Code.ALIGN_CONFLICT,
                f"run {name!r} went on meanwhile, and head {context.parent.number} or "
                f"{context.reference.number} was let go: send the same request again",
            ) from problem
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
    ) -> AlignAnswer:
        groups = [
            unlabelled(group) if place in lesson.withheld else group
            for place, group in enumerate(groups)
        ]
        jobs, results, errors = await self._prepared(context.run, groups)
        told = _Told(progress, groups, list(jobs))
        told.left_out(results, errors)
        job = await self._job(context, list(jobs.values()), lesson)
        update = await self._engine.align(job, told.measured)
        self._usage.aligned(context.run.name, update.device_seconds)
        for place, result in zip(jobs, update.groups, strict=True):
            results[place] = result
            for member, problem in result.errors.items():
                errors.append(_sample_error(groups[place], member, problem))
        answer = await asyncio.to_thread(
            self._conclusion.conclude,
            context,
            lesson,
            update,
            [results[place] for place in sorted(results)],
            errors,
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
                    errors.append(_sample_error(group, member, one))
            if len(items) < len(found):
                # A group short of a member has other labels: leave it out rather than guess.
                results[place] = GroupResult("error", {})
            else:
                jobs[place] = AlignGroup(items, _preferred(group))
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
            parent=head_source(self._registry, self._blobs, context.run, parent),
            reference=head_source(self._registry, self._blobs, context.run, context.reference),
            origin=head_source(
                self._registry, self._blobs, context.run, first if first.stored else parent
            ),
            optimizer=optimizer,
            t=parent.t,
            method=context.run.method,
            candidate_omega=context.candidate_omega,
            groups=groups,
            replay=lesson.replay,
            anchors=list(lesson.anchors.values()),
        )


class _Told:
    """Passes on what is known of groups, as soon as it is.

    Args:
        places: of the groups that the engine measures, in its order.
    """

    def __init__(
        self, progress: OnProgress | None, groups: list[GroupIn], places: list[int]
    ) -> None:
        self._progress = progress
        self._groups = groups
        self._places = places
        self._done = 0

    def left_out(self, results: Mapping[int, GroupResult], errors: list[SampleError]) -> None:
        """Groups that the engine never sees."""
        skipped = [
            SkippedGroup(
                id=self._groups[place].id,
                because=result.skipped or "",
                errors=[one for one in errors if one.group == self._groups[place].id],
            )
            for place, result in results.items()
        ]
        if skipped:
            self._tell(skipped)

    def measured(self, result: GroupResult) -> None:
        """The next group that the engine is done with."""
        group = self._groups[self._places[self._done]]
        self._done += 1
        skipped: list[SkippedGroup] = []
        if result.skipped is not None:
            errors = [_sample_error(group, *one) for one in result.errors.items()]
            skipped.append(SkippedGroup(id=group.id, because=result.skipped, errors=errors))
        self._tell(skipped)

    def _tell(self, skipped: list[SkippedGroup]) -> None:
        if self._progress is not None:
            self._progress(
                Progress(groups_done=self._done, groups_total=len(self._places), skipped=skipped)
            )


def _repaired(branch: Branch) -> str:
    """What a trainer should know of a branch that it did not ask for."""
    reason = branch.reason or ""
    return f" ({reason})" if reason.startswith(REPAIRED) else ""


def _decoded_hash(request: AlignRequest) -> str:
    decode_feedback([sample for group in request.groups for sample in group.samples])
    decode_feedback([one for pair in request.anchors for one in (pair.chosen, pair.rejected)])
    return content_hash(request)


def _require_form(request: AlignRequest) -> None:
    require_distinct(
        ((group.id, f"groups[{place}].id") for place, group in enumerate(request.groups)),
        what="groups",
    )
    require_distinct(
        (
            (sample.id, f"groups[{place}].samples[{member}].id")
            for place, group in enumerate(request.groups)
            for member, sample in enumerate(group.samples)
        ),
        what="samples",
    )
    require_distinct(
        ((pair.id, f"anchors[{place}].id") for place, pair in enumerate(request.anchors)),
        what="anchor pairs",
    )
    for place, group in enumerate(request.groups):
        if not group.preferred:
            continue
        ids = {sample.id for sample in group.samples}
        if len(set(group.preferred)) != 2 or not ids.issuperset(group.preferred):
            raise Problem(
                Code.INVALID_REQUEST,
                "preferred is [winner, loser]: two different sample ids of its group",
                field=f"groups[{place}].preferred",
            )


def _require_labels_taken(run: Run, request: AlignRequest) -> None:
    if run.method.labels != "pseudo":
        return
    for place, group in enumerate(request.groups):
        if group.preferred:
            raise Problem(
                Code.INVALID_REQUEST,
                f"run {run.name!r} learns from pseudo labels alone (method.labels); it takes no "
                "outside label",
                field=f"groups[{place}].preferred",
            )


def _preferred(group: GroupIn) -> tuple[int, int] | None:
    if not group.preferred:
        return None
    ids = [sample.id for sample in group.samples]
    return ids.index(group.preferred[0]), ids.index(group.preferred[1])


def _sample_error(group: GroupIn, member: int, problem: Problem) -> SampleError:
    return SampleError(id=group.samples[member].id, group=group.id, error=error_out(problem))
