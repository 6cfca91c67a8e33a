"""Split attention: hidden states stay with the trainer, and small numbers travel.

    scored = client.score(samples, run="tldr", feedback="split")
    ...
    client.align("tldr", step=1, groups=groups, feedback="split", context=scored.context)

The samples carry their hidden states as ever; nothing of them leaves this process but v·c at score,
and c and j at align: at most 4·D_p numbers a response and step, however long it is. Rewards and
gradients are the same. `States` is all there is to it; a trainer of several processes shares one
out over its ranks with `RankStates`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from r2m_client._samples import AnchorStates, Group, Sample

__all__ = ["Answers", "Context", "RankStates", "States", "torch_ranks"]


@dataclass(frozen=True, slots=True)
class Context:
    """What a head makes of hidden states: enough to answer for them, and no weights.

    Attributes:
        v: W_v W_o w, D_p float32 as bytes; the reward is (1 − ω) v·c + ω w·H_last + b.
        queries: u by the id of the sample, D_p float32 as bytes.
        head: whose they are; None: a candidate's.
    """

    v: bytes = field(repr=False)
    queries: Mapping[str, bytes] = field(repr=False)
    head: int | None = None

    @staticmethod
    def joined(contexts: Iterable[Context | None]) -> Context | None:
        """One of several scores' contexts, for the align of all their samples.

        Those of the first one's head; align asks about samples that another head scored. None
        where there is none: align asks about all.
        """
        given = [one for one in contexts if one is not None]
        if not given:
            return None
        same = [one for one in given if one.head == given[0].head]
        queries = {name: u for one in same for name, u in one.queries.items()}
        return Context(given[0].v, queries, given[0].head)


class Answers(Protocol):
    """Who can answer for hidden states, wherever they are."""

    def tokens(self) -> Mapping[str, int]:
        """How many states there are, by the id of the sample."""
        ...

    def fused(self, context: Context) -> Mapping[str, float]:
        """v·c, by id, of those of the context's samples that it knows."""
        ...

    def pooled(self, context: Context) -> Mapping[str, bytes]:
        """c, then j: 2·D_p float32 as bytes, by id."""
        ...


