"""Vanilla scoring: the service against the bare model, a plain FastAPI server, mosec, LitServe.

All servers are up at the same time on one core, each with the same model folder and one compute
thread, and take turns; the load generator has the other core. Texts are all different, and our
cache of embeddings is off, so that nobody is spared work by having seen a text before.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import load
from bench.machine import version
from bench.measure import Rounds, interleaved
from bench.models import save_random_model, smollm2_classifier
from bench.report import Cell, Table
from bench.scale import Scale
from bench.servers import PEERS, Server, bare_model, ours, peer
from bench.texts import real_lengths, texts_of

LIMITS = {"bare model, one by one": 1, "bare model, windows of 32": 32}
AGAIN = "r2m again"
AGREE = 1e-3
"""Of the rewards' spread: peers that answer otherwise do other work."""

Bare = Callable[[Sequence[str], int], float]


@dataclass(frozen=True, slots=True)
class Load:
    """A column: how many callers with how many samples each."""

    callers: int
    samples: int

    @property
    def name(self) -> str:
        """As a column is called."""
        return f"{self.callers} × {self.samples}"


def table(scale: Scale, say: Callable[[str], None]) -> Table:
    """Samples a second of every server under every load."""
    loads = [Load(callers, 1) for callers in scale.callers]
    loads.append(Load(scale.batch_callers, scale.batch))
    made = Table(
        "throughput",
        "Vanilla scoring, samples a second (columns: callers × samples a call)",
        ("texts", "server", *(one.name for one in loads)),
        notes=[
            "The bare model scores token ids that are ready, with no server around it; the limit "
            "is the better of its two rows. Rewards of all servers were compared before. "
            "infinity was not run: it needs an environment of its own (transformers < 5)."
        ],
    )
    kinds = {
        "short": (texts_of([scale.short_tokens] * scale.short_calls, seed=1)),
        "real": texts_of(real_lengths(scale.real_calls, most=scale.most_tokens), seed=2),
    }
    with tempfile.TemporaryDirectory() as folder, _everybody(scale, Path(folder), say) as found:
        servers, bare = found
        spread = 0.0
        for kind, texts in kinds.items():
            _require_same(servers, texts[:4])
            columns = {
                one.name: _column(kind, one, servers, bare, texts, scale, say) for one in loads
            }
            headline = columns[Load(scale.headline, 1).name]
            _fill(made, kind, servers, columns)
            _keys(made, kind, headline)
            spread = max(spread, headline.spread("r2m", AGAIN))
        made.keys["aa_spread"] = spread
        made.keys["server_vs_limit"] = min(
            float(made.keys[f"server_vs_limit_{kind}"] or 0.0) for kind in kinds
        )
        made.keys["server_vs_best_peer"] = made.keys["server_vs_best_peer_real"]
        made.keys["best_peer"] = made.keys["best_peer_real"]
    if scale.smollm2:
        _smollm2(made, scale, len(loads), say)
    return made


@contextlib.contextmanager
def _everybody(
    scale: Scale, folder: Path, say: Callable[[str], None]
) -> Generator[tuple[list[Server], Bare], None, None]:
    say("starting the servers")
    model = save_random_model(folder / "model", scale.shape)
    with contextlib.ExitStack() as stack:
        bare = stack.enter_context(bare_model(model))
        servers = [stack.enter_context(ours(model, folder, "--cache-bytes", "0"))]
        for name in PEERS:
            if name in ("mosec", "litserve") and version(name) is None:
                say(f"{name} is not installed: pip install -e '.[bench]'")
                continue
            servers.append(stack.enter_context(peer(name, model, folder)))
        yield servers, bare


