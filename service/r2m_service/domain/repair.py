"""What becomes of a run whose files are lost: a plan, as a pure function.

History is not rewritten: answered steps stay answered and numbers stay given. A live head that
align cannot go on from is left by a new branch, as rollback does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from r2m_service.domain.runs import LIVE, PREVIOUS, REFERENCE, Branch, Head

REPAIRED = "repaired: "
"""How the reason of a branch begins that a repair opened."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """A run's heads, by number, and what points at them."""

    run: str
    key: str
    archived: bool
    current: str
    branches: Mapping[str, Branch]
    aliases: Mapping[str, int]
    heads: Mapping[int, Head]

    def ancestors(self, number: int) -> Iterator[Head]:
        """A head's parent, that one's parent, and so on."""
        parent = self.heads[number].parent
        while parent is not None:
            yield self.heads[parent]
            parent = self.heads[parent].parent


@dataclass(frozen=True, slots=True)
class Repair:
    """What is changed, all or nothing.

    Attributes:
        weights: heads that cannot score any more.
        optimizers: heads that score, but cannot be gone on from.
        branch: the one that takes over, where the current one's live head is among those.
        aliases: where they point afterwards; None: removed.
    """

    run: str
    weights: frozenset[int]
    optimizers: frozenset[int]
    branch: Branch | None = None
    aliases: Mapping[str, int | None] = field(default_factory=dict[str, int | None])


def plan_repair(
    lineage: Lineage, *, weights: frozenset[int], optimizers: frozenset[int]
) -> Repair | None:
    """How to mend a run whose heads have lost these files.

    Returns:
        None where nothing is left to go on from: then the run stays as it is, since a backup, or
        the right blob store, may still bring the files back.
    """

    def scores(head: Head) -> bool:
        return head.accepted and head.stored and head.number not in weights

    def resumes(head: Head) -> bool:
        lost = head.number in optimizers and head.t > 0
        return scores(head) and head.resumable and not lost

    bare = frozenset(optimizers - weights)
    if lineage.archived:
        # Nobody aligns it any more: there is nothing to go on with, and little to lose.
        any_left = any(
            head.stored and head.number not in weights for head in lineage.heads.values()
        )
        return Repair(lineage.run, weights, bare) if any_left else None
    on = lineage.branches[lineage.current]
    branch, live = None, lineage.heads[on.live]
    if not resumes(live):
        found = next((one for one in lineage.ancestors(live.number) if resumes(one)), None)
        if found is None:
            return None
        branch = _branch(lineage, found, weights)
        live = found
    aliases: dict[str, int | None] = {}
    for alias, number in lineage.aliases.items():
        if number not in weights or alias in {LIVE, PREVIOUS}:
            continue
        if alias == REFERENCE:
            found = next((one for one in lineage.ancestors(number) if scores(one)), None)
            oldest = min(one.number for one in lineage.heads.values() if scores(one))
            aliases[alias] = oldest if found is None else found.number
        else:
            # A name means one version: on another it would be a lie.
            aliases[alias] = None
    before = on.live if branch is not None else lineage.aliases.get(PREVIOUS)
    if before is not None and before in weights:
        found = next((one for one in lineage.ancestors(live.number) if scores(one)), None)
        aliases[PREVIOUS] = None if found is None else found.number
    return Repair(lineage.run, weights, bare, branch, aliases)


def _branch(lineage: Lineage, head: Head, weights: frozenset[int]) -> Branch:
    on = lineage.branches[lineage.current]
    what = "weights" if on.live in weights else "optimizer state"
    return Branch(
        name=f"b{len(lineage.branches)}",
        live=head.number,
        step=head.step,
        origin_branch=head.branch,
        origin_head=head.number,
        origin_step=head.step,
        reason=f"{REPAIRED}the {what} of head {on.live} got lost, so head {head.number} of "
        f"step {head.step} is live again; go on with step {head.step + 1}, from the policy's own "
        f"checkpoint of step {head.step} where there is one",
    )
