"""How large a run is: the full one meant for 20 minutes on two cores, the tests' within seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of every table.

    Attributes:
        shape: of the sweeps' Llama.
        smollm2: whether tables also run on SmolLM2.
        rounds: interleaved ones of what ratios are made of.
        inner: d of the cross attention.
        attention: (D_p, S, batch) to compare at.
        callers: with one sample a call; the headline is at `headline`.
        batch: samples of one call of the batched column, sent by `batch_callers`.
        short_tokens: of a short text.
        most_tokens: real lengths are cut to this.
        short_calls, real_calls: samples a cell.
        smollm2_calls: samples a cell on SmolLM2.
        states_tokens: tokens of a text and S of its states in the feedback table.
        smollm2_tokens: the same on SmolLM2.
        policy_widths: D_p of the sweep's feedback rows.
        feedback_calls: samples a cell of the feedback table.
        align_base: (groups, K, S, D_p) that the growth rows start from.
        align_grown: values that each of the four takes instead.
        align_smollm2: (groups, K, text tokens) of the comparison on SmolLM2.
        open_seconds: how long the open loop keeps each rate.
        swap_calls: of each arm of the swap table.
        swap_every: seconds between two swaps.
    """

    shape: Mapping[str, int]
    smollm2: bool = True
    rounds: int = 3
    inner: int = 2048
    attention: tuple[tuple[int, int, int], ...] = (
        (576, 256, 4),
        (576, 1024, 4),
        (576, 4096, 2),
        (2048, 256, 4),
        (2048, 1024, 4),
        (2048, 4096, 1),
        (4096, 256, 4),
        (4096, 1024, 4),
        (4096, 4096, 1),
    )
    callers: tuple[int, ...] = (1, 8, 32, 128)
    headline: int = 32
    batch: int = 32
    batch_callers: int = 4
    short_tokens: int = 32
    most_tokens: int = 1024
    short_calls: int = 192
    real_calls: int = 40
    smollm2_calls: int = 16
    states_tokens: int = 256
    smollm2_tokens: int = 128
    policy_widths: tuple[int, ...] = (576, 4096)
    feedback_calls: int = 16
    align_base: tuple[int, int, int, int] = (4, 4, 256, 576)
    align_grown: Mapping[str, tuple[int, ...]] = field(
        default_factory=lambda: {"groups": (8, 16), "K": (8,), "S": (1024,), "D": (2048, 4096)}
    )
    align_smollm2: tuple[int, int, int] = (4, 4, 256)
    open_seconds: float = 15.0
    swap_calls: int = 600
    swap_every: float = 0.25


FULL = Scale(
    shape={
        "hidden_size": 576,  # SmolLM2's width, a tenth of its layers
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "num_hidden_layers": 3,
        "max_position_embeddings": 2048,
    }
)

TINY = Scale(
    shape={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
        "max_position_embeddings": 512,
    },
    smollm2=False,
    rounds=1,
    inner=16,
    attention=((16, 8, 2),),
    callers=(1, 4),
    headline=4,
    batch=4,
    batch_callers=2,
    short_tokens=8,
    most_tokens=16,
    short_calls=8,
    real_calls=8,
    states_tokens=8,
    policy_widths=(16,),
    feedback_calls=8,
    align_base=(2, 3, 8, 16),
    align_grown={"groups": (3,), "K": (4,), "S": (16,), "D": (24,)},
    align_smollm2=(2, 3, 8),
    open_seconds=0.5,
    swap_calls=40,
    swap_every=0.05,
)
