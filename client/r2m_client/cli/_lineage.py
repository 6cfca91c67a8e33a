"""A run's heads drawn as a graph, newest first, one line each, like `git log --graph`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from r2m_client._results import HeadInfo

ACCEPTED, OTHER = "●", "○"


def draw(heads: Iterable[HeadInfo]) -> list[str]:
    """The lines: a lane for each line of descent, then number, parent, step, verdict, ω, aliases.

    A lane stands for the parent it leads down to; where several lead to one head, they join above
    it. Numbers only grow, so a child is always above its parent.
    """
    lanes: list[int | None] = []
    graph: list[tuple[str, HeadInfo | None]] = []
    for head in sorted(heads, key=lambda head: head.head, reverse=True):
        joining = [i for i, number in enumerate(lanes) if number == head.head]
        if joining:
            at = joining[0]
        elif None in lanes:
            at = lanes.index(None)
        else:
            at = len(lanes)
            lanes.append(None)
        if len(joining) > 1:
            graph.append((_join(lanes, joining), None))
            for lane in joining[1:]:
                lanes[lane] = None
        lanes[at] = head.head
        mark = ACCEPTED if head.accepted else OTHER
        cells = [
            mark if i == at else "│" if number is not None else " "
            for i, number in enumerate(lanes)
        ]
        graph.append((" ".join(cells).rstrip(), head))
        lanes[at] = head.parent
        while lanes and lanes[-1] is None:
            lanes.pop()
    width = max((len(cells) for cells, _ in graph), default=0)
    return [
        cells if head is None else f"{cells.ljust(width)}  {_facts(head)}" for cells, head in graph
    ]


def _join(lanes: list[int | None], joining: list[int]) -> str:
    # ├─┼─╯: the lanes between go straight on.
    first, last = joining[0], joining[-1]
    line = ""
    for i, number in enumerate(lanes):
        inside = first <= i < last
        if i == first:
            cell = "├"
        elif i == last:
            cell = "╯"
        elif i in joining:
            cell = "┴"
        elif number is None:
            cell = "─" if inside else " "
        else:
            cell = "┼" if inside else "│"
        line += cell + ("─" if inside else " ")
    return line.rstrip()


def _facts(head: HeadInfo) -> str:
    parent = "" if head.parent is None else f" ← {head.parent}"
    aliases = f"  ({', '.join(head.aliases)})" if head.aliases else ""
    gone = "  pruned" if head.pruned else ""
    reason = "" if head.accepted or not head.reason else f": {' '.join(head.reason.split())}"
    return (
        f"{head.head}{parent}  step {head.step} of {head.branch}  ω {head.omega:.3f}  "
        f"{head.verdict}{reason}{aliases}{gone}"
    )
