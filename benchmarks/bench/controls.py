"""What a run's controls cost: score and align of a step with none of them, each, and all three.

Through a real server, as `align`: every round and run has texts of its own, so that a score is
computed, and an align finds what its score left in the cache.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench.measure import seconds
from bench.models import save_random_model
from bench.report import Table
from bench.runs import ANY_CANDIDATE, groups_of
from bench.scale import Scale
from bench.servers import ours
from r2m_client import Client, Group

SETS: dict[str, list[str]] = {
    "none of them": [],
    "`none`": ["none"],
    "`backbone`": ["backbone"],
    "`shuffled`": ["shuffled"],
    "all three": ["shuffled", "backbone", "none"],
}


def table(scale: Scale, say: Callable[[str], None]) -> Table:
    """A row a set of controls."""
    groups, size, tokens, width = scale.align_base
    made = Table(
        "controls",
        f"Controls: {groups} groups of {size}, {tokens} tokens, D_p {width}, d = {scale.inner}",
        ("controls", "score s", "align s", "step / without", "align / without", "optimizer MB"),
        notes=[
            "A step is score and align. Medians over interleaved rounds; a backbone of three "
            "layers, so the shares are far larger than beside a real one, whose pass they share."
        ],
    )
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in SETS}
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = save_random_model(Path(folder) / "model", scale.shape)
        with ours(model, Path(folder)) as server, Client(server.grpc, timeout=600) as client:
            for place, controls in enumerate(SETS.values()):
                client.create_run(
                    f"run-{place}",
                    policy_hidden_size=width,
                    method={"width": scale.inner, "gate": ANY_CANDIDATE, "controls": controls},
                )
            for step in range(1, scale.rounds + 2):
                say(f"round {step - 1} of {scale.rounds}")
                for place, name in enumerate(SETS):
                    sent = _labelled(
                        groups_of(
                            count=groups,
                            size=size,
                            tokens=tokens,
                            states=tokens,
                            width=width,
                            seed=1000 * place + step,
                        )
                    )
                    took = _step(client, f"run-{place}", step, sent)
                    if step > 1:  # the first makes the optimizer's state
                        spent[name].append(took)
            for place, name in enumerate(SETS):
                head = client.heads(f"run-{place}")[-1]
                sizes[name] = head.optimizer_bytes or 0
    first, *_ = SETS
    for name, took in spent.items():
        ratios = [
            ((a + b) / (c + d), b / d) for (a, b), (c, d) in zip(took, spent[first], strict=True)
        ]
        step_ratio, align_ratio = (statistics.median(one) for one in zip(*ratios, strict=True))
        score, align = (statistics.median(one) for one in zip(*took, strict=True))
        made.rows.append([name, score, align, step_ratio, align_ratio, sizes[name] / 1e6])
    made.keys["controls_vs_none"] = made.rows[-1][3]
    return made


def _labelled(groups: Sequence[Group]) -> list[Group]:
    found: list[Group] = []
    for group in groups:
        first, second, *_ = (sample.id for sample in group.samples)
        found.append(replace(group, preferred=(first, second)))
    return found


def _step(client: Client, run: str, step: int, groups: Sequence[Group]) -> tuple[float, float]:
    samples = [sample for group in groups for sample in group.samples]
    score = seconds(lambda: client.score(samples, run=run).raise_for_errors())
    return score, seconds(lambda: _align(client, run, step, groups))


def _align(client: Client, run: str, step: int, groups: Sequence[Group]) -> None:
    answer = client.align(run, step=step, groups=groups)
    if not answer.accepted:
        raise RuntimeError(f"align was {answer.verdict}: {answer.reason}")
