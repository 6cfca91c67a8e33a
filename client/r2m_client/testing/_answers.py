"""What a fake answers of runs and heads."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import numpy as np

from r2m_client.testing._state import LIVE, Head, Run

BASELINE = 128
"""Labels that the server's gap is measured from."""


def weights(run: Run, head: Head) -> bytes:
    """A version's safetensors file: the server's names and shapes, noise and zeros for weights."""
    from safetensors.numpy import save

    draw = np.random.default_rng(int(head.lineage[:16], 16))
    phi = draw.standard_normal((1, run.backbone_width), dtype=np.float32)
    tensors = {"head.weight": phi}
    if run.feedback != "none":
        inner = run.method.width
        for name, shape in (
            ("w_q", (run.backbone_width, inner)),
            ("w_k", (run.policy.hidden_size, inner)),
            ("w_v", (run.policy.hidden_size, inner)),
            ("w_o", (inner, run.backbone_width)),
        ):
            tensors[name] = np.zeros(shape, np.float32)
    metadata = {
        "format": "r2m-head-1",
        "fingerprint": run.fingerprint,
        "feedback": run.feedback,
        "method": asdict(run.method),
        "omega": head.omega,
        "t": head.t,
    }
    data = save(tensors, {"r2m": json.dumps(metadata, sort_keys=True)})
    head.file = (hashlib.sha256(data).hexdigest(), len(data))
    return data


def run_out(run: Run, advice: str) -> dict[str, Any]:
    """A run, for an answer."""
    branch = run.branch(None)
    return {
        "run": run.name,
        "fingerprint": run.fingerprint,
        "policy": asdict(run.policy),
        "feedback": run.feedback,
        "method": asdict(run.method),
        "branch": branch.name,
        "step": branch.step,
        "next_step": branch.step + 1,
        "head": branch.live,
        "aliases": dict(run.aliases),
        "archived": run.archived,
        "frozen": run.frozen,
        "rejections": branch.rejections,
        "anchors": anchors_out(run),
        "advice": advice,
        "created_at": run.created_at,
        "branches": [
            {
                "branch": one.name,
                "head": one.live,
                "step": one.step,
                "origin_branch": one.origin_branch,
                "origin_head": one.origin_head,
                "origin_step": one.origin_step,
                "reason": one.reason,
            }
            for one in run.branches.values()
        ],
        "truncation": run.truncation,
        "empty_response": run.empty_response,
    }


def anchors_out(run: Run) -> dict[str, Any] | None:
    """The anchor set, for an answer."""
    anchors = run.anchors
    if anchors is None:
        return None
    return {
        "run": run.name,
        "set": anchors.number,
        "pairs": len(anchors.pairs),
        "looks": anchors.looks,
        "sha256": anchors.sha256,
        "next_step": run.next_anchors(run.branch(None).step),
    }


def audit_out(run: Run) -> dict[str, Any]:
    """The audited gap, for an answer: what it says is the test's."""
    waiting = sum(one.waits for one in run.kept.values())
    note = ""
    if run.judged < BASELINE:
        note = f"{run.judged} of {BASELINE} labels that the gap is measured from"
    return {"judged": run.judged, "waiting": waiting, "cusum": 0.0, "note": note}


def full_run_out(run: Run, advice: str) -> dict[str, Any]:
    """A run with what it has used and the live head's numbers: where one run is asked for."""
    live = run.head(LIVE)
    return {
        **run_out(run, advice),
        "usage": asdict(run.usage),
        "audit": audit_out(run),
        "live": {"verdict": live.verdict, "t": live.t, **live.metrics},
    }


def head_out(run: Run, head: Head) -> dict[str, Any]:
    """A version, for an answer."""
    if head.file is None:
        weights(run, head)
    assert head.file is not None
    sha256, size = head.file
    return {
        "run": run.name,
        "head": head.number,
        "parent": head.parent,
        "branch": head.branch,
        "step": head.step,
        "t": head.t,
        "omega": head.omega,
        "reference": head.reference,
        "accepted": head.accepted,
        "verdict": head.verdict,
        "reason": head.reason,
        "metrics": head.metrics,
        "created_at": head.created_at,
        "sha256": sha256,
        "bytes": size,
        "aliases": sorted(name for name, at in run.aliases.items() if at == head.number),
    }
