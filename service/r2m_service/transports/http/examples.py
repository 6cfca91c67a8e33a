"""Examples of the OpenAPI document. The tests hold them against the contract."""

from __future__ import annotations

from typing import Any

_PROMPT = "Which planet has the most moons?"
_SAMPLE = {
    "id": "q1-a",
    "prompt": _PROMPT,
    "response": "Saturn, with 146 that have been confirmed.",
}
_OTHER = {"id": "q1-b", "prompt": _PROMPT, "response": "Jupiter."}
# Two tokens of width four in bfloat16: 16 bytes.
_STATES = {"dtype": "bfloat16", "shape": [2, 4], "data": "gD8AQEBAgECgQMBA4EAAQQ=="}

REQUESTS: dict[str, Any] = {
    "VanillaRequest": {"samples": [_SAMPLE, _OTHER]},
    "ScoreRequest": {
        "head": "live",
        "samples": [{**_SAMPLE, "group": "q1", "feedback": _STATES}],
    },
    "AlignRequest": {
        "step": 1,
        "groups": [
            {
                "id": "q1",
                "samples": [{**_SAMPLE, "feedback": _STATES}, {**_OTHER, "feedback": _STATES}],
                "preferred": ["q1-a", "q1-b"],
            }
        ],
    },
    "CreateRunRequest": {
        "run": "tldr-7",
        "policy": {"hidden_size": 4, "hidden_state": "post_norm"},
        "feedback": "policy",
        "method": {"profile": "guarded", "width": 256},
    },
    "AliasRequest": {"head": 11, "expect": 12},
    "UpdateRunRequest": {"method": {"learning_rate": 1e-5}, "reason": "it drifts too fast"},
    "EvaluateRequest": {
        "heads": ["live", 0],
        "pairs": [
            {
                "id": "p1",
                "chosen": {"id": "p1-a", "prompt": "2 + 2?", "response": "4."},
                "rejected": {"id": "p1-b", "prompt": "2 + 2?", "response": "5."},
            }
        ],
    },
    "AnchorsRequest": {
        "pairs": [
            {
                "id": "gold-1",
                "chosen": {"id": "gold-1-a", "prompt": "2 + 2?", "response": "4."},
                "rejected": {"id": "gold-1-b", "prompt": "2 + 2?", "response": "5."},
            }
        ],
        "reason": "three people agreed on each",
    },
    "ReplyAlignRequest": {"replies": [{"values": [{"id": "q1-a", "fused": 0.125}]}]},
    "LabelsRequest": {
        "labels": [
            {"id": "q7-a", "grade": 0.8, "source": "judge-7"},
            {"chosen": "q9-b", "rejected": "q9-a", "source": "alice"},
        ]
    },
    "RollbackRequest": {"to_step": 6, "reason": "the trainer resumed from its checkpoint"},
}

TENSORS = (
    "A safetensors file: 8 bytes with the length of its header (little-endian), the header as "
    "JSON, the tensors. The header's `__metadata__` holds one string, `request`: the JSON body "
    "of this route, whose feedback objects have no `data` (and may be left out). Each tensor is "
    "named by the id of the sample whose hidden states it holds, of shape [S, D_p]."
)
TENSOR_FILE = (
    '\\u0098\\u0000…{"__metadata__":{"request":"{\\"samples\\":[{\\"id\\":\\"q1-a\\",…}]}"},'
    '"q1-a":{"dtype":"BF16","shape":[2,4],"data_offsets":[0,16]}}…'
)

_FINGERPRINT = "9f2c5a7e41d80b36c1e7f04a2b9d6358e0f1a4c7b2d5938e6f70a1b4c8d2e953"
_TIME = "2026-05-04T10:20:30.123456Z"
_ANCHORS: dict[str, Any] = {
    "run": "tldr-7",
    "set": 1,
    "pairs": 600,
    "looks": 3,
    "sha256": "77b0c9e1f2a83d4465be1c90a8f7d2536e4b1a0c9d8f7e6a5b4c3d2e1f0a9b8c",
    "next_step": 40,
}
_AUDIT: dict[str, Any] = {"judged": 212, "waiting": 31, "gap": 0.12, "cusum": 0.0, "note": ""}
_RUN: dict[str, Any] = {
    "run": "tldr-7",
    "fingerprint": _FINGERPRINT,
    "policy": {"hidden_size": 4, "hidden_state": "post_norm", "last_token": True},
    "feedback": "policy",
    "method": {"profile": "guarded", "width": 256, "omega": {"kind": "constant", "value": 0.6}},
    "branch": "main",
    "step": 1,
    "next_step": 2,
    "head": 1,
    "aliases": {"live": 1, "previous": 0, "candidate": 1, "reference": 0},
    "archived": False,
    "created_at": _TIME,
    "branches": [{"branch": "main", "head": 1, "step": 1}],
    "truncation": "none",
    "empty_response": "score",
    "usage": {
        "samples": 64,
        "failed": 1,
        "tokens": 9120,
        "feedback_bytes": 72960,
        "device_seconds": 2.75,
        "aligns": 1,
        "since": _TIME,
    },
    "live": {"verdict": "accepted", "t": 1, "sigma": 0.71, "gradient_norm": 0.09},
    "rejections": 0,
    "anchors": _ANCHORS,
    "audit": _AUDIT,
    "advice": "ok",
    "disk": {"heads": 2, "weights_bytes": 24690, "optimizer_bytes": 24690},
}
_HEAD: dict[str, Any] = {
    "run": "tldr-7",
    "head": 1,
    "parent": 0,
    "branch": "main",
    "step": 1,
    "t": 1,
    "omega": 0.6,
    "reference": 0,
    "accepted": True,
    "verdict": "accepted",
    "reason": "within the gate's bounds",
    "metrics": {"sigma": 0.71, "gradient_norm": 0.09},
    "created_at": _TIME,
    "sha256": "4d1f9b02c87ae6531f0d92b7a45c8e16032fd7b98ac14e65d07b39f2c1a8e460",
    "bytes": 12345,
    "aliases": ["candidate", "live"],
    "pruned": False,
    "optimizer_bytes": 24690,
}

