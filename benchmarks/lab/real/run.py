"""Every arm on every split, one of each at a time in each process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lab.arms import Arm
from lab.processes import each, processes
from lab.real import data
from lab.real.arms import ARMS, GROUPS_A_STEP, STEPS, SWEPT
from lab.real.embed import Embedded, embed
from lab.real.study import Measured, Study


class TooLittleError(RuntimeError):
    """The data does not hold enough."""


VANILLA = "vanilla"
Found = dict[str, dict[int, Measured]]
"""By arm and split."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is run.

    Attributes:
        folder: of the data.
        prompts, pairs: how many.
        model, head: of the reward model; no head: the model has one.
        kept: where embeddings are kept.
        steps, groups_a_step: of each arm's aligns.
    """

    folder: Path
    prompts: int
    pairs: int
    model: Path
    head: Path | None
    kept: Path
    steps: int = STEPS
    groups_a_step: int = GROUPS_A_STEP


@dataclass(frozen=True, slots=True)
class Material:
    """The groups, the pairs, and every text's embedding."""

    groups: Sequence[data.Group]
    pairs: Sequence[data.Pair]
    found: Mapping[data.Text, Embedded]


@cache
def material(setting: Setting, workers: int = 1) -> Material:
    """Read and embed, once a process.

    Raises:
        TooLittleError: the data has too few prompts to split.
    """
    groups = data.read_groups(setting.folder / data.GROUPS_FILE, setting.prompts)
    if len(groups) < 3 * setting.groups_a_step:
        raise TooLittleError(
            f"{len(groups)} prompts have {data.K} short responses each: a third of them is aligned "
            f"on, {setting.groups_a_step} a step, so {3 * setting.groups_a_step} are needed"
        )
    known = [group.texts[0].prompt for group in groups]
    judged = data.read_pairs(setting.folder / data.PAIRS_FILE, setting.pairs, but=known)
    if not judged:
        raise TooLittleError(
            "no pair of people's votes is left that has a majority and a prompt of its own"
        )
    texts = [text for group in groups for text in group.texts]
    texts += [text for pair in judged for text in (pair.better, pair.worse)]
    return Material(
        groups, judged, embed(texts, setting.model, setting.head, setting.kept, workers)
    )


def run_all(setting: Setting, splits: int, workers: int) -> Found:
    """Run them, with a bar."""
    every = {VANILLA: None, **{arm.name: arm for arm in (*ARMS, *SWEPT)}}
    work = [(name, n) for n in range(splits) for name in every]
    with processes(workers) as pool:
        calls = {f"{name} {n}": (setting, every[name], n) for name, n in work}
        measured = each(pool, "aligning", _run, calls)
    found: Found = {}
    for (name, n), one in zip(work, measured, strict=True):
        found.setdefault(name, {})[n] = one
    return found


def _run(setting: Setting, arm: Arm | None, n: int) -> Measured:
    study = _study(setting, n)
    return study.run(arm) if arm else study.vanilla()


@cache
def _study(setting: Setting, n: int) -> Study:
    of = material(setting)
    split = data.split(of.groups, n)
    study = Study(of.groups, of.pairs, of.found, split, n)
    study.steps, study.groups_a_step = setting.steps, setting.groups_a_step
    return study
