"""A replay drawn: losses and drift over steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from r2m.errors import Code, Problem
from r2m_service.replay.aligns import Replayed


def draw(steps: Sequence[Replayed], file: Path) -> None:
    """Write a picture; its kind follows from the file's name.

    Raises:
        Problem: storage_failed, where matplotlib is not installed or the file cannot be written.
    """
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        raise Problem(
            Code.STORAGE_FAILED, "--plot needs matplotlib: pip install matplotlib"
        ) from error
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (losses, drift) = plt.subplots(2, 1, sharex=True, figsize=(8, 6), layout="tight")
    for name in dict.fromkeys((one.run, one.branch) for one in steps):
        own = [one for one in steps if (one.run, one.branch) == name]
        x = [one.step for one in own]
        label = "/".join(name)
        losses.plot(x, [one.recorded_loss for one in own], "--", label=f"{label}, recorded")
        losses.plot(x, [one.loss for one in own], label=f"{label}, now")
        drift.plot(x, [one.spread_ratio for one in own], label=f"{label}, spread ratio")
        drift.plot(x, [one.rank_correlation for one in own], ":", label=f"{label}, rank")
    losses.set_ylabel("loss")
    drift.set_ylabel("to the reference")
    drift.set_xlabel("step")
    for axes in (losses, drift):
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        raise Problem(Code.STORAGE_FAILED, f"{file} cannot be written: {error}") from error
    finally:
        plt.close(figure)
