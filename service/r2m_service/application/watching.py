"""Runs as they stand, for whoever watches the server: read when asked for, kept nowhere twice."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from r2m.errors import Problem
from r2m_service.application.label_port import LabelStore
from r2m_service.application.ports import Registry
from r2m_service.application.tally import Tally
from r2m_service.domain.runs import CANDIDATE, LIVE, Head, Run, RunState

IDLE_SECONDS = 600.0
"""A run that was used within keeps its place, whoever else would like it."""

LOOK_BACK = 256
"""Heads behind the newest in which the anchors' last look is searched for."""


@dataclass(frozen=True, slots=True)
class WatchedRun:
    """One run.

    Attributes:
        live: the version that scores.
        candidate: of the last step that made one: its metrics are that step's numbers.
        looked: the last candidate that the present anchors judged.
        waiting: marked samples without a label.
        tally: what this process counted.
    """

    state: RunState
    live: Head | None
    candidate: Head | None
    looked: Head | None
    waiting: int
    tally: Tally


@dataclass(frozen=True, slots=True)
class Watched:
    """What there is to see.

    Attributes:
        reachable: whether the registry answered; the rest is empty where it did not.
        runs: those that have a place.
        left_out: open runs that have none.
        states: how many runs are `open`, `frozen`, `archived`, or `foreign` (another backbone's).
    """

    reachable: bool
    runs: Sequence[WatchedRun] = ()
    left_out: int = 0
    states: Mapping[str, int] = field(default_factory=dict[str, int])


class Places:
    """Which runs are shown one by one, where there may be more of them than a monitor can bear.

    A run that has a place keeps it as long as it is used. A free one goes to the run that was used
    last, or made last where none was; a run that was not used for IDLE_SECONDS makes room.

    Args:
        most: places.
        clock: monotonic seconds, that of `Tally.used_at`.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._held: list[str] = []

    def choose(self, names: Sequence[str], used: Mapping[str, float]) -> list[str]:
        """Names of those that have a place now.

        Args:
            names: of all runs, oldest first.
            used: when each was used last; those that never were are not there.
        """
        age = {name: place for place, name in enumerate(names)}

        def late(name: str) -> tuple[float, int]:
            return used.get(name, float("-inf")), age[name]

        self._held = [name for name in self._held if name in age]
        held = set(self._held)
        for name in sorted(age.keys() - held, key=late, reverse=True):
            if len(self._held) < self._most:
                self._held.append(name)
                continue
            first = min(self._held, key=late, default=None)
            idle = first is not None and late(first)[0] < self._clock() - IDLE_SECONDS
            if first is None or not idle or late(name) <= late(first) or name not in used:
                break
            self._held[self._held.index(first)] = name
        return list(self._held)


class Watching:
    """Reads the runs that have a place. Blocking, one call at a time.

    Args:
        fingerprint: of the backbone: runs of another one are counted, not shown.
        places: who is shown.
    """

    def __init__(
        self, registry: Registry, labels: LabelStore, fingerprint: str, places: Places
    ) -> None:
        self._registry = registry
        self._labels = labels
        self._fingerprint = fingerprint
        self._places = places
        self._heads: dict[tuple[str, int], Head] = {}
        self._looks: dict[str, tuple[int, Head | None]] = {}

    def look(self, tallies: Mapping[str, Tally]) -> Watched:
        """All there is to see. A registry that fails is a finding, not an error."""
        try:
            return self._look(tallies)
        except Problem:
            return Watched(reachable=False)

    def _look(self, tallies: Mapping[str, Tally]) -> Watched:
        states = {state.run.name: state for state in self._registry.run_states()}
        kinds = Counter(self._kind(state.run) for state in states.values())
        shown = [
            name for name, state in states.items() if self._kind(state.run) in ("open", "frozen")
        ]
        used = {name: one.used_at for name, one in tallies.items() if one.used_at is not None}
        names = self._places.choose(shown, used)
        before, self._heads = self._heads, {}
        runs = [self._run(states[name], before, tallies.get(name) or Tally()) for name in names]
        self._looks = {
            one.state.run.key: self._looks[one.state.run.key]
            for one in runs
            if one.state.run.key in self._looks
        }
        return Watched(True, runs, len(shown) - len(names), kinds)

    def _kind(self, run: Run) -> str:
        if run.archived:
            return "archived"
        if run.fingerprint != self._fingerprint:
            return "foreign"
        return "open" if run.frozen is None else "frozen"

    def _run(
        self, state: RunState, before: Mapping[tuple[str, int], Head], tally: Tally
    ) -> WatchedRun:
        def head(alias: str) -> Head | None:
            number = state.aliases.get(alias)
            if number is None:
                return None
            key = (state.run.key, number)
            # What is shown of a head never changes once it is there.
            found = before.get(key) or self._registry.head(state.run.name, number)
            if found is not None:
                self._heads[key] = found
            return found

        return WatchedRun(
            state,
            live=head(LIVE),
            candidate=head(CANDIDATE),
            looked=self._looked(state),
            waiting=self._labels.waiting_samples(state.run.name),
            tally=tally,
        )

    def _looked(self, state: RunState) -> Head | None:
        """The newest head with the anchors' numbers, searched once."""
        if state.anchors is None:
            return None
        newest = state.aliases.get(CANDIDATE, 0)
        known, found = self._looks.get(state.run.key, (0, None))
        for number in range(newest, max(known, newest - LOOK_BACK), -1):
            head = self._registry.head(state.run.name, number)
            if head is not None and "anchors" in head.metrics:
                found = head
                break
        self._looks[state.run.key] = (newest, found)
        if found is None or found.metrics["anchors"]["set"] != state.anchors.number:
            return None
        return found
