"""Feedback from inside a trainer: its rollouts as samples, its hidden states, its steps.

A rollout is named by its tokens, so a state recorded in one pass and a reward asked for in another
find each other without the trainer carrying an id along. The states stay where they were computed
(split attention): texts and small vectors travel.

This knows no trainer, and how states are recorded is handed in (`Record`).
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from r2m_client._samples import Group, Sample
from r2m_client.split import RankStates, States

if TYPE_CHECKING:
    from r2m_client._client import Client
    from r2m_client._results import AlignResult
    from r2m_client.integrations._ranks import Ranks


class Recording(Protocol):
    """What was recorded of a model while its `with` block ran."""

    def token_ids(self) -> Sequence[Any]:
        """Of each sample that went through, in order: [S], without padding."""
        ...

    def states(self) -> Sequence[Any]:
        """Likewise: [S, D_p]."""
        ...


Record = Callable[[Any], AbstractContextManager[Recording]]
"""Given the policy's model, records its last hidden states."""


_recorders: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def captured(model: Any) -> AbstractContextManager[Recording]:
    """`Record` by r2m_client.capture, whose hooks are put on a model once.

    Raises:
        ValueError: the model's final norm cannot be found.
    """
    if model not in _recorders:
        # Not above: it is made of torch, and only a trainer's process has that.
        capture: Any = importlib.import_module("r2m_client.capture")
        _recorders[model] = capture.Recorder(model)
    return _recorders[model].recording()


@dataclass(frozen=True, slots=True)
class Rollout:
    """One prompt and response.

    Attributes:
        id: of its tokens.
        prompt, response: joined they are the text of the tokens, special ones included.
        tokens: how many there are, and so many hidden states.
    """

    id: str
    prompt: str
    response: str
    tokens: int

    @property
    def group(self) -> str:
        """Of all responses to its prompt."""
        return hashlib.sha256(self.prompt.encode()).hexdigest()

    def sample(self, states: Any = None) -> Sample:
        """For the wire; the reward model reads the text as it is."""
        return Sample(
            self.id,
            self.prompt,
            self.response,
            states,
            format="raw",
            group=self.group,
            tokens=self.tokens,
        )


def name_of(tokens: Iterable[int]) -> str:
    """A rollout's id."""
    return hashlib.sha256(" ".join(map(str, tokens)).encode()).hexdigest()


def real_tokens(sequences: Any, attention_mask: Any) -> list[list[int]]:
    """Each row's token ids without padding, on whichever side it is.

    Args:
        sequences, attention_mask: [B, T], tensors or lists.
    """
    return [
        [int(token) for token, real in zip(row, mask, strict=True) if int(real)]
        for row, mask in zip(_rows(sequences), _rows(attention_mask), strict=True)
    ]


