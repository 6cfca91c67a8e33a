"""What an align asks of hidden states that stay with the trainer, and what it was told."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from r2m_service.application.align_job import AnchorItems, Asked, Because, Role, Told
from r2m_service.application.scoring_items import Item, Vector
from r2m_service.engine.align_groups import Group, GroupPasses
from r2m_service.engine.measuring import NOTHING
from r2m_service.modeling.head import Head


def kept_by_trainer(items: Sequence[Item]) -> bool:
    """Whether the trainer keeps states of any of them."""
    return any(item.split is not None for item in items)


class Questions:
    """v·c under a head, asked once for all samples of a purpose."""

    def __init__(self, passes: GroupPasses) -> None:
        self._passes = passes
        self._asked: dict[tuple[Because, Role], tuple[Vector, dict[str, Vector]]] = {}
        self._told: dict[tuple[Because, Role], Told] = {}

    def about_group(self, candidate: Head, group: Group) -> None:
        """What the gate has to know of a group."""
        self._ask("gate", "candidate", candidate, group.items, group.rte_KR)

    def about_pair(self, candidate: Head, pair: AnchorItems) -> None:
        """What an anchor pair's three margins need."""
        items, heads = (pair.chosen, pair.rejected), self._passes.heads
        rte_KR = self._passes.rtes(items)
        self._ask("anchors", "candidate", candidate, items, rte_KR)
        self._ask("anchors", "reference", heads.reference, items, rte_KR)
        if heads.reference is not heads.parent:
            self._ask("anchors", "live", heads.parent, items, rte_KR)

    def _ask(
        self, because: Because, role: Role, head: Head, items: Sequence[Item], rte_KR: Tensor
    ) -> None:
        if head.v_P is None or head.blind:
            return
        v = head.v_P.cpu().numpy()
        _, queries = self._asked.setdefault((because, role), (v, {}))
        queries |= self._passes.queries(head, items, rte_KR)

    @property
    def asked(self) -> list[Asked]:
        """All of them, each with its u by the id of the states."""
        return [
            Asked(because, role, v, queries)
            for (because, role), (v, queries) in self._asked.items()
        ]

    def hear(self, answers: Sequence[Told]) -> None:
        """What the trainer said, one answer a question."""
        self._told = dict(zip(self._asked, answers, strict=True))
        reference = self._told.get(("anchors", "reference"))
        if reference is not None and self._passes.heads.reference is self._passes.heads.parent:
            self._told["anchors", "live"] = reference

    def told(self, because: Because, role: Role) -> Told:
        """What was said to a question; nothing where none was asked."""
        return self._told.get((because, role), NOTHING)

    def told_of_anchors(self) -> dict[Role, Told]:
        """By the head that was asked about."""
        return {role: said for (because, role), said in self._told.items() if because == "anchors"}
