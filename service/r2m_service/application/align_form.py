"""Whether an align request has its form, and what of it is hashed."""

from __future__ import annotations

from r2m.errors import Code, Problem
from r2m_service.application.contract import AlignRequest, GroupIn, SampleError
from r2m_service.application.feedback import decode_feedback
from r2m_service.application.samples import content_hash, error_out, require_distinct
from r2m_service.domain.runs import Run


def decoded_hash(request: AlignRequest) -> str:
    """The content's hash, with base64 decoded in place. Blocking."""
    decode_feedback([sample for group in request.groups for sample in group.samples])
    decode_feedback([one for pair in request.anchors for one in (pair.chosen, pair.rejected)])
    return content_hash(request)


def require_form(request: AlignRequest) -> None:
    """Refuse what is wrong with the request as a whole.

    Raises:
        Problem: duplicate_id, invalid_request.
    """
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


def require_labels_taken(run: Run, request: AlignRequest) -> None:
    """Refuse outside labels where the run takes none.

    Raises:
        Problem: invalid_request.
    """
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


def preferred_places(group: GroupIn) -> tuple[int, int] | None:
    """Places of (winner, loser), where the group is labelled."""
    if not group.preferred:
        return None
    ids = [sample.id for sample in group.samples]
    return ids.index(group.preferred[0]), ids.index(group.preferred[1])


def sample_error(group: GroupIn, member: int, problem: Problem) -> SampleError:
    """A problem as it stands in align's answer."""
    return SampleError(id=group.samples[member].id, group=group.id, error=error_out(problem))
