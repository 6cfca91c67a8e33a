"""Reward token embeddings and states of every text, computed once and kept.

The reward model reads a text through its chat template; the policy, the same weights here, reads it
as plain text, as a trainer's own template differs from the reward model's. So the two kinds of
states differ, if not by much.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lab.processes import each, processes
from lab.real.data import Text
from r2m_service.modeling.backbone import Backbone
from r2m_service.modeling.loading import load_backbone

Reader = Literal["reward model", "policy"]
CHUNK = 24
"""Texts of one file: what an interruption loses."""
BATCH = 8


@dataclass(frozen=True, slots=True)
class Embedded:
    """What the lab keeps of a text, float32.

    Attributes:
        rte_R: the reward model's embedding.
        own_SR, policy_SP: token states of either reader.
    """

    rte_R: Tensor
    own_SR: Tensor
    policy_SP: Tensor


@dataclass(frozen=True, slots=True)
class _Work:
    model: str
    head: str | None
    reader: Reader
    texts: Sequence[Text]
    file: Path


def embed(
    texts: Sequence[Text], model: Path, head: Path | None, folder: Path, workers: int
) -> Mapping[Text, Embedded]:
    """Every text by both readers, from the cache or computed with a bar."""
    distinct = in_order(texts)
    work = [
        _work(distinct[start : start + CHUNK], reader, model, head, folder)
        for reader in ("reward model", "policy")
        for start in range(0, len(distinct), CHUNK)
    ]
    missing = [one for one in work if not one.file.exists()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        with processes(workers) as pool:
            calls = {one.file.stem: (one,) for one in missing}
            each(pool, f"embedding {len(distinct)} texts, twice", _make, calls)
    found: dict[Reader, dict[Text, tuple[Tensor, Tensor]]] = {"reward model": {}, "policy": {}}
    for one in work:
        kept = load_file(one.file)
        for row, text in enumerate(one.texts):
            found[one.reader][text] = kept[f"rte.{row}"], kept[f"states.{row}"].float()
    return {
        text: Embedded(rte_R, own_SR, found["policy"][text][1])
        for text, (rte_R, own_SR) in found["reward model"].items()
    }


def in_order(texts: Sequence[Text]) -> list[Text]:
    """Each once, short ones first: a pass has texts of one length."""
    return sorted(set(texts), key=lambda one: (len(one.prompt) + len(one.response), str(one)))


def _work(
    texts: Sequence[Text], reader: Reader, model: Path, head: Path | None, folder: Path
) -> _Work:
    what = [asdict(one) for one in texts], reader, _hash(model / "model.safetensors")
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    return _Work(
        str(model), str(head) if head else None, reader, texts, folder / f"{key}.safetensors"
    )


@cache
def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _backbone(model: str, head: str | None) -> Backbone:
    return load_backbone(model, head_file=Path(head) if head else None, dtype="float32")


def _make(work: _Work) -> None:
    backbone = _backbone(work.model, work.head)
    raw = work.reader == "policy"
    ids = [backbone.text.pair(one.prompt, one.response, raw=raw).ids for one in work.texts]
    tensors: dict[str, Tensor] = {}
    for start in range(0, len(ids), BATCH):
        part = ids[start : start + BATCH]
        for row, one in enumerate(backbone.encode(part, states=[True] * len(part)), start):
            assert one.states_SR is not None
            tensors[f"rte.{row}"] = one.rte_R
            tensors[f"states.{row}"] = one.states_SR.to(torch.bfloat16)  # as on the wire
    scratch = work.file.with_suffix(f".{os.getpid()}")
    save_file(tensors, scratch)
    scratch.replace(work.file)
