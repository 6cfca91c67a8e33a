"""What the dtype of hidden states on the wire does to rewards.

SmolLM2-135M is policy and reward backbone at once. A head learns from one half of the prompts in a
few aligns with pseudo labels, at a learning rate high enough that the attention matters; rewards of
the other half are compared with those of float32 states. For the attention's own part of the reward
too: most of a reward is the text's, which no dtype of the states can move.

    python benchmarks/states_dtypes.py                          # the demo's prompts, made responses
    R2M_TEST_DATA=FOLDER python benchmarks/states_dtypes.py     # alpaca_eval_groups.jsonl.gz
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from r2m.tensors import TensorValue, tensor_value
from r2m_client import ChannelScales
from r2m_service.engine.pooling import pool_states
from r2m_service.engine.states import on_device
from r2m_service.modeling.head import Head, first_head
from r2m_service.modeling.loss import GroupRewards, loss_of_groups
from r2m_service.modeling.update import AdamWStep, Moments, gradients

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo"
sys.path.insert(0, str(DEMO))

GROUP, CALIBRATION = 4, 8
OMEGA, LEARNING_RATE, INNER = 0.6, 3e-5, 512

Wire = Callable[[Tensor], TensorValue]


@dataclass
class Text:
    """One response: its RTE, and the policy's states after and before the final norm."""

    rte_R: Tensor
    post_norm: Tensor
    pre_norm: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description="Rewards by dtype of the states on the wire.")
    parser.add_argument("--groups", type=int, default=24)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=256, help="texts are cut behind them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    texts = embedded(arguments.groups, arguments.tokens)
    for kind in ("post_norm", "pre_norm"):
        report(kind, texts, arguments.steps)


@torch.no_grad()
def embedded(groups: int, tokens: int) -> list[Text]:
    from model import DEFAULT_CACHE, ensure_smollm2
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(ensure_smollm2(DEFAULT_CACHE, say=print))
    policy: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    before: list[Tensor] = []
    policy.model.norm.register_forward_pre_hook(lambda _, given: before.append(given[0][0]))
    found: list[Text] = []
    for prompt, response in pairs(groups):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        h_SP = policy.model(ids["input_ids"][:, :tokens]).last_hidden_state[0]
        found.append(Text(h_SP[-1].clone(), h_SP.clone(), before.pop().clone()))
    return found


