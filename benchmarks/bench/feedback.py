"""What hidden states cost on top of a text: none, streamed in bf16 or int8, or split.

The run's head is one that was aligned, so its attention is at work. The trainer's side holds the
states in its own process, on the other core, over loopback.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bench import feedback_load as load
from bench.measure import Rounds, cpu_seconds, interleaved
from bench.models import save_random_model, smollm2_classifier
from bench.report import Table
from bench.runs import first_aligned
from bench.scale import Scale
from bench.servers import Server, ours
from bench.texts import texts_of
from r2m_client import Client

ARMS: Mapping[str, tuple[load.Mode, load.Way]] = {
    "none, stream": ("none", "stream"),
    "none, stream again": ("none", "stream"),
    "bf16, stream": ("bfloat16", "stream"),
    "int8, stream": ("int8", "stream"),
    "none, calls": ("none", "calls"),
    "split, calls": ("split", "calls"),
    "none, score + align": ("none", "step"),
    "bf16, score + align": ("bfloat16", "step"),
    "split, score + align": ("split", "step"),
}


@dataclass(frozen=True, slots=True)
class Found:
    """One arm's numbers: samples a second by round, and what a sample took."""

    rates: Rounds
    sent: dict[str, float]
    received: dict[str, float]
    cpu: dict[str, float]


def table(scale: Scale, say: Callable[[str], None]) -> Table:
    """Throughput, bytes a response, server CPU."""
    made = Table(
        "feedback",
        f"Feedback on top of the text (texts of {scale.states_tokens} tokens, as many states)",
        (
            "model, D_p",
            "feedback",
            "samples/s",
            "against none",
            "bytes sent a response",
            "received",
            "server CPU s a response",
        ),
        notes=[
            "`none` is a run without feedback, asked in the same way: over a stream, in calls of a "
            "group, or as an RL step, score and align of all samples. `split_bytes_per_response` "
            "is both directions of the step, the gate's question included."
        ],
    )
    arms = {name: arm for name, arm in ARMS.items() if not load.missing(arm[0])}
    for name, (mode, _) in ARMS.items():
        if name not in arms:
            made.notes.append(f"{name}: left out, this client cannot do it ({load.missing(mode)}).")
    with tempfile.TemporaryDirectory() as folder:
        model = save_random_model(Path(folder) / "model", scale.shape)
        for width in scale.policy_widths:
            name = f"{scale.shape['num_hidden_layers']} layers, {width}"
            _rows(made, name, _measure(model, width, arms, scale, say))
    if scale.smollm2:
        try:
            model = smollm2_classifier(say)
        except Exception as error:
            made.notes.append(f"SmolLM2 was not run: {error}")
        else:
            small = replace(
                scale, feedback_calls=scale.smollm2_calls, states_tokens=scale.smollm2_tokens
            )
            # A step's bytes do not depend on the model, and its time is the align table's.
            quick = {name: arm for name, arm in arms.items() if arm[1] != "step"}
            _rows(made, "SmolLM2, 576", _measure(model, 576, quick, small, say))
            made.notes.append(
                f"The costs among the keys are those of SmolLM2 ({scale.smollm2_tokens} tokens), "
                f"the bytes those of D_p {scale.policy_widths[-1]}."
            )
    return made


def _measure(
    model: Path,
    width: int,
    arms: Mapping[str, tuple[load.Mode, load.Way]],
    scale: Scale,
    say: Callable[[str], None],
) -> Found:
    found = Found(Rounds(), {}, {}, {})
    where = f"{model.name}, D_p {width}"
    say(f"{where}: starting")
    with (
        tempfile.TemporaryDirectory() as folder,
        ours(model, Path(folder)) as server,
    ):
        with Client(server.grpc, timeout=300) as client:
            # Named by the width: the tests' tables share a server.
            for run in (f"none-{width}", f"none-step-{width}"):
                client.create_run(run, feedback="none")
            for run in (f"policy-{width}", f"policy-step-{width}"):
                first_aligned(client, run, width=width, inner=scale.inner)
            # What is sent for the gate belongs to a step; a random batch need not pass it.
            gate = {"spread_min": 0.5, "spread_max": 2.0, "rank_correlation_min": 0.8}
            client.update_run(f"policy-step-{width}", {"gate": {**gate, "freeze_after": None}})
        seeds = itertools.count(100 * width)

        def arm(name: str) -> Callable[[], float]:
            mode, way = arms[name]
            run = "none" if mode == "none" else "policy"
            run += f"-step-{width}" if way == "step" else f"-{width}"

            def once() -> float:
                # Never seen before: the cache, which split and align need, spares nobody any work.
                texts = texts_of([scale.states_tokens] * scale.feedback_calls, seed=next(seeds))
                job = load.Job(server.grpc, run, mode, way, texts, scale.states_tokens, width)
                return _once(name, job, server, found)

            return once

        rates = interleaved(
            {name: arm(name) for name in arms},
            rounds=max(1, scale.rounds - 1),
            say=lambda what: say(f"{where}: {what}"),
        )
    found.rates.values.update(rates.values)
    return found


def _once(name: str, job: load.Job, server: Server, found: Found) -> float:
    before = cpu_seconds(server.pid)
    outcome = load.run(job)
    count = len(job.texts)
    found.cpu[name] = (cpu_seconds(server.pid) - before) / count
    found.sent[name] = outcome.sent / count
    found.received[name] = outcome.received / count
    return count / outcome.seconds


def _rows(made: Table, name: str, found: Found) -> None:
    """The rows, and the keys: those of the last model stand."""
    rates = found.rates
    for arm in rates.values:
        base = "none, " + arm.partition(", ")[2].removesuffix(" again")
        made.rows.append(
            [
                name,
                arm,
                rates.median(arm),
                rates.ratio(arm, base),
                found.sent[arm],
                found.received[arm],
                found.cpu[arm],
            ]
        )
    made.keys["streamed_cost"] = 1.0 - rates.ratio("bf16, stream", "none, stream")
    made.keys["split_cost"] = 1.0 - rates.ratio("split, calls", "none, calls")
    if "int8, stream" in rates.values:
        made.keys["int8_cost"] = 1.0 - rates.ratio("int8, stream", "none, stream")
    for mode in ("streamed", "split"):
        if "none, score + align" not in rates.values:
            continue  # what another model gave stands
        arm = f"{'bf16' if mode == 'streamed' else mode}, score + align"
        made.keys[f"{mode}_bytes_per_response"] = round(found.sent[arm] + found.received[arm])
        made.keys[f"{mode}_step_cost"] = 1.0 - rates.ratio(arm, "none, score + align")
    made.keys["feedback_aa_spread"] = rates.spread("none, stream", "none, stream again")
