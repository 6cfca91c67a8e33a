"""Preferences of people and of GPT-4, from the folder R2M_TEST_DATA names; and their splits."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "R2M_TEST_DATA"
GROUPS_FILE = "alpaca_eval_groups.jsonl.gz"
PAIRS_FILE = "pandalm_human_pairs.jsonl.gz"
K = 4
"""Responses kept of a prompt."""
LONGEST = 900
"""Characters of prompt and response: a pass over longer ones takes a CPU too long."""


class NoDataError(RuntimeError):
    """The data is not there; the message says where it was looked for."""


@dataclass(frozen=True, slots=True)
class Text:
    """One response."""

    prompt: str
    response: str


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt's responses.

    Attributes:
        gold: GPT-4's preference for each over a fixed response, 0 … 1.
    """

    texts: Sequence[Text]
    gold: Sequence[float]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to a prompt, of which most of three people liked the first better."""

    better: Text
    worse: Text


@dataclass(frozen=True, slots=True)
class Split:
    """Places of groups: no prompt is in two parts.

    Attributes:
        fit: the reward model's own head is fitted on these.
        align: what an align learns from.
        held_out: what accuracy is measured on.
    """

    fit: Sequence[int]
    align: Sequence[int]
    held_out: Sequence[int]


def folder() -> Path:
    """The data's folder.

    Raises:
        NoDataError: it is not named, or lacks a file.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        raise NoDataError(
            f"real text needs the folder with {GROUPS_FILE} and {PAIRS_FILE}: name it in {VARIABLE}"
        )
    found = Path(named)
    for name in (GROUPS_FILE, PAIRS_FILE):
        if not (found / name).is_file():
            raise NoDataError(f"{VARIABLE} names a folder without {name}")
    return found


def read_groups(path: Path, count: int) -> list[Group]:
    """The first `count` prompts (in an order of chance) with K short responses that differ."""
    rows = list(_rows(path))
    random.Random(0).shuffle(rows)
    found: list[Group] = []
    for row in rows:
        prompt = row["prompt"]
        short = [
            one for one in row["responses"]
            if one["text"].strip() and len(prompt) + len(one["text"]) <= LONGEST
        ]  # fmt: skip
        kept = random.Random(len(found)).sample(short, min(K, len(short)))
        gold = [float(one["gold"]) for one in kept]
        if len(kept) == K and max(gold) > min(gold):
            found.append(Group([Text(prompt, one["text"]) for one in kept], gold))
        if len(found) == count:
            break
    return found


def read_pairs(path: Path, count: int, *, but: Sequence[str] = ()) -> list[Pair]:
    """Short pairs with a majority.

    Args:
        but: prompts that are left out, since the groups have them.
    """
    found: list[Pair] = []
    for row in _rows(path):
        if not (isinstance(row["a"], str) and isinstance(row["b"], str)):
            continue  # the data holds a few that are no text
        (vote, votes), *_ = Counter(row["votes"]).most_common()
        longest = len(row["prompt"]) + max(len(row["a"]), len(row["b"]))
        plain = row["a"].strip() and row["b"].strip() and row["a"] != row["b"]
        if vote == 0 or votes < 2 or longest > LONGEST or not plain or row["prompt"] in but:
            continue
        a, b = Text(row["prompt"], row["a"]), Text(row["prompt"], row["b"])
        found.append(Pair(a, b) if vote == 1 else Pair(b, a))
        if len(found) == count:
            break
    return found


def split(groups: Sequence[Group], seed: int) -> Split:
    """Thirds by prompt."""
    places: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        places.setdefault(group.texts[0].prompt, []).append(place)
    prompts = sorted(places)
    random.Random(seed).shuffle(prompts)
    third = len(prompts) // 3
    parts = prompts[:third], prompts[third : 2 * third], prompts[2 * third :]
    return Split(*([place for one in part for place in places[one]] for part in parts))


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)