class States:
    """Ragged hidden states of some samples, on whatever device they live.

    Args:
        states: by the id of the sample: [S, D_p], numpy arrays, torch tensors of any device and
            floating dtype, or nested lists. Kept, not copied: let go of with `free`.
    """

    def __init__(self, states: Mapping[str, Any] | None = None) -> None:
        self._states = dict(states or {})

    @staticmethod
    def of(samples: Iterable[Sample]) -> States:
        """Those of samples that carry some."""
        return States(
            {one.id: one.hidden_states for one in samples if one.hidden_states is not None}
        )

    @staticmethod
    def of_step(groups: Iterable[Group], anchors: Iterable[AnchorStates] = ()) -> States:
        """Those of an align: its groups', and its anchors' as PAIR/chosen and PAIR/rejected."""
        found = States.of(sample for group in groups for sample in group.samples)
        for pair in anchors:
            for side in ("chosen", "rejected"):
                found.add(f"{pair.id}/{side}"[-256:], getattr(pair, side))
        return found

    def add(self, name: str, states: Any) -> None:
        """Keep one sample's states."""
        self._states[name] = states

    def free(self, names: Iterable[str] | None = None) -> None:
        """Let go of some, or of all."""
        for name in list(self._states) if names is None else names:
            self._states.pop(name, None)

    def onto(self, samples: Iterable[Sample]) -> list[Sample]:
        """The samples with their states, to be sent after all."""
        return [replace(one, hidden_states=self._states.get(one.id)) for one in samples]

    def tokens(self) -> dict[str, int]:
        """How many there are, by id."""
        return {name: len(states) for name, states in self._states.items()}

    def fused(self, context: Context) -> dict[str, float]:
        """v·c, by id."""
        from r2m_client import _pooling

        found = {
            name: _pooling.fused(self._matrix(name, len(v)), u, v)
            for name, u, v in self._asked(context)
        }
        return {name: float(value) for name, value in found.items()}

    def pooled(self, context: Context) -> dict[str, bytes]:
        """c and j, by id."""
        from r2m_client import _pooling

        found = {
            name: _pooling.pooled(self._matrix(name, len(v)), u, v)
            for name, u, v in self._asked(context)
        }
        return {name: _pooling.as_array(both).tobytes() for name, both in found.items()}

    def _asked(
        self, context: Context
    ) -> Iterable[tuple[str, npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        import numpy as np

        v = np.frombuffer(context.v, dtype="<f4").astype(np.float32)
        for name, query in context.queries.items():
            if name in self._states:
                yield name, np.frombuffer(query, dtype="<f4").astype(np.float32), v

    def _matrix(self, name: str, width: int) -> Any:
        import numpy as np

        states = self._states[name]
        if not hasattr(states, "shape"):
            states = np.asarray(states, dtype=np.float32)
        if len(states.shape) != 2 or states.shape[1] != width or not states.shape[0]:
            raise ValueError(
                f"hidden_states of sample {name!r} has shape {list(states.shape)}, expected "
                f"[tokens, {width}]"
            )
        return states


class RankStates:
    """States that are spread over the ranks of a trainer; only small vectors are gathered.

    Rank 0 makes it and hands it to the client as `feedback`, within a `with`; the other ranks make
    it and `follow` until that block ends. Every rank holds the states of its own samples.

        with torch_ranks(states) as shared:  # rank 0
            client.score(samples, run="tldr", feedback=shared)
        torch_ranks(states).follow()  # every other rank

    Args:
        states: this rank's.
        main: whether this is rank 0, which talks to the server.
        broadcast: gives every rank what rank 0 passes in (the others pass None).
        gather: gives rank 0 what each rank passes in, as a list, and the others None.
    """

    def __init__(
        self,
        states: States,
        *,
        main: bool,
        broadcast: Callable[[Any], Any],
        gather: Callable[[Any], list[Any] | None],
    ) -> None:
        self._states = states
        self._main = main
        self._broadcast = broadcast
        self._gather = gather
        self._tokens: dict[str, int] = _merged(gather(states.tokens()))

    def tokens(self) -> Mapping[str, int]:
        """Of all ranks' samples, on rank 0."""
        return self._tokens

    def fused(self, context: Context) -> Mapping[str, float]:
        """On rank 0; each rank answers for its own."""
        return self._ask("fused", context)

    def pooled(self, context: Context) -> Mapping[str, bytes]:
        """On rank 0; each rank answers for its own."""
        return self._ask("pooled", context)

    def __enter__(self) -> RankStates:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def follow(self) -> None:
        """On the other ranks: answer until rank 0 closes."""
        while (question := self._broadcast(None)) is not None:
            self._answer(*question)

    def close(self) -> None:
        """On rank 0: send the others on their way."""
        self._broadcast(None)

    def _ask(self, what: str, context: Context) -> dict[str, Any]:
        assert self._main, "rank 0 asks, the others follow"
        self._broadcast((what, context))
        return self._answer(what, context)

    def _answer(self, what: str, context: Context) -> dict[str, Any]:
        return _merged(self._gather(getattr(self._states, what)(context)))


def torch_ranks(states: States) -> RankStates:
    """`RankStates` over torch.distributed's default process group."""
    import importlib

    distributed: Any = importlib.import_module("torch.distributed")
    main = distributed.get_rank() == 0

    def broadcast(value: Any) -> Any:
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(value: Any) -> list[Any] | None:
        found: list[Any] | None = [None] * distributed.get_world_size() if main else None
        distributed.gather_object(value, found, dst=0)
        return found

    return RankStates(states, main=main, broadcast=broadcast, gather=gather)


def _merged(parts: list[Mapping[str, Any]] | None) -> dict[str, Any]:
    return {name: value for part in parts or () for name, value in part.items()}
