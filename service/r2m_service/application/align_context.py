"""What an align starts from."""

from __future__ import annotations

from dataclasses import dataclass

from r2m_service.domain.runs import Branch, Head, Run, RunState


@dataclass(frozen=True, slots=True)
class AlignContext:
    """What an align starts from."""

    state: RunState
    branch: Branch
    parent: Head
    reference: Head
    step: int
    hash: str

    @property
    def run(self) -> Run:
        """The run."""
        return self.state.run

    @property
    def candidate_omega(self) -> float:
        """What the candidate will score with."""
        # The candidate will stand after t + 1 accepted updates and scores with ω of the next.
        return self.run.method.omega.at(self.parent.t + 2)
