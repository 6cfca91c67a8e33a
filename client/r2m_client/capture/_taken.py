"""What a recording took: each sample's states, and what convention they follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from r2m_client._samples import Sample
from r2m_client.capture._passes import Chain, Pass, Row


class Taken:
    """Ragged hidden states of the samples of some passes, in the order in which they ran.

    Rows of one pass count from the top; a packed row gives several samples. A generation (prefill
    and decode) is one pass with more columns: its rows end at the first token of `ends` that was
    decoded, and the last sampled token, which is never fed, has no state.

    Tensors are views of what the policy computed, wherever that is possible: on its device, in its
    dtype, and alive until `free` and the last view are gone.
    """

    hidden_state: Literal["post_norm"] = "post_norm"
    """Where they were taken, as a Sample's field."""

    def __init__(self, ends: Sequence[int] = ()) -> None:
        self._ends = tuple(ends)
        self._passes: list[Pass] = []
        self._rows: list[Row] | None = None
        self._tokens: list[int] = []
        self._last_token = True

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What ran, in order."""
        return tuple(self._passes)

    @property
    def tokens(self) -> list[int]:
        """Tokens of each text: as many as it has states, or one more without the last one's."""
        self._read()
        return list(self._tokens)

    @property
    def last_token(self) -> bool:
        """Whether the last token's state is among them, for all samples alike."""
        self._read()
        return self._last_token

    def states(self) -> list[Tensor]:
        """Each sample's states, [S, D_p].

        Raises:
            RuntimeError: nothing was recorded.
            ValueError: the passes do not say which tokens belong to whom.
        """
        rows = self._read()
        return [row.cut(self._kept(count)) for row, count in zip(rows, self._tokens, strict=True)]

    def token_ids(self) -> list[Tensor | None]:
        """The ids behind `states()`, [S] each; None where embeddings went in."""
        rows = self._read()
        kept = (self._kept(count) for count in self._tokens)
        return [row.token_ids(count) for row, count in zip(rows, kept, strict=True)]

    def expect(self, tokens: Iterable[int]) -> Taken:
        """Hold the passes against the texts, and let the states end where the texts do.

        Args:
            tokens: of prompt + response of each sample, by the policy's tokenizer.

        Raises:
            ValueError: another number of samples, or one whose tokens are not those of its pass.
        """
        rows, expected = self._read(), list(tokens)
        if len(rows) != len(expected):
            raise ValueError(f"the passes had {len(rows)} samples, there are {len(expected)} texts")
        last = True
        for place, (row, count) in enumerate(zip(rows, expected, strict=True)):
            fed = len(row.columns)
            # What a generation is fed after a row's end is padding; else each token is the text's.
            fits = fed >= count - 1 if row.decoded else fed in (count, count - 1)
            if not fits or count < 1:
                raise ValueError(
                    f"sample {place}: the policy's passes had {fed} tokens, its text has {count}"
                )
            last = last and not row.decoded and fed >= count
        self._tokens, self._last_token = expected, last
        return self

    def onto(self, samples: Iterable[Sample]) -> list[Sample]:
        """The samples with their states, and with the convention these follow.

        Raises:
            ValueError: another number of samples.
        """
        given, states = list(samples), self.states()
        if len(given) != len(states):
            raise ValueError(f"the passes had {len(states)} samples, {len(given)} were given")
        return [
            replace(
                one,
                hidden_states=own,
                hidden_state=self.hidden_state,
                last_token=self._last_token,
                tokens=count,
            )
            for one, own, count in zip(given, states, self._tokens, strict=True)
        ]

    def free(self) -> None:
        """Let go of everything."""
        self._passes.clear()
        self._rows, self._tokens, self._last_token = None, [], True

    def add(self, one: Pass) -> None:
        """What a Recorder calls after each pass."""
        self._passes.append(one)
        self._rows = None

    def _kept(self, tokens: int) -> int:
        return tokens if self._last_token else tokens - 1

    def _read(self) -> list[Row]:
        if self._rows is not None:
            return self._rows
        if not self._passes:
            raise RuntimeError(
                "no pass of the policy was recorded. If it is compiled, the Recorder has to be "
                "there before its first pass"
            )
        rows: list[Row] = []
        for chain in _chains(self._passes):
            rows += chain.rows(self._ends)
        for place, row in enumerate(rows):
            if not row.columns:
                raise ValueError(f"sample {place} has no tokens: its attention mask is all zeros")
        self._last_token = not any(row.decoded for row in rows)
        self._tokens = [row.tokens for row in rows]
        self._rows = rows
        return rows


def _chains(passes: Iterable[Pass]) -> list[Chain]:
    """Passes in the order of their first ones.

    Raises:
        ValueError: one that goes on from what was not recorded.
    """
    chains: list[Chain] = []
    for one in passes:
        if one.past == 0:
            chains.append(Chain(one))
            continue
        before = next((chain for chain in reversed(chains) if chain.precedes(one)), None)
        if before is None:
            raise ValueError(
                f"a pass went on after {one.past} tokens whose states were not recorded: a prefix "
                "cache, a recording that began late, or tokens that were taken back"
            )
        before.passes.append(one)
    return chains
