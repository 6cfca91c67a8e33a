"""How far an align is, told while it works."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from r2m_service.application.align_form import sample_error
from r2m_service.application.align_job import GroupResult
from r2m_service.application.contract import GroupIn, Progress, SampleError, SkippedGroup

OnProgress = Callable[[Progress], None]


class GroupsTold:
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
            errors = [sample_error(group, *one) for one in result.errors.items()]
            skipped.append(SkippedGroup(id=group.id, because=result.skipped, errors=errors))
        self._tell(skipped)

    def _tell(self, skipped: list[SkippedGroup]) -> None:
        if self._progress is not None:
            self._progress(
                Progress(groups_done=self._done, groups_total=len(self._places), skipped=skipped)
            )