ANSWERS: dict[str, Any] = {
    "ScoreAnswer": {
        "run": "tldr-7",
        "head": 1,
        "branch": "main",
        "omega": 0.6,
        "fingerprint": _FINGERPRINT,
        "scores": [
            {
                "id": "q1-a",
                "reward": 1.284,
                "vanilla_reward": 1.317,
                "tokens": 31,
                "states": 2,
                "finish_reason": "stop",
            },
            {
                "id": "q1-b",
                "error": {
                    "code": "feedback_size",
                    "message": "bfloat16 of shape [2, 4] takes 16 bytes, got 14",
                    "retryable": False,
                    "field": "feedback.data",
                },
            },
        ],
    },
    "AlignPending": {
        "run": "tldr-7",
        "step": 1,
        "branch": "main",
        "ticket": "kX2f8Q0yR1mZ5sVb7tNcJA",
        "questions": [
            {
                "because": "gate",
                "want": "fused",
                "v": "AAAAAAAAgD8AAAAAAAAAAA==",
                "queries": [{"id": "q1-a", "u": "AACAPwAAAAAAAAAAAAAAAA=="}],
            }
        ],
    },
    "AlignAnswer": {
        "run": "tldr-7",
        "step": 1,
        "branch": "main",
        "head": 1,
        "candidate": 1,
        "parent": 0,
        "accepted": True,
        "verdict": "accepted",
        "reason": "within the gate's bounds",
        "omega": 0.6,
        "loss": {"bt": 0.412, "kl": 0.0, "total": 0.412},
        "groups": {
            "used": 1,
            "skipped": 0,
            "pseudo": 0,
            "labelled": 1,
            "skipped_because": {},
            "replayed": 12,
            "withheld": 0,
            "disagree": 1,
        },
        "drift": {
            "reference": 0,
            "spread_ratio": 1.02,
            "rank_correlation": 0.99,
            "samples": 2,
        },
        "sigma": 0.71,
        "gradient_norm": 0.09,
        "errors": [],
        "notes": [],
        "anchors_step": 10,
        "evidence": {
            "spread_ratio": 1.03,
            "rank_correlation": 0.98,
            "length_correlation": 0.21,
            "unusable": 0.0,
            "label_agreement": 0.0,
            "feedback_gain": 0.14,
        },
        "advice": "ok",
    },
    "AnchorsOut": _ANCHORS,
    "LabelsAnswer": {
        "run": "tldr-7",
        "labels": [
            {"id": "q7-a", "use": "judge", "known": False},
            {
                "id": "q9-b",
                "known": False,
                "error": {
                    "code": "unknown_sample",
                    "message": "no sample 'q9-b' waits for a label: it was not marked, or is not "
                    "kept any more",
                    "retryable": False,
                    "field": "labels[1].chosen",
                },
            },
        ],
        "audit": _AUDIT,
        "advice": "ok",
    },
    "KeptSampleList": {
        "samples": [
            {
                "number": 17,
                "id": "q7-a",
                "group": "q7",
                "use": "judge",
                "head": 1,
                "branch": "main",
                "reward": 1.284,
                "vanilla_reward": 1.317,
                "text": {"prompt": _PROMPT, "response": "Saturn."},
                "at": _TIME,
                "labels": [],
            }
        ]
    },
    "RunOut": _RUN,
    "RunList": {"runs": [_RUN]},
    "HeadOut": _HEAD,
    "HeadList": {"heads": [_HEAD]},
    "ChangeList": {
        "changes": [
            {
                "at": _TIME,
                "what": "updated",
                "detail": {"learning_rate": [2.5e-5, 1e-5]},
                "reason": "it drifts too fast",
                "caller": "ops",
            }
        ]
    },
    "EvaluateAnswer": {
        "run": "tldr-7",
        "pairs": 1,
        "heads": [
            {"head": 1, "accuracy": 1.0, "low": 0.21, "high": 1.0, "correct": 1, "ties": 0},
            {
                "head": 0,
                "accuracy": 0.0,
                "low": 0.0,
                "high": 0.79,
                "correct": 0,
                "ties": 0,
                "better": 0,
                "worse": 1,
                "p_value": 1.0,
            },
        ],
        "vanilla": {
            "accuracy": 0.0,
            "low": 0.0,
            "high": 0.79,
            "correct": 0,
            "ties": 0,
            "better": 0,
            "worse": 1,
            "p_value": 1.0,
        },
        "errors": [],
    },
    "AliasOut": {"run": "tldr-7", "alias": "best", "head": 11, "previous": 12},
    "ServerOut": {
        "version": "0.1.0",
        "model": "my-reward-model",
        "fingerprint": _FINGERPRINT,
        "hidden_size": 4096,
        "max_length": 4096,
        "dtype": "bfloat16",
        "device": "cuda",
        "deterministic": False,
        "chat_template": True,
        "truncation": "none",
        "empty_response": "score",
    },
}
