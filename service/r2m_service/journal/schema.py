"""The columns of a journal."""

from __future__ import annotations

import pyarrow as pa

VERSION = "r2m-journal-2"
_VECTOR = pa.large_list(pa.float32())
_HEAD = [
    pa.field("run", pa.string()),
    pa.field("branch", pa.string()),
    pa.field("head", pa.int64()),
    pa.field("sha256", pa.string()),
    pa.field("omega", pa.float64()),
]
_TRACE = [
    pa.field("rte", _VECTOR),
    pa.field("u", _VECTOR),
    pa.field("c", _VECTOR),
    pa.field("j", _VECTOR),
    pa.field("fused", pa.float64()),
    pa.field("states", pa.large_binary()),
    pa.field("states_dtype", pa.string()),
    pa.field("states_shape", pa.list_(pa.int64())),
]
_METADATA = {"format": VERSION}

SCORES = pa.schema(
    [
        pa.field("at", pa.timestamp("us", tz="UTC")),
        *_HEAD,
        pa.field("id", pa.string()),
        pa.field("group", pa.string()),
        pa.field("reward", pa.float64()),
        pa.field("vanilla_reward", pa.float64()),
        *_TRACE,
    ],
    _METADATA,
)
"""One row a sample that has a reward."""

ALIGNS = pa.schema(
    [
        pa.field("at", pa.timestamp("us", tz="UTC")),
        *_HEAD,
        pa.field("step", pa.int64()),
        pa.field("reference", pa.int64()),
        pa.field("candidate", pa.int64()),
        pa.field("live", pa.int64()),
        pa.field("verdict", pa.string()),
        pa.field("t", pa.int64()),
        pa.field("candidate_omega", pa.float64()),
        pa.field("method", pa.string()),
        pa.field("answer", pa.string()),
        pa.field(
            "rows",
            pa.list_(
                pa.struct(
                    [
                        pa.field("group", pa.int64()),
                        pa.field("replayed", pa.bool_()),
                        pa.field("label", pa.int8()),
                        pa.field("reward", pa.float64()),
                        pa.field("reference_fused", pa.float64()),
                        pa.field("reference_base", pa.float64()),
                        *_TRACE,
                    ]
                )
            ),
        ),
    ],
    _METADATA,
)
"""One row an align; head, sha256 and omega are the parent's."""
