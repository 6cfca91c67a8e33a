"""What a run's controls cost: score and align of a step with none of them, each, and all three.

Through a real server, as `align`: every round and run has texts of its own, so that a score is
computed, and an align finds what its score left in the cache.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench.measure import seconds
from bench.models import save_random_model, smollm2_classifier
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
    """A row a set of controls; on SmolLM2 none and all."""
    made = Table(
        "controls",
        f"Controls of a run (guarded, d = {scale.inner})",
        ("model", "groups × K × S × D_p", "controls", "score s", "align s", "step / without",
         "align / without", "optimizer MB"),
        notes=[
            "A step is score and align; medians over interleaved rounds. What a control adds is "
            "mostly its file: it is hashed, written and flushed, and read at the next align."
        ],
    )  # fmt: skip
    groups, size, tokens, width = scale.align_base
    with tempfile.TemporaryDirectory() as folder:
        model = save_random_model(Path(folder) / "model", scale.shape)
        name = f"{scale.shape['num_hidden_layers']} layers"
        _rows(made, name, model, (groups, size, tokens, width), SETS, scale.rounds, scale, say)
    if scale.smollm2:
        try:
            model = smollm2_classifier(say)
        except Exception as error:
            made.notes.append(f"SmolLM2 was not run: {error}")
        else:
            groups, size, tokens = scale.align_smollm2
            few = {name: SETS[name] for name in ("none of them", "all three")}
            _rows(made, "SmolLM2", model, (groups, size, tokens, 576), few, 2, scale, say)
    made.keys["controls_vs_none"] = made.rows[-1][5]
    return made


def _rows(
    made: Table,
    name: str,
    model: Path,
    shape: tuple[int, int, int, int],
    sets: Mapping[str, list[str]],
    rounds: int,
    scale: Scale,
    say: Callable[[str], None],
) -> None:
    groups, size, tokens, width = shape
    spent: dict[str, list[tuple[float, float]]] = {one: [] for one in sets}
    sizes: dict[str, int] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        ours(model, Path(folder)) as server,
        Client(server.grpc, timeout=600) as client,
    ):
        for place, controls in enumerate(sets.values()):
            client.create_run(
                f"run-{place}",
                policy_hidden_size=width,
                method={"width": scale.inner, "gate": ANY_CANDIDATE, "controls": controls},
            )
        for step in range(1, rounds + 2):
            say(f"{name}: round {step - 1} of {rounds}")
            for place, one in enumerate(sets):
                made_of = groups_of(
                    count=groups,
                    size=size,
                    tokens=tokens,
                    states=tokens,
                    width=width,
                    seed=1000 * place + step,
                )
                took = _step(client, f"run-{place}", step, _labelled(made_of))
                if step > 1:  # the first makes the optimizer's state
                    spent[one].append(took)
        for place, one in enumerate(sets):
            sizes[one] = client.heads(f"run-{place}")[-1].optimizer_bytes or 0
    first, *_ = sets
    for one, took in spent.items():
        pairs = list(zip(took, spent[first], strict=True))
        made.rows.append(
            [
                name,
                f"{groups} × {size} × {tokens} × {width}",
                one,
                statistics.median(score for score, _ in took),
                statistics.median(align for _, align in took),
                statistics.median(sum(ours) / sum(theirs) for ours, theirs in pairs),
                statistics.median(ours[1] / theirs[1] for ours, theirs in pairs),
                sizes[one] / 1e6,
            ]
        )


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
