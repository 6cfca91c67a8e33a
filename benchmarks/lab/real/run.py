"""Every arm on every split, one of each at a time in each process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from lab.arms import Arm
from lab.real import data
from lab.real.arms import ARMS
from lab.real.embed import Embedded, embed
from lab.real.study import Measured, Study

VANILLA = "vanilla"
Found = dict[str, dict[int, Measured]]
"""By arm and split."""
Setting = tuple[str, int, int, str, str, str]
"""Data folder, prompts, pairs, model, head, cache."""


@cache
def material(
    folder: str, prompts: int, pairs: int, model: str, head: str, kept: str, *, workers: int
) -> tuple[Sequence[data.Group], Sequence[data.Pair], Mapping[data.Text, Embedded]]:
    """The groups, the pairs, and every text's embedding, once a process."""
    groups = data.read_groups(Path(folder) / data.GROUPS_FILE, prompts)
    if len(groups) < 3:
        raise SystemExit(f"{len(groups)} prompts have {data.K} short responses: too few to split")
    known = [group.texts[0].prompt for group in groups]
    judged = data.read_pairs(Path(folder) / data.PAIRS_FILE, pairs, but=known)
    texts = [text for group in groups for text in group.texts]
    texts += [text for pair in judged for text in (pair.better, pair.worse)]
    return groups, judged, embed(texts, Path(model), Path(head), Path(kept), workers)


def run_all(setting: Setting, splits: int, workers: int) -> Found:
    """Run them, with a bar."""
    jobs: list[tuple[Arm | None, int]] = [(arm, n) for n in range(splits) for arm in (None, *ARMS)]
    found: Found = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_run, setting, arm, n): (arm, n) for arm, n in jobs}
        for future in track(
            as_completed(futures), "aligning", total=len(jobs), console=Console(stderr=True)
        ):
            arm, n = futures[future]
            found.setdefault(arm.name if arm else VANILLA, {})[n] = future.result()
    return found


def _run(setting: Setting, arm: Arm | None, n: int) -> Measured:
    torch.set_num_threads(1)
    study = _study(setting, n)
    return study.run(arm) if arm else study.vanilla()


@cache
def _study(setting: Setting, n: int) -> Study:
    groups, pairs, found = material(*setting, workers=1)
    return Study(groups, pairs, found, data.split(groups, n), n)
