"""Gold against the distance the policy has gone, and reward against gold over steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
mpl.rcParams |= {
    "svg.hashsalt": "r2m",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

from matplotlib import pyplot as plt  # noqa: E402

from lab.jobs import Runs  # noqa: E402
from lab.outcomes import SMOOTH, smooth  # noqa: E402
from lab.stats import half_of  # noqa: E402

SHOWN = {
    "frozen": ("frozen reward model", "#444444", "-"),
    "paper": ("paper (self-labelled)", "#c1272d", "-"),
    "guarded": ("guarded, no labels", "#e08214", "-"),
    "none-25": ("25 % labelled: head alone", "#7fbf7b", "--"),
    "shuffled-25": ("25 %: another sample's states", "#9970ab", "--"),
    "labelled-25": ("25 %: the policy's states", "#1b7837", "-"),
    "backbone-25": ("25 %: the RM's own states", "#2166ac", "-"),
    "retrained-25": ("25 %: whole RM retrained", "#000000", ":"),
    "labels-25": ("25 %: labels to the policy, no RM", "#000000", "-."),
}
"""Arms of the plots, with what they are called, their colour and their line."""


def save(runs: Runs, folder: Path, suffix: str = "png") -> Sequence[Path]:
    """Both plots; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Path] = []
    for name, draw in (("lab-gold-kl", _gold_against_kl), ("lab-steps", _over_steps)):
        figure = draw(runs)
        path = folder / f"{name}.{suffix}"
        # No date inside, so that the same numbers give the same file.
        figure.savefig(path, dpi=130, metadata={"Date": None} if suffix == "svg" else None)
        plt.close(figure)
        found.append(path)
    return found


def _curve(runs: Runs, arm: str, key: str) -> np.ndarray:
    """(seeds, steps), smoothed."""
    rows = [run[key].mean(1) if run[key].ndim > 1 else run[key] for run in runs[arm].values()]
    return np.stack([smooth(row) for row in rows])


def _gold_against_kl(runs: Runs) -> Any:
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for arm, (label, colour, line) in SHOWN.items():
        if arm not in runs:
            continue
        root = np.sqrt(np.maximum(_curve(runs, arm, "kl").mean(0), 0))
        gold = _curve(runs, arm, "gold")
        half = gold.std(0, ddof=1) * half_of(1.0, len(gold))
        axes.plot(root, gold.mean(0), color=colour, ls=line, lw=1.6, label=label)
        axes.fill_between(root, gold.mean(0) - half, gold.mean(0) + half, color=colour, alpha=0.08)
    axes.set_xlabel("√KL of the policy to where it began (√nats)")
    axes.set_ylabel("gold")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _over_steps(runs: Runs) -> Any:
    arms = [arm for arm in ("frozen", "paper", "labelled-25", "backbone-25") if arm in runs]
    figure, all_axes = plt.subplots(
        1, len(arms), figsize=(2.6 * len(arms), 2.8), sharey=True, layout="constrained"
    )
    for axes, arm in zip(np.atleast_1d(all_axes), arms, strict=True):
        label, colour, _ = SHOWN[arm]
        for key, line in (("reward", ":"), ("gold", "-")):
            curve = np.stack([_standard(row) for row in _curve(runs, arm, key)])
            steps = np.arange(SMOOTH, SMOOTH + curve.shape[1])
            axes.plot(steps, np.median(curve, 0), color=colour, ls=line, label=key)
        axes.set_title(label, fontsize=9)
        axes.set_xlabel("step")
    np.atleast_1d(all_axes)[0].set_ylabel("place between its lowest (0)\nand its highest (1)")
    np.atleast_1d(all_axes)[0].legend(frameon=False, fontsize=8)
    return figure


def _standard(row: np.ndarray) -> np.ndarray:
    """Rewards have no scale that arms share: each curve runs from 0 to 1."""
    return (row - row.min()) / max(float(row.max() - row.min()), 1e-6)
