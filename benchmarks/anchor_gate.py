"""What the anchor gate lets through and what it holds up, by simulation.

    python benchmarks/anchor_gate.py [--runs 400]

A run of 20 looks. Version 0 is right on 70 % of all pairs there are; n of them are the anchors.
Every candidate is the live head with `drift` points less of true accuracy, and churn: which pairs
it has right changes a little both ways (a Gaussian latent margin a pair, correlation
sqrt(1 - CHURN²) from head to head). Live moves where the gate says so.

Two gates: ours, and `naive`, which rejects what is significantly worse than live at 5 %.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from r2m_service.domain.anchors import judge_anchors

START, CHURN, LOOKS, MARGIN, ALPHA, PLANNED = 0.70, 0.03, 20, 0.02, 0.05, 20
DRIFTS = (0.0, 0.5, 1.0, 2.0)
PAIRS = (100, 200, 500, 1000)
NORMAL = NormalDist()

Margins = list[float]
Gate = Callable[[Margins, Margins, Margins, int], str]


@dataclass
class Rates:
    """Of many runs with one drift and one number of pairs.

    Attributes:
        wrong_accept: share of runs in which a head truly worse than version 0 by more than the
            margin went live.
        wrong_reject: share of looks at candidates no worse than version 0 that were rejected.
        accepted, undecided: share of all looks.
        loss: points of true accuracy lost by the end, mean.
    """

    wrong_accept: float
    wrong_reject: float
    accepted: float
    undecided: float
    loss: float


def ours(candidate: Margins, reference: Margins, live: Margins, look: int) -> str:
    """The gate of the service."""
    found = judge_anchors(
        candidate, reference, live, margin=MARGIN, alpha=ALPHA, looks=PLANNED, look=look
    )
    return found.verdict


def naive(candidate: Margins, reference: Margins, live: Margins, look: int) -> str:
    """Rejects what is significantly worse than live (one-sided sign test, normal)."""
    better = sum(a > 0 >= b for a, b in zip(candidate, live, strict=True))
    worse = sum(b > 0 >= a for a, b in zip(candidate, live, strict=True))
    spread = math.sqrt(better + worse)
    return "rejected" if spread and (worse - better) / spread > 1.645 else "accepted"


GATES: dict[str, Gate] = {"ours": ours, "naive": naive}


def simulate(gate: Gate, *, pairs: int, drift: float, runs: int, seed: int) -> Rates:
    """Many runs.

    Args:
        drift: points of true accuracy that every candidate has less than live.
    """
    draw = np.random.default_rng(seed)
    wrong_runs = rejected_good = good = accepted = undecided = 0
    loss = 0.0
    for _ in range(runs):
        latent = draw.standard_normal(pairs)
        truth = START
        reference = (latent + NORMAL.inv_cdf(truth)).tolist()
        live, wrong = reference, False
        for look in range(1, LOOKS + 1):
            moved = math.sqrt(1 - CHURN**2) * latent + CHURN * draw.standard_normal(pairs)
            lower = max(truth - drift / 100, 0.01)
            candidate = (moved + NORMAL.inv_cdf(lower)).tolist()
            verdict = gate(candidate, reference, live, look)
            if lower >= START:
                good += 1
                rejected_good += verdict == "rejected"
            undecided += verdict == "undecided"
            if verdict == "accepted":
                accepted += 1
                wrong |= lower < START - MARGIN - 1e-12
                latent, truth, live = moved, lower, candidate
        wrong_runs += wrong
        loss += 100 * (START - truth)
    looks = runs * LOOKS
    return Rates(
        wrong_accept=wrong_runs / runs,
        wrong_reject=rejected_good / good if good else 0.0,
        accepted=accepted / looks,
        undecided=undecided / looks,
        loss=loss / runs,
    )


def main() -> None:
    """Print the table of docs/algorithm.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=400)
    runs = parser.parse_args().runs
    print("| gate | pairs | drift | wrong accept | wrong reject | accepted | undecided | loss |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, gate in GATES.items():
        for pairs in PAIRS:
            for drift in DRIFTS:
                found = simulate(gate, pairs=pairs, drift=drift, runs=runs, seed=pairs)
                reject = f"{found.wrong_reject:.1%}" if drift == 0 else "-"
                print(
                    f"| {name} | {pairs} | {drift:g} | {found.wrong_accept:.1%} | {reject} | "
                    f"{found.accepted:.0%} | {found.undecided:.0%} | {found.loss:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
