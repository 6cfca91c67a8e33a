"""Texts of known length, all different, and the lengths of real ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

LENGTHS = Path(__file__).with_name("lengths.txt")

WORDS = Path(__file__).with_name("words.txt").read_text().split()
"""Common English ones, each of which is one token of most tokenizers."""


def real_lengths(count: int, *, most: int, seed: int = 0) -> list[int]:
    """Token counts as AlpacaEval's conversations have them, drawn from the committed list.

    Args:
        count: how many.
        most: longer ones are cut to this, as a server's limit would.
        seed: of the draw.
    """
    known = [int(line) for line in LENGTHS.read_text().split()]
    draw = random.Random(seed)
    return [min(one, most) for one in draw.choices(known, k=count)]


def texts_of(lengths: Sequence[int], *, seed: int = 0) -> list[str]:
    """One text for each length: as many common words, each one token of the models used here."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=max(1, one))) for one in lengths]