def _column(
    kind: str,
    wanted: Load,
    servers: Sequence[Server],
    bare: Bare,
    texts: Sequence[str],
    scale: Scale,
    say: Callable[[str], None],
) -> Rounds:
    """Every server under one load, and at the headline also the bare model and the A/A control."""
    headline = wanted == Load(scale.headline, 1)
    if wanted.callers == 1:
        texts = texts[: max(1, len(texts) // 4)]  # one caller waits for each: no need for as many
    arms: dict[str, Callable[[], float]] = {
        server.name: lambda server=server: _rate(server, texts, wanted) for server in servers
    }
    if headline:
        arms[AGAIN] = lambda: _rate(servers[0], texts, wanted)
        for name, window in LIMITS.items():
            arms[name] = lambda window=window: len(texts) / bare(texts, window)
    # The plain server takes every call by itself, whatever waits: one round shows it.
    rounds = scale.rounds if headline else 1
    return interleaved(arms, rounds=rounds, say=lambda what: say(f"{kind} {wanted.name}, {what}"))


def _rate(server: Server, texts: Sequence[str], wanted: Load) -> float:
    """Samples a second."""
    size = wanted.samples
    bodies = [server.body(texts[at : at + size]) for at in range(0, len(texts), size)]
    outcome = load.run(load.Job(server.port, server.path, bodies, callers=wanted.callers))
    if outcome.answered != len(bodies):
        raise RuntimeError(f"{server.name} failed: {outcome.statuses} {outcome.first_failure}")
    return len(texts) / outcome.seconds


def _require_same(servers: Sequence[Server], texts: Sequence[str]) -> None:
    found = {server.name: server.ask(texts) for server in servers}
    first = found[servers[0].name]
    spread = max(first) - min(first)
    for name, rewards in found.items():
        if any(abs(a - b) > AGREE * spread for a, b in zip(first, rewards, strict=True)):
            raise RuntimeError(f"{name} answers {rewards}, the service {first}")


def _fill(made: Table, kind: str, servers: Sequence[Server], columns: dict[str, Rounds]) -> None:
    names = [server.name for server in servers]
    for name in (*names, AGAIN, *LIMITS):
        cells: list[Cell] = [
            one.median(name) if name in one.values else None for one in columns.values()
        ]
        made.rows.append([kind, name, *cells])


def _keys(made: Table, kind: str, headline: Rounds) -> None:
    limit = max(LIMITS, key=headline.median)
    made.keys[f"server_vs_limit_{kind}"] = headline.ratio("r2m", limit)
    peers = [name for name in PEERS if name in headline.values]
    best = max(peers, key=headline.median)
    made.keys[f"best_peer_{kind}"] = best
    made.keys[f"server_vs_best_peer_{kind}"] = headline.ratio("r2m", best)
    made.keys[f"server_vs_plain_fastapi_{kind}"] = headline.ratio("r2m", "plain fastapi")


def _smollm2(made: Table, scale: Scale, columns: int, say: Callable[[str], None]) -> None:
    """SmolLM2 once: the service, the plain server and the bare model at the headline's callers."""
    try:
        model = smollm2_classifier(say)
    except Exception as error:
        made.notes.append(f"SmolLM2 was not run: {error}")
        return
    texts = texts_of(real_lengths(scale.smollm2_calls, most=scale.most_tokens, seed=1), seed=3)
    wanted = Load(scale.headline, 1)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        where = Path(folder)
        bare = stack.enter_context(bare_model(model))
        server = stack.enter_context(ours(model, where, "--cache-bytes", "0"))
        plain = stack.enter_context(peer("plain fastapi", model, where))
        _require_same([server, plain], texts[:2])
        found = interleaved(
            {
                "r2m": lambda: _rate(server, texts, wanted),
                "plain fastapi": lambda: _rate(plain, texts, wanted),
                **{
                    name: lambda window=window: len(texts) / bare(texts, window)
                    for name, window in LIMITS.items()
                },
            },
            rounds=1,
            say=lambda what: say(f"SmolLM2, {what}"),
        )
    at = [one.callers for one in [Load(c, 1) for c in scale.callers]].index(scale.headline)
    for name in found.values:
        cells: list[Cell] = [None] * columns
        cells[at] = found.median(name)
        made.rows.append(["real, SmolLM2", name, *cells])
    limit = max(LIMITS, key=found.median)
    made.keys["server_vs_limit_smollm2"] = found.ratio("r2m", limit)
    made.keys["server_vs_plain_fastapi_smollm2"] = found.ratio("r2m", "plain fastapi")
