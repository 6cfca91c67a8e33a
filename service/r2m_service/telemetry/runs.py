"""Runs as they stand, as samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from r2m.statistics import wilson
from r2m_service.application.tally import Tally
from r2m_service.application.watching import WatchedRun
from r2m_service.domain.runs import CANDIDATE, LIVE, PREVIOUS, REFERENCE
from r2m_service.telemetry import catalogue as c
from r2m_service.telemetry.families import Families

ALIASES = (LIVE, PREVIOUS, CANDIDATE, REFERENCE)
"""The server's own; users' have no bound."""

VERDICTS = ("accepted", "rejected", "undecided", "skipped", "frozen")
USES = ("train", "judge")
SAID = {"feedback_pays": 1, "no_difference_yet": 0, "control_is_better": -1}


def show_run(out: Families, run: WatchedRun) -> None:
    """All samples of one run."""
    name = run.state.run.name
    _show_tally(out, name, run.tally)
    _show_state(out, name, run)
    if run.candidate is not None:
        _show_step(out, name, run.candidate.metrics)
    if run.live is not None:  # the live line's: a rollback takes the sums back
        for arm in (run.live.metrics.get("controls") or {}).get("arms", []):
            _show_control(out, name, arm)
    if run.looked is not None:
        _show_look(out, name, run.looked.metrics["anchors"], accepted=run.looked.accepted)


def _show_tally(out: Families, name: str, tally: Tally) -> None:
    out.set(c.RUN_SAMPLES, tally.samples - tally.failed, name, "ok")
    out.set(c.RUN_SAMPLES, tally.failed, name, "failed")
    out.set(c.RUN_TOKENS, tally.tokens, name)
    out.set(c.RUN_FEEDBACK, tally.feedback_bytes, name)
    out.set(c.RUN_DEVICE, tally.device_seconds, name)
    for verdict in VERDICTS:
        out.set(c.RUN_ALIGNS, tally.verdicts[verdict], name, verdict)
    for use in USES:
        out.set(c.RUN_LABELS, tally.labels[use], name, use)
    rewards = tally.rewards
    if rewards.count:
        out.set(c.RUN_REWARD_MEAN, rewards.mean_x, name, "fused")
        out.set(c.RUN_REWARD_MEAN, rewards.mean_y, name, "vanilla")
        out.set(c.RUN_REWARD_DEVIATION, rewards.deviation_x, name, "fused")
        out.set(c.RUN_REWARD_DEVIATION, rewards.deviation_y, name, "vanilla")
        out.set(c.RUN_REWARD_CORRELATION, rewards.correlation, name)


def _show_state(out: Families, name: str, run: WatchedRun) -> None:
    state, branch = run.state, run.state.branch(None)
    out.set(c.RUN_INFO, 1, name, state.run.feedback, state.run.method.profile)
    out.set(c.RUN_STEP, branch.step, name)
    out.set(c.RUN_BRANCHES, len(state.branches), name)
    for alias in ALIASES:
        out.set(c.RUN_HEAD, state.aliases.get(alias), name, alias)
    if run.live is not None:
        out.set(c.RUN_HEAD_AGE, max(0, branch.step - run.live.step), name)
        out.set(c.RUN_UPDATES, run.live.t, name)
        out.set(c.RUN_OMEGA, run.live.omega, name)
    out.set(c.RUN_FROZEN, state.run.frozen is not None, name)
    out.set(c.RUN_REJECTIONS, branch.rejections, name)
    if state.anchors is not None:
        out.set(c.RUN_LOOKS, state.anchors.looks, name)
    out.set(c.RUN_WAITING, run.waiting, name)
    out.set(c.RUN_JUDGED, state.audit.judged, name)
    out.set(c.RUN_GAP, state.audit.gap, name)
    out.set(c.RUN_CUSUM, state.audit.cusum, name)
    out.set(c.RUN_STOPPED, state.audit.stopped, name)


def _show_step(out: Families, name: str, metrics: Mapping[str, Any]) -> None:
    """What align answered, as it stays with the candidate."""
    loss, drift = metrics.get("loss") or {}, metrics.get("drift") or {}
    for term in ("bt", "gre", "kl", "total"):
        out.set(c.RUN_LOSS, loss.get(term), name, term)
    out.set(c.RUN_SIGMA, metrics.get("sigma"), name)
    out.set(c.RUN_GRADIENT, metrics.get("gradient_norm"), name)
    out.set(c.RUN_DRIFT_SPREAD, drift.get("spread_ratio"), name)
    out.set(c.RUN_DRIFT_RANK, drift.get("rank_correlation"), name)
    evidence = metrics.get("evidence") or {}
    for metric, key in (
        (c.RUN_SPREAD, "spread_ratio"),
        (c.RUN_RANK, "rank_correlation"),
        (c.RUN_LENGTH, "length_correlation"),
        (c.RUN_GAIN, "feedback_gain"),
        (c.RUN_VANILLA, "vanilla_agreement"),
        (c.RUN_LABEL, "label_agreement"),
        (c.RUN_UNUSABLE, "unusable"),
    ):
        out.set(metric, evidence.get(key), name)


def _show_control(out: Families, name: str, arm: Mapping[str, Any]) -> None:
    control, total = arm["control"], arm["total"]
    for metric, key in (
        (c.RUN_CONTROL_PAIRS, "pairs"),
        (c.RUN_CONTROL_HEAD, "head_accuracy"),
        (c.RUN_CONTROL_ACCURACY, "accuracy"),
        (c.RUN_CONTROL_DIFFERENCE, "difference"),
        (c.RUN_CONTROL_LOW, "low"),
        (c.RUN_CONTROL_HIGH, "high"),
    ):
        out.set(metric, total.get(key), name, control)
    out.set(c.RUN_CONTROL_VERDICT, SAID.get(arm["verdict"]), name, control)


def _show_look(out: Families, name: str, look: Mapping[str, Any], *, accepted: bool) -> None:
    pairs, candidate = look["pairs"], look["accuracy"]
    accuracies = {
        "candidate": candidate,
        "reference": look["reference"]["accuracy"],
        "live": candidate if accepted else look["live"]["accuracy"],
    }
    out.set(c.RUN_PAIRS, pairs, name)
    for head, accuracy in accuracies.items():
        low, high = wilson(accuracy * pairs, pairs)
        out.set(c.RUN_ACCURACY, accuracy, name, head)
        out.set(c.RUN_ACCURACY_LOW, low, name, head)
        out.set(c.RUN_ACCURACY_HIGH, high, name, head)
