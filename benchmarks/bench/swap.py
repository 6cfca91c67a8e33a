"""Heads change while requests are scored: failures, and p99 against no changes.

The arms get the same arrivals (open loop, Poisson, 70 % of capacity), scored by the head behind an
alias. `swaps` moves the alias a few times a second; `rollbacks` moves the run's live head, and the
alias with it, each of which opens a branch; `aligns` makes a new head every second, files and all.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import load
from bench.measure import Rounds, interleaved, percentile
from bench.models import save_random_model
from bench.report import Table
from bench.runs import ANY_CANDIDATE, groups_of
from bench.scale import Scale
from bench.servers import Server, our_body, ours
from bench.texts import texts_of
from r2m_client import Client, Group

RUN = "swap"
ALIAS = "champion"
HEADS = 4
SHARE = 0.7
ALIGN_EVERY = 1.0


@dataclass(slots=True)
class Counts:
    """Of one arm, over all rounds."""

    calls: int = 0
    failed: int = 0
    moves: int = 0
    p50: list[float] = field(default_factory=list[float])


def table(scale: Scale, say: Callable[[str], None]) -> Table:
    """Calls, failures and latency with a head that stands, and with one that moves."""
    made = Table(
        "swap",
        "Head swap under load (one text a call, a run that attends to the backbone's states)",
        ("arm", "calls", "failed", "heads moved", "p50 ms", "p99 ms", "p99 against no swaps"),
        notes=["Medians of the rounds; failures and moves are summed."],
    )
    counts = {arm: Counts() for arm in ("none", "none again", "swaps", "rollbacks", "aligns")}
    with tempfile.TemporaryDirectory() as folder:
        model = save_random_model(Path(folder) / "model", scale.shape)
        flags = ("--cache-bytes", "0", "--keep-optimizers", "64")
        with (
            ours(model, Path(folder), *flags) as server,
            Client(server.grpc, timeout=300) as client,
        ):
            say("making heads")
            _make_heads(client, scale)
            scored = replace(server, path=f"/v1/runs/{RUN}/score", body=_body)
            rate = SHARE * _capacity(scored, scale)
            job = load.Job(
                scored.port, scored.path, _bodies(scored, scale.swap_calls, scale), rate=rate
            )
            found = interleaved(
                {
                    arm: lambda arm=arm: _once(arm, job, client, scale, counts[arm])
                    for arm in counts
                },
                rounds=max(1, scale.rounds - 1),
                say=say,
            )
    for arm, count in counts.items():
        p50, p99 = sorted(count.p50)[len(count.p50) // 2] * 1e3, found.median(arm) * 1e3
        row = [arm, count.calls, count.failed, count.moves, p50, p99, _against_none(found, arm)]
        made.rows.append(row)
    made.keys["swap_failed"] = counts["swaps"].failed
    made.keys["swap_p99_ratio"] = _against_none(found, "swaps")
    made.keys["swap_aa_spread"] = found.spread("none", "none again")
    made.keys["rollback_p99_ratio"] = _against_none(found, "rollbacks")
    made.keys["align_p99_ratio"] = _against_none(found, "aligns")
    return made


def _against_none(found: Rounds, arm: str) -> float:
    """p99 of an arm against the mean of the two controls, median of the rounds."""
    control = [
        (a + b) / 2 for a, b in zip(found.values["none"], found.values["none again"], strict=True)
    ]
    both = Rounds({"arm": found.values[arm], "control": control})
    return both.ratio("arm", "control")


def _once(arm: str, job: load.Job, client: Client, scale: Scale, count: Counts) -> float:
    """One arm's p99, in seconds."""
    if arm == "swaps":
        moving = _every(scale.swap_every, _swap(client))
    elif arm == "rollbacks":
        moving = _every(scale.swap_every, _roll_back(client))
    elif arm == "aligns":
        moving = _every(min(ALIGN_EVERY, 4 * scale.swap_every), _align(client, scale))
    else:
        moving = _every(None, lambda: None)
    with moving as moves:
        outcome = load.run(job)
    count.calls += outcome.calls
    count.failed += outcome.calls - outcome.answered
    count.moves += moves[0]
    count.p50.append(percentile(outcome.latencies, 0.5))
    return percentile(outcome.latencies, 0.99)


@contextmanager
def _every(seconds: float | None, move: Callable[[], object]) -> Generator[list[int], None, None]:
    """Do something every so often in a thread; yields a list that holds how often it was done.

    What it raises is raised when the block is left.
    """
    moves, over, failures = [0], threading.Event(), list[BaseException]()

    def go() -> None:
        while seconds is not None and not over.wait(seconds):
            try:
                move()
            except Exception as error:
                failures.append(error)
                return
            moves[0] += 1

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield moves
    finally:
        over.set()
        thread.join()
    if failures:
        raise failures[0]


def _swap(client: Client) -> Callable[[], object]:
    heads = itertools.cycle(range(1, HEADS + 1))
    return lambda: client.set_alias(RUN, ALIAS, next(heads))


def _roll_back(client: Client) -> Callable[[], object]:
    heads = itertools.cycle(range(1, HEADS + 1))

    def go() -> None:
        head = next(heads)
        client.rollback(RUN, to=head)
        client.set_alias(RUN, ALIAS, head)

    return go


def _align(client: Client, scale: Scale) -> Callable[[], object]:
    """A new head: on the branch that is current, at the step that it expects."""

    def align() -> None:
        step = client.run(RUN).next_step
        made = client.align(RUN, step=step, groups=_groups(scale, seed=step))
        client.set_alias(RUN, ALIAS, made.head)

    return align


def _make_heads(client: Client, scale: Scale) -> None:
    client.create_run(
        RUN, feedback="backbone", method={"width": scale.inner, "gate": ANY_CANDIDATE}
    )
    for step in range(1, HEADS + 1):
        result = client.align(RUN, step=step, groups=_groups(scale, seed=step))
        if result.head != step:
            raise RuntimeError(f"update {step} was not accepted: {result.verdict}")
    client.set_alias(RUN, ALIAS, HEADS)


def _groups(scale: Scale, *, seed: int) -> list[Group]:
    return groups_of(count=2, size=3, tokens=scale.short_tokens, states=0, width=0, seed=seed)


def _capacity(server: Server, scale: Scale) -> float:
    bodies = _bodies(server, scale.short_calls, scale)
    outcome = load.run(load.Job(server.port, server.path, bodies, callers=scale.headline))
    return len(bodies) / outcome.seconds


def _body(texts: Sequence[str]) -> str:
    return json.dumps({**json.loads(our_body(texts)), "head": ALIAS})


def _bodies(server: Server, count: int, scale: Scale) -> list[str]:
    return [server.body([text]) for text in texts_of([scale.short_tokens] * count, seed=8)]
