"""An align that asks its trainer: what is asked, and who may answer.

Hidden states may stay with the trainer (split attention). Then an align has to ask what they make
of heads that the trainer cannot know yet. It asks and waits, within the same step and under the
same locks; the call that began it is answered with the questions and a ticket, and a call with
that ticket goes on with it. At most as many wait as aligns may run at one time.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence

from r2m.errors import Code, Problem
from r2m_service.application.about import Fact, tell
from r2m_service.application.contract import AlignAnswer, AlignPending, QuestionOut, ReplyIn
from r2m_service.application.timings import timings

logger = logging.getLogger("r2m.align")


class Dialogue:
    """One align and its trainer.

    Args:
        run, step, branch: what is aligned, for the questions.
        seconds: how long the trainer has for an answer.
    """

    def __init__(self, run: str, step: int, seconds: float) -> None:
        self.branch = ""
        self._run = run
        self._step = step
        self._seconds = seconds
        self._pending: AlignPending | None = None
        self._replied: asyncio.Future[Sequence[ReplyIn]] | None = None
        self._asked = asyncio.Event()
        self.task: asyncio.Task[AlignAnswer] | None = None
        self._spent = timings()
        self._waiting = 0

    @property
    def ticket(self) -> str | None:
        """What the next reply has to name; None: nothing is asked."""
        return None if self._pending is None else self._pending.ticket

    async def ask(self, questions: Sequence[QuestionOut]) -> Sequence[ReplyIn]:
        """Ask, and wait for the replies: one a question, or none at all where nobody answers."""
        self._pending = AlignPending(
            run=self._run,
            step=self._step,
            branch=self.branch,
            ticket=secrets.token_urlsafe(16),
            questions=list(questions),
        )
        self._replied = asyncio.get_running_loop().create_future()
        self._asked.set()
        try:
            async with asyncio.timeout(self._seconds):
                return await self._replied
        except TimeoutError:
            return [ReplyIn(values=[]) for _ in questions]
        finally:
            self._pending = None
            self._asked.clear()

    def reply(self, replies: Sequence[ReplyIn]) -> None:
        """Answer what is asked.

        Raises:
            Problem: invalid_request, where there is not one reply a question; they may come again.
        """
        assert self._pending is not None
        assert self._replied is not None
        asked = len(self._pending.questions)
        if len(replies) != asked:
            raise Problem(
                Code.INVALID_REQUEST,
                f"{asked} questions were asked and {len(replies)} replies came: one each, in their "
                "order",
                field="replies",
            )
        self._replied.set_result(replies)
        self._pending = None
        self._asked.clear()

    async def next(self) -> AlignAnswer | AlignPending:
        """The answer, or what is asked before there is one. Whoever waits gets the same.

        Raises:
            Problem: as the align.
        """
        self._waiting += 1
        try:
            return await self._next()
        finally:
            self._waiting -= 1

    def concluded(self, task: asyncio.Task[AlignAnswer]) -> None:
        """The work is over. Where nobody waits for it any more, no call's line says what it was."""
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or self._waiting:
            return
        if error is None:
            facts = _facts(task.result())
            code = facts["verdict"]
        else:
            facts = {"run": self._run, "step": self._step}
            code = error.code if isinstance(error, Problem) else Code.COMPUTE_FAILED
        bug = error is not None and not isinstance(error, Problem)
        logger.log(
            logging.ERROR if bug else logging.INFO,
            "an align went on without its caller: %s",
            code,
            exc_info=error if bug else None,  # nobody else would hear of it
            extra={"facts": facts},
        )

    def join(self) -> None:
        """The call at hand waits for it too: the time that it takes from now on is its time."""
        self._spent.go_on_in(timings())

    async def _next(self) -> AlignAnswer | AlignPending:
        assert self.task is not None
        while not self.task.done():
            if self._pending is not None:
                return self._pending
            asked = asyncio.ensure_future(self._asked.wait())
            try:
                # Not cancelled with its caller: its retry finds the answer.
                await asyncio.wait({self.task, asked}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                asked.cancel()
        return self.task.result()


def told(answer: AlignAnswer | AlignPending) -> AlignAnswer | AlignPending:
    """The answer, which the call at hand is about."""
    tell(**_facts(answer))
    return answer


def _facts(answer: AlignAnswer | AlignPending) -> dict[str, Fact]:
    found: dict[str, Fact] = {"run": answer.run, "step": answer.step, "branch": answer.branch}
    if isinstance(answer, AlignPending):
        return {**found, "asked": len(answer.questions)}
    return {**found, "head": answer.head, "verdict": answer.verdict}


class Dialogues:
    """Those under way, by what was sent and by what is asked."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._open: dict[tuple[str, str], Dialogue] = {}

    def find(self, run: str, hashed: str) -> Dialogue | None:
        """The align of this very content, if it is under way."""
        return self._open.get((run, hashed))

    def open(self, run: str, step: int, hashed: str) -> Dialogue:
        """A new one."""
        dialogue = Dialogue(run, step, self._seconds)
        self._open[run, hashed] = dialogue
        return dialogue

    def close(self, run: str, hashed: str) -> None:
        """It is over."""
        self._open.pop((run, hashed), None)

    def by_ticket(self, run: str, ticket: str) -> Dialogue:
        """The one that waits for replies to this ticket.

        Raises:
            Problem: unknown_ticket.
        """
        for (name, _), dialogue in self._open.items():
            known = dialogue.ticket
            if name == run and known is not None and secrets.compare_digest(known, ticket):
                return dialogue
        raise Problem(
            Code.UNKNOWN_TICKET,
            f"no align of run {run!r} waits for replies to this ticket: send the align again",
            field="ticket",
        )
