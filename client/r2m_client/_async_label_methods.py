"""What a asyncio client can ask about anchors, outside labels and freezing."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from r2m_client import _label_calls as calls

if TYPE_CHECKING:
    from collections.abc import Iterable

    from r2m_client._calls import Call
    from r2m_client._label_results import AnchorsInfo, KeptSamples, LabelsResult
    from r2m_client._results import RunInfo
    from r2m_client._samples import Label, Pair

T = TypeVar("T")


class AsyncLabelMethods:
    """Mixed into AsyncClient."""

    async def _send(self, call: Call[T]) -> T:
        raise NotImplementedError

    async def put_anchors(
        self, run: str, pairs: Iterable[Pair], *, reason: str | None = None
    ) -> AnchorsInfo:
        """Make held-out gold pairs the ones that judge candidates; they replace those before.

        The same set again changes nothing, so it is repeated after a broken connection.

        Args:
            run: its name.
            pairs: iterated once; texts alone. 500 and more can tell two points apart.
            reason: kept in the audit trail.

        Raises:
            InvalidRequest: equal sides, or a prompt that was learnt from.
        """
        return await self._send(calls.put_anchors(run, pairs, reason=reason))

    async def anchors(self, run: str) -> AnchorsInfo:
        """The set that judges, and the step that it is due at. Raises NotFound."""
        return await self._send(calls.anchors(run))

    async def add_labels(self, run: str, labels: Iterable[Label]) -> LabelsResult:
        """Outside labels of samples that score marked (`Score.audit`); late, in any order.

        A label that cannot be taken has an error in the result; it does not raise, and costs no
        other. The same label again is known, so they are repeated after a broken connection.

        Raises:
            NotFound: no such run.
        """
        return await self._send(calls.add_labels(run, labels))

    async def samples(
        self, run: str, *, after: int = 0, limit: int = 100, waiting: bool = False
    ) -> KeptSamples:
        """Marked samples, oldest first, in pages.

        Args:
            run: its name.
            after: the `next` of the page before.
            limit: at most 1000.
            waiting: those without a label alone.

        Raises:
            NotFound: no such run.
        """
        return await self._send(calls.samples(run, after=after, limit=limit, waiting=waiting))

    async def freeze(self, run: str, *, reason: str | None = None) -> RunInfo:
        """Aligns change nothing from now on, and say so; scoring goes on. Raises NotFound."""
        return await self._send(calls.freeze(run, frozen=True, reason=reason))

    async def unfreeze(self, run: str, *, reason: str | None = None) -> RunInfo:
        """Lift a freeze: rejections and the audited gap's sum start anew. Raises NotFound."""
        return await self._send(calls.freeze(run, frozen=False, reason=reason))
