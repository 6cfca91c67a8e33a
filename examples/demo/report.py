"""What a person sees of the demo: a row a step, a plot, and summary.json."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training import StepRow

COLUMNS = (
    ("step", 4),
    ("reward", 8),
    ("vanilla", 8),
    ("ω", 5),
    ("head", 5),
    ("verdict", 10),
    ("BT", 7),
    ("GRE", 7),
    ("sent", 9),
    ("seconds", 8),
)


def header() -> str:
    """The table's first line."""
    return "".join(name.rjust(width) for name, width in COLUMNS)


def line(row: StepRow) -> str:
    """One step as a line of the table."""
    cells = (
        str(row.step),
        f"{row.reward:+.3f}",
        f"{row.vanilla_reward:+.3f}",
        f"{row.omega:.2f}",
        str(row.head),
        row.verdict,
        "-" if row.bt is None else f"{row.bt:.4f}",
        "-" if row.gre is None else f"{row.gre:.4f}",
        f"{row.bytes_sent / 2**20:.1f} MiB",
        f"{row.seconds:.1f}",
    )
    return "".join(cell.rjust(width) for cell, (_, width) in zip(cells, COLUMNS, strict=True))


def write_summary(path: Path, rows: list[StepRow], heads: list[Any], seconds: float) -> None:
    """summary.json: the steps, the lineage, the time."""
    lineage = [
        {
            "head": head.head,
            "parent": head.parent,
            "step": head.step,
            "t": head.t,
            "omega": head.omega,
            "verdict": head.verdict,
            "accepted": head.accepted,
            "sha256": head.sha256,
        }
        for head in heads
    ]
    summary = {"steps": [asdict(row) for row in rows], "heads": lineage, "seconds": seconds}
    path.write_text(json.dumps(summary, indent=2) + "\n")


def write_plot(path: Path, rows: list[StepRow]) -> None:
    """Standardised rewards and drift over the steps, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps = [row.step for row in rows]
    figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(8, 6), layout="constrained")
    top.plot(steps, standardised([row.reward for row in rows]), "o-", label="R2M reward")
    top.plot(steps, standardised([row.vanilla_reward for row in rows]), "s--", label="vanilla")
    top.set_ylabel("reward, standardised\nover the steps")
    top.legend()
    measured = [row for row in rows if row.spread_ratio is not None]
    at = [row.step for row in measured]
    bottom.plot(at, [row.spread_ratio for row in measured], "o-", label="spread ratio")
    bottom.plot(at, [row.rank_correlation for row in measured], "s--", label="rank correlation")
    for row in rows:
        if not row.accepted:
            bottom.axvline(row.step, color="tab:red", alpha=0.3)
    bottom.axhline(1.0, color="grey", linewidth=0.8)
    bottom.set_ylabel("candidate against version 0")
    bottom.set_xlabel("step")
    bottom.xaxis.get_major_locator().set_params(integer=True)
    bottom.legend()
    figure.suptitle("R2M demo: rewards, and how far the head has moved")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def standardised(values: list[float]) -> list[float]:
    """Values less their mean, over their standard deviation (or as they are, where it is 0)."""
    mean = statistics.fmean(values)
    deviation = statistics.pstdev(values) or 1.0
    return [(value - mean) / deviation for value in values]
