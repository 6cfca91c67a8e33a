"""align against scoring the same batch once, and against a full update of the reward model.

Through a real server over gRPC, with all that belongs to it: states on the wire, the gate's drift
pass, the new head's file and the optimizer's, flushed to disk. Every round has texts of its own, so
that its score is computed; its align then finds the embeddings in the cache, as in an RL step.
"""

from __future__ import annotations

import statistics
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import MIB, peak, reset_peak, resident, seconds
from bench.models import save_random_model, smollm2_classifier
from bench.report import Cell, Table
from bench.runs import first_aligned, groups_of
from bench.scale import Scale
from bench.servers import Server, full_update, ours
from r2m_client import Client, Group


@dataclass(frozen=True, slots=True)
class Shape:
    """A batch: groups of K samples, S tokens and as many states, D_p wide."""

    groups: int
    size: int
    tokens: int
    width: int

    @property
    def name(self) -> str:
        """As a row is called."""
        return f"{self.groups} × {self.size} × {self.tokens} × {self.width}"


@dataclass(slots=True)
class Found:
    """Of each round: seconds, and bytes that the server grew by at its most."""

    score: list[float]
    align: list[float]
    score_bytes: list[int]
    align_bytes: list[int]

    @property
    def ratio(self) -> float:
        """Align against score, median over rounds."""
        return statistics.median(a / b for a, b in zip(self.align, self.score, strict=True))


def table(scale: Scale, say: Callable[[str], None]) -> Table:
    """Growth on the small model, the comparison on SmolLM2."""
    made = Table(
        "align",
        f"align against scoring the same batch (guarded, d = {scale.inner})",
        (
            "model",
            "groups × K × S × D_p",
            "score s",
            "align s",
            "align / score",
            "full update s",
            "align / full update",
            "score peak MiB",
            "align peak MiB",
            "full update peak MiB",
        ),
        notes=[
            "Score is the batch's first, through the backbone; align finds its embeddings in the "
            "cache. Peaks are what the process grew by. The full update is one AdamW step of the "
            "whole reward model on the same texts and the same loss, its optimizer's state there "
            "from a step before."
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        model = save_random_model(Path(folder) / "model", scale.shape)
        name = f"{scale.shape['num_hidden_layers']} layers"
        _model(made, name, model, _grown(scale), scale, scale.rounds - 1 or 1, say)
    if scale.smollm2:
        try:
            model = smollm2_classifier(say)
        except Exception as error:
            made.notes.append(f"SmolLM2 was not run: {error}")
        else:
            groups, size, tokens = scale.align_smollm2
            _model(made, "SmolLM2", model, [Shape(groups, size, tokens, 576)], scale, 1, say)
            made.notes.append("The keys are those of SmolLM2.")
    return made


def _grown(scale: Scale) -> list[Shape]:
    """The base, and all that differ from it in one number."""
    base = dict(zip(("groups", "K", "S", "D"), scale.align_base, strict=True))
    found = [base]
    for name, values in scale.align_grown.items():
        found += [{**base, name: value} for value in values]
    return [Shape(*one.values()) for one in found]


def _model(
    made: Table,
    name: str,
    model: Path,
    shapes: Sequence[Shape],
    scale: Scale,
    rounds: int,
    say: Callable[[str], None],
) -> None:
    """A row a shape; the first one, and the keys, with the full update."""
    rows: list[tuple[Shape, Found]] = []
    with tempfile.TemporaryDirectory() as folder, ours(model, Path(folder)) as server:
        for shape in shapes:
            say(f"{name}: {shape.name}")
            rows.append((shape, _measure(server, shape, scale.inner, rounds, say)))
    for place, (shape, found) in enumerate(rows):
        score, align = statistics.median(found.score), statistics.median(found.align)
        full: Sequence[Cell] = (None, None, None)
        if place == 0:
            say(f"{name}: a full update")
            spent, grown = _full(model, shape)
            full = (spent, align / spent, grown / MIB)
            made.keys["align_vs_score"] = found.ratio
            made.keys["align_vs_full_update"] = align / spent
            made.keys["align_memory_vs_full_update"] = max(found.align_bytes) / max(grown, 1)
        made.rows.append(
            [
                name,
                shape.name,
                score,
                align,
                found.ratio,
                full[0],
                full[1],
                max(found.score_bytes) / MIB,
                max(found.align_bytes) / MIB,
                full[2],
            ]
        )


def _measure(
    server: Server, shape: Shape, inner: int, rounds: int, say: Callable[[str], None]
) -> Found:
    found = Found([], [], [], [])
    run = shape.name.replace(" × ", "-")
    with Client(server.grpc, timeout=600) as client:
        first_aligned(client, run, width=shape.width, inner=inner)
        for step in range(2, rounds + 2):
            groups = _groups(shape, seed=step)
            samples = [sample for group in groups for sample in group.samples]
            say(f"{shape.name}: score, round {step - 1} of {rounds}")
            spent, grown = _watched(
                server, lambda s=samples: client.score(s, run=run).raise_for_errors()
            )
            found.score.append(spent)
            found.score_bytes.append(grown)
            say(f"{shape.name}: align, round {step - 1} of {rounds}")
            spent, grown = _watched(server, lambda g=groups, n=step: _align(client, run, n, g))
            found.align.append(spent)
            found.align_bytes.append(grown)
    return found


def _align(client: Client, run: str, step: int, groups: Sequence[Group]) -> None:
    counts = client.align(run, step=step, groups=groups).groups
    if counts.used != len(groups):
        raise RuntimeError(f"align used {counts.used} of {len(groups)} groups: {counts}")


def _groups(shape: Shape, *, seed: int) -> list[Group]:
    return groups_of(
        count=shape.groups,
        size=shape.size,
        tokens=shape.tokens,
        states=shape.tokens,
        width=shape.width,
        # Texts of this row's own: another row's would be found in the cache.
        seed=seed + 100 * (zlib.crc32(shape.name.encode()) % 10_000),
    )


def _watched(server: Server, work: Callable[[], object]) -> tuple[float, int]:
    """Seconds of a call, and what the server grew by."""
    reset_peak(server.pid)
    before = resident(server.pid)
    spent = seconds(work)
    return spent, peak(server.pid) - before


def _full(model: Path, shape: Shape) -> tuple[float, int]:
    texts = [
        [sample.response or "" for sample in group.samples] for group in _groups(shape, seed=2)
    ]
    with full_update(model) as step:
        step([[text[:20] for text in texts[0]]])  # makes the optimizer's state
        return step(texts)