def pairs(groups: int) -> list[tuple[str, str]]:
    """Prompts, each with `GROUP` responses."""
    data = os.environ.get("R2M_TEST_DATA")
    if not data:
        from prompts import PROMPTS

        sentence = "It depends on what you have at hand, and on how much time there is. "
        return [
            (PROMPTS[n % len(PROMPTS)], sentence * (1 + (5 * n + 3 * k) % 12) + f"Number {n + k}.")
            for n in range(groups)
            for k in range(GROUP)
        ]
    with gzip.open(Path(data) / "alpaca_eval_groups.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for _, line in zip(range(groups), lines, strict=False)]
    return [(row["prompt"], one["text"]) for row in rows for one in list(row["responses"])[:GROUP]]


def report(kind: str, texts: Sequence[Text], steps: int) -> None:
    half = len(texts) // 2 // GROUP * GROUP
    train, held = texts[:half], texts[half:]
    head = trained(kind, train, steps)
    scales = ChannelScales.of(*(getattr(one, kind) for one in train[:CALIBRATION]))
    flat = ChannelScales(torch.ones(head.tensors["w_k"].shape[0]))
    wires: dict[str, Wire] = {
        "bfloat16": lambda h_SP: tensor_value(h_SP, dtype="bfloat16"),
        "float16": lambda h_SP: tensor_value(h_SP, dtype="float16"),
        "int8, ChannelScales": scales.quantize,
        "int8, scales by sample": lambda h_SP: tensor_value(h_SP, dtype="int8"),
        "int8, scales by token alone": flat.quantize,
    }
    exact, own = rewards(head, kind, held, lambda h_SP: tensor_value(h_SP, dtype="float32"))
    print(
        f"\n{kind}: {len(held)} samples in groups of {GROUP}; spread of the rewards "
        f"{float(exact.std()):.3f}, of the attention's part {float(own.std()):.3f}"
    )
    print("| states | change / spread: median | max | attention's part: max | pairs turned |")
    print("| --- | --- | --- | --- | --- |")
    for name, wire in wires.items():
        found, part = rewards(head, kind, held, wire)
        change = (found - exact).abs() / exact.std()
        turned, total = turned_pairs(found, exact)
        print(
            f"| {name} | {float(change.median()):.1e} | {float(change.max()):.1e} | "
            f"{float((part - own).abs().max() / own.std()):.1e} | {turned} of {total} |"
        )


@torch.no_grad()
def trained(kind: str, texts: Sequence[Text], steps: int) -> Head:
    file = load_file(DEMO / "head.safetensors")
    rte_NR = torch.stack([one.rte_R for one in texts])
    head = first_head(
        weight_R=file["head.weight"][0],
        bias=file["head.bias"],
        width_P=getattr(texts[0], kind).shape[1],
        inner=INNER,
        seed=0,
        attends=True,
        metadata={},
    )
    moments = Moments.zeros(head)
    for _ in range(steps):
        assert head.v_P is not None
        pooled = [
            pool_one(tensor_value(getattr(one, kind), dtype="float32"), u_P, (1 - OMEGA) * head.v_P)
            for one, u_P in zip(texts, head.queries(rte_NR), strict=True)
        ]
        c_NP = torch.stack([one.c_P for one in pooled])
        r_N = head.parts(rte_NR, c_NP).rewards(OMEGA)
        with torch.enable_grad():
            loss = loss_of_groups(
                [
                    GroupRewards(r_K=r_K, reference_K=r_K, preferred=None)
                    for r_K in r_N.split(GROUP)
                ],
                alpha=0.3,
                kl_weight=0.0,
            )
        gradient = gradients(
            head,
            omega=OMEGA,
            g_N=loss.gradient_N,
            rte_NR=rte_NR,
            c_NP=c_NP,
            j_NP=torch.stack([one.j_P for one in pooled if one.j_P is not None]),
        )
        step = AdamWStep(
            head,
            gradient,
            moments,
            learning_rate=LEARNING_RATE,
            weight_decay=0.0,
            max_grad_norm=1.0,
        )
        for name in step.names:
            step.update(name)
        done = step.finish()
        head, moments = Head(done.tensors, {}), done.moments
    return head


def rewards(head: Head, kind: str, texts: Sequence[Text], wire: Wire) -> tuple[Tensor, Tensor]:
    """Rewards of states that went over the wire, and the attention's part of them."""
    rte_NR = torch.stack([one.rte_R for one in texts])
    c_NP = torch.stack(
        [
            pool_one(wire(getattr(one, kind)), u_P, None).c_P
            for one, u_P in zip(texts, head.queries(rte_NR), strict=True)
        ]
    )
    parts = head.parts(rte_NR, c_NP)
    return parts.rewards(OMEGA), (1 - OMEGA) * parts.fused_N


def pool_one(value: TensorValue, u_P: Tensor, z_P: Tensor | None) -> Any:
    """As the server does it."""
    value.check()
    return pool_states(on_device(value, u_P.device), u_P, z_P)


def turned_pairs(found: Tensor, exact: Tensor) -> tuple[int, int]:
    """Pairs of one group that change their order, and all pairs."""
    pairs = [
        (first + a, first + b)
        for first in range(0, len(exact), GROUP)
        for a, b in combinations(range(GROUP), 2)
    ]
    return sum(bool((found[a] - found[b]) * (exact[a] - exact[b]) < 0) for a, b in pairs), len(
        pairs
    )


if __name__ == "__main__":
    main()
