"""What both transports do with errors: the pause they advise, and their own bugs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TypeVar

from r2m.errors import Code, Problem

T = TypeVar("T")

log = logging.getLogger(__name__)

_PAUSE = {Code.OVERLOADED: 1, Code.ALIGN_CONFLICT: 1, Code.DEADLINE_EXCEEDED: 1}


def retry_after(code: Code) -> int:
    """Seconds that a caller should wait before it sends the same request again."""
    return _PAUSE.get(code, 5)


async def only_problems(work: Awaitable[T], *, name: str) -> T:
    """Await a use case so that nothing but a Problem comes out of it.

    A client must not learn of our bugs as an unknown status: they are logged here, and answered as
    compute_failed, which is retryable.

    Args:
        work: the use case.
        name: route or method, for the log.

    Raises:
        Problem: what the use case raised, or compute_failed.
        asyncio.CancelledError: only where the caller itself is being cancelled.
    """
    try:
        return await work
    except Problem:
        raise
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Somebody inside cancelled what we waited for, as workers do at shutdown. Passed on, it
        # would look like a cancelled call to the server, and could leave its client hanging.
        raise Problem(Code.NOT_READY, "the server is draining: the work was given up") from None
    except Exception:
        log.exception("unexpected failure of %s", name)
        raise Problem(
            Code.COMPUTE_FAILED, "the server failed on this request; its log says why"
        ) from None
