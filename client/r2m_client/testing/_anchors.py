"""Anchor sets, and what they say of a candidate. The verdict itself is the test's."""

from __future__ import annotations

import hashlib
import json
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from r2m.errors import Code, Problem
from r2m.statistics import paired_bounds, wilson
from r2m_client.testing._answers import anchors_out
from r2m_client.testing._check import checked, require_finite
from r2m_client.testing._form import (
    MAX_ID,
    MAX_REASON,
    check_samples,
    check_text,
    invalid,
    must,
    require_distinct,
)
from r2m_client.testing._state import REFERENCE, AnchorSet
from r2m_client.testing._texts import counted, query_of, text_of
from r2m_client.testing._world import now

if TYPE_CHECKING:
    from r2m_client._samples import Sample
    from r2m_client.testing._backbone import Backbone
    from r2m_client.testing._state import Branch, Run
    from r2m_client.testing._world import World

SIDES = ("chosen", "rejected")


def put_anchors(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """Make these pairs the ones that judge; the same set again changes nothing.

    Raises:
        Problem: invalid_request, duplicate_id, text_*, unknown_run, run_archived,
            backbone_mismatch.
    """
    check_text("reason", request.get("reason"), high=MAX_REASON)
    pairs: list[dict[str, Any]] = request["pairs"]
    if not pairs:
        raise must("pairs", "must have at least 1 entries", pairs)
    for place, pair in enumerate(pairs):
        check_text(f"pairs[{place}].id", pair["id"], low=1, high=MAX_ID)
        for side in SIDES:
            check_samples([pair[side]], f"pairs[{place}].{side}", one=True)
    run = world.open_run(request["run"])
    require_distinct(((one["id"], f"pairs[{n}].id") for n, one in enumerate(pairs)), "pairs")
    for place, pair in enumerate(pairs):
        if text_of(pair["chosen"]) == text_of(pair["rejected"]):
            raise invalid("both sides of the pair are the same text", f"pairs[{place}]")
    for place, pair in enumerate(pairs):
        for side in SIDES:
            try:
                counted(world.backbone, pair[side], run.truncation, run.empty_response)
            except Problem as problem:
                field = f"pairs[{place}].{side}"
                raise Problem(problem.code, problem.message, field=field) from None
    for place, pair in enumerate(pairs):
        if query_of(pair["chosen"]) in run.trained:
            raise invalid(
                f"the run has learnt from an outside label of the prompt of pair "
                f"{pair['id'][:80]!r}: it cannot judge any more",
                f"pairs[{place}]",
            )
    rows = [[pair["id"], *(text_of(pair[side]) for side in SIDES)] for pair in pairs]
    sha256 = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    if run.anchors is None or run.anchors.sha256 != sha256:
        run.anchors = AnchorSet(
            number=1 if run.anchors is None else run.anchors.number + 1,
            pairs={pair["id"]: pair for pair in pairs},
            sha256=sha256,
            prompts=frozenset(query_of(pair["chosen"]) for pair in pairs),
        )
        detail = {"pairs": len(pairs), "sha256": sha256}
        run.changed(now(), "anchors", detail, request.get("reason"))
    found = anchors_out(run)
    assert found is not None
    return found


def get_anchors(world: World, request: dict[str, Any]) -> dict[str, Any]:
    """The set that judges. Raises Problem(unknown_run, no_anchors)."""
    name = request["run"]
    found = anchors_out(world.run(name))
    if found is None:
        raise Problem(Code.NO_ANCHORS, f"run {name!r} has no anchors: PUT /v1/runs/{name}/anchors")
    return found


def judge(
    backbone: Backbone, run: Run, branch: Branch, request: dict[str, Any]
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """What the anchors say of the candidate, where they are asked, and what is wrong with some."""
    anchors, every = run.anchors, run.method.gate.anchors_every
    given: list[dict[str, Any]] = request.get("anchors") or []
    due = every is not None and request["step"] % every == 0
    if anchors is None or not (due or given):
        return None, []
    heads = (len(run.heads), run.aliases[REFERENCE], branch.live)
    margins: list[list[float]] = []
    errors: list[dict[str, Any]] = []
    if run.feedback != "policy":
        given = [{"id": name} for name in anchors.pairs]
    for one in given:
        try:
            chosen, rejected = _sides(backbone, run, anchors, one)
            margins.append([
                backbone.reward_of(chosen, head) - backbone.reward_of(rejected, head)
                for head in heads
            ])  # fmt: skip
        except Problem as problem:
            errors.append({"id": one["id"], "group": one["id"], "error": problem.as_dict()})
    if not margins:
        return None, errors
    anchors.looks += 1
    # The planned looks share half of alpha; the server gives later ones less.
    z = NormalDist().inv_cdf(1 - run.method.gate.anchors_alpha / 2 / run.method.gate.anchors_looks)
    candidate, reference, live = (list(column) for column in zip(*margins, strict=True))
    right = sum(_right(one) for one in candidate)
    return {
        "set": anchors.number,
        "pairs": len(margins),
        "look": anchors.looks,
        "accuracy": right / len(margins),
        "wilson": list(wilson(right, len(margins))),
        "reference": _paired(heads[1], candidate, reference, z),
        "live": _paired(heads[2], candidate, live, z),
    }, errors


def proof_of(judged: dict[str, Any]) -> str:
    """What an accepted candidate's reason says of the anchors."""
    numbers = ", ".join(
        f"{100 * one['difference']:+.1f} [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}] to "
        f"{name}"
        for name, one in (("reference", judged["reference"]), ("live", judged["live"]))
    )
    pairs = f"{judged['pairs']} {'pair' if judged['pairs'] == 1 else 'pairs'}"
    return f"; the anchors prove it non-inferior ({numbers}; {pairs}, look {judged['look']})"


def _sides(
    backbone: Backbone, run: Run, anchors: AnchorSet, given: dict[str, Any]
) -> tuple[Sample, Sample]:
    known = anchors.pairs.get(given["id"])
    if known is None:
        raise Problem(Code.UNKNOWN_ANCHOR, f"the run's anchor set has no pair {given['id'][:80]!r}")
    found: list[Sample] = []
    for side in SIDES:
        feedback = {"feedback": given[side].get("feedback")} if side in given else {}
        sample = checked(backbone, run, {**known[side], **feedback}).sample
        require_finite(sample)
        found.append(sample)
    return found[0], found[1]


def _paired(head: int, ours: list[float], theirs: list[float], z: float) -> dict[str, Any]:
    differences = [_right(a) - _right(b) for a, b in zip(ours, theirs, strict=True)]
    better, worse = sum(max(0.0, d) for d in differences), sum(max(0.0, -d) for d in differences)
    low, high = paired_bounds(len(ours), better, worse, z)
    return {
        "head": head,
        "better": better,
        "worse": worse,
        "difference": (better - worse) / len(ours),
        "low": low,
        "high": high,
        "accuracy": sum(_right(one) for one in theirs) / len(theirs),
    }


def _right(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)