def _rows(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def rollouts_of(
    ids: Iterable[Sequence[int]], prompts: Iterable[str], decode: Callable[[Sequence[int]], str]
) -> list[Rollout]:
    """Rollouts of token ids and of the prompts that they answer.

    Args:
        prompts: as texts; where a decoded text does not begin with its prompt, the prompt is
            taken to be empty, and the text is read all the same.
        decode: with special tokens kept.
    """
    found: list[Rollout] = []
    for tokens, prompt in zip(ids, prompts, strict=True):
        text = decode(tokens)
        known = prompt if len(text) > len(prompt) and text.startswith(prompt) else ""
        found.append(Rollout(name_of(tokens), known, text[len(known) :], len(tokens)))
    return found


def groups_of(rollouts: Iterable[Rollout]) -> list[Group]:
    """Rollouts by their prompt, each once, in the order in which the prompts came."""
    groups: dict[str, dict[str, Rollout]] = {}
    for one in rollouts:
        groups.setdefault(one.group, {}).setdefault(one.id, one)
    return [Group(name, [one.sample() for one in held.values()]) for name, held in groups.items()]


class RunFeedback:
    """One rank's part in a run: it keeps states, asks for rewards, and aligns with the others.

    Args:
        client: of this rank.
        run: whose policy is trained; its feedback is `policy`.
        ranks: all of them.
    """

    def __init__(self, client: Client, run: str, ranks: Ranks) -> None:
        self._client = client
        self._run = run
        self._ranks = ranks
        self._states: dict[str, Any] = {}
        self._step: int | None = None

    def keep(self, recording: Recording) -> None:
        """Keep a pass's states under the tokens that it was fed, until the next align has ended.

        The order, the padding and the packing of the pass do not matter; the newest states count.

        Raises:
            ValueError: embeddings went in, so that the tokens are not known.
        """
        for ids, states in zip(recording.token_ids(), recording.states(), strict=True):
            if ids is None:
                raise ValueError(
                    "the policy's pass was fed embeddings: its token ids are not known"
                )
            self._states[name_of(ids.tolist())] = states

    def free(self) -> None:
        """Drop all states."""
        self._states.clear()

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Their rewards by the live head, in order.

        Raises:
            ValueError: a rollout whose states were not recorded on this rank.
            R2MError: the server could not be asked, or one of them has no reward.
        """
        if not rollouts:
            return []
        if missing := self._missing(rollouts):
            raise ValueError(missing)
        once = {one.id: one.sample(self._states[one.id]) for one in rollouts}
        scored = self._client.score(once.values(), run=self._run, feedback="split")
        by_id = {one.id: one.reward for one in scored.raise_for_errors().scores}
        rewards = [by_id[one.id] for one in rollouts]
        assert None not in rewards, "raise_for_errors has raised where there is none"
        return [one for one in rewards if one is not None]

    def most(self, count: int) -> int:
        """The highest of all ranks' counts, on each of them."""
        counts = self._ranks.gather(count)
        return int(self._ranks.broadcast(max(counts) if counts else None))

    def align(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """One update of the head: called by every rank, after the policy's own, with its rollouts.

        The states that count are those recorded last: of the updated policy.

        Returns:
            Numbers for the trainer's logs, the same on every rank.

        Raises:
            ValueError: on every rank: one of them has a rollout whose states were not recorded.
            R2MError: on rank 0: the server could not be asked, or refused.
            RuntimeError: on the others: rank 0 could not align.
        """
        try:
            # A rank that left alone would let the others wait for it.
            everywhere = self._ranks.gather(self._missing(rollouts)) or []
            if missing := self._ranks.broadcast(next(filter(None, everywhere), None)):
                raise ValueError(missing)
            mine = {one.id: self._states[one.id] for one in rollouts}
            told = self._aligned(rollouts, States(mine))
        finally:
            self.free()
        if told is None:
            raise RuntimeError("rank 0 could not align; its own error says why")
        return told

    def _missing(self, rollouts: Sequence[Rollout]) -> str | None:
        """What is wrong where some of the rollouts have no states here."""
        missing = [one for one in rollouts if one.id not in self._states]
        if not missing:
            return None
        return (
            f"{len(missing)} of {len(rollouts)} rollouts, the first of {missing[0].tokens} tokens, "
            "have no recorded hidden states: a pass of the policy on this rank has to go over "
            "exactly their tokens, whole (no sequence parallelism, no shared prefixes)"
        )

    def _aligned(self, rollouts: Sequence[Rollout], states: States) -> dict[str, float] | None:
        ranks = self._ranks
        everyone = ranks.gather(list(rollouts))
        shared = RankStates(states, main=ranks.main, broadcast=ranks.broadcast, gather=ranks.gather)
        if not ranks.main:
            shared.follow()
            return ranks.broadcast(None)
        told: dict[str, float] | None = None
        try:
            with shared:
                groups = groups_of(one for part in everyone or () for one in part)
                result = self._client.align(
                    self._run, step=self._next_step(), groups=groups, feedback=shared
                )
            self._step = result.step + 1
            told = logs_of(result)
        finally:  # whatever became of it, the others wait to hear
            ranks.broadcast(told)
        return told

    def _next_step(self) -> int:
        """The server's clock: after a restart it goes on where the run stands."""
        if self._step is None:
            self._step = self._client.run(self._run).next_step
        return self._step


def logs_of(result: AlignResult) -> dict[str, float]:
    """An align as numbers."""
    told: Mapping[str, float | None] = {
        "r2m/head": result.head,
        "r2m/accepted": float(result.accepted),
        "r2m/omega": result.omega,
        "r2m/groups": result.groups.used,
        "r2m/loss": result.loss.total,
    }
    return {name: float(value) for name, value in told.items() if value is not None}
