"""Work on several processes, with a bar: ends at once where it is interrupted."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


@contextmanager
def processes(workers: int) -> Generator[ProcessPoolExecutor]:
    """Processes of one compute thread each; an exception ends them, whatever they are at."""
    others = set(active_children())
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(active_children()) - others:
                process.terminate()
            raise


def _begin() -> None:
    # A terminal sends Ctrl-C to all of them. The parent alone hears it, and ends the others: a
    # pool's process would take it for the result of a call and go on with the next.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def each(
    pool: ProcessPoolExecutor,
    title: str,
    function: Callable[..., T],
    calls: Mapping[str, tuple[object, ...]],
    console: Console | None = None,
) -> list[T]:
    """What `function` returns for every call, in their order.

    Args:
        calls: arguments by a name, which is said as it ends where there is no terminal for a bar.
    """
    console = console or Console(stderr=True)
    futures: dict[Future[T], str] = {}
    for name, arguments in calls.items():
        futures[pool.submit(function, *arguments)] = name
    with Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not calls,
    ) as bar:
        row = bar.add_task(title, total=len(calls))
        for done, future in enumerate(as_completed(futures), 1):
            future.result()
            bar.advance(row)
            if not console.is_terminal:
                console.print(f"{title} {done}/{len(calls)}: {futures[future]}")
    return [future.result() for future in futures]
