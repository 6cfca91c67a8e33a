"""Each arm with labels at its best learning rate, which is chosen on seeds of its own.

One rate for all is the service's, but an arm may be worse only because that rate does not suit it.
So each is tried at four, on seeds that no other table has; the best there is then run on the seeds
of the other tables.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.report import Table
from lab.arms import RATES, Arm, at_rate
from lab.jobs import Job
from lab.outcomes import Outcome, Outcomes
from lab.tables import cell

FIRST_SEED = 100
SEEDS, TUNED_SEEDS = 5, 6


def best(found: Outcomes) -> Iterator[tuple[Arm, float, float]]:
    """Each arm with its own rate and the one whose mean final gold is highest."""
    for base, rates in RATES:
        finals = {rate: [one.final for one in _at(found, base, rate).values()] for rate in rates}
        yield base, rates[1], max(rates, key=lambda rate: sum(finals[rate]) / len(finals[rate]))


def plan(found: Outcomes, seeds: int, steps: int, first: int = 0) -> Iterator[Job]:
    """Runs of the arms whose best rate is not their own, on the seeds of the other tables."""
    for seed in range(first, first + seeds):
        for base, own, rate in best(found):
            if rate != own:
                yield Job(
                    at_rate(base, rate, _tuned(base), f"{base.name}, lr {rate:g}"), seed, steps
                )


def with_own(found: Outcomes, seeds: int, first: int = 0) -> Outcomes:
    """Those at their best rate, where that is the arm's own: nothing had to be run again."""
    kept = {
        _tuned(base): {seed: found[base.name][seed] for seed in range(first, first + seeds)}
        for base, own, rate in best(found)
        if rate == own
    }
    return {**found, **kept}


def rates_table(found: Outcomes) -> Table:
    """Final gold at each rate, the rate that is chosen, and what it comes to elsewhere."""
    table = Table(
        "rates",
        "Learning rates, chosen on other seeds: final gold",
        ["arm", "a third", "its own", "3 ×", "10 ×", "chosen", "then, on the other seeds"],
    )
    tried, then, edges = set[int](), set[int](), 0
    for base, own, rate in best(found):
        tried |= _at(found, base, own).keys()
        then |= found[_tuned(base)].keys()
        rates = next(rates for arm, rates in RATES if arm is base)
        edges += rate in (rates[0], rates[-1])
        table.rows.append(
            [
                f"`{base.name}`",
                *(cell([one.final for one in _at(found, base, at).values()]) for at in rates),
                f"{rate:g}",
                cell([one.final for one in found[_tuned(base)].values()]),
            ]
        )
    table.notes.append(
        f"Chosen by the mean of {len(tried)} seeds from {min(tried)} on, which are in no other "
        f"table; their own: heads 6.25e-4 = 0.04/√(64·64), retraining 1e-4. Then {len(then)} of "
        f"the other tables' seeds. {edges} of {len(table.rows)} arms chose the first or the last "
        "of their four: what lies beyond was not tried."
    )
    return table


def _at(found: Outcomes, base: Arm, rate: float) -> dict[int, Outcome]:
    return dict(found[f"{base.name}-lr{rate:g}"])


def _tuned(base: Arm) -> str:
    return f"{base.name}-tuned"
