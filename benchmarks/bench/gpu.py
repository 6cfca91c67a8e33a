"""The GPU's table (`make bench-gpu`): a Llama-8B-shaped random model in bf16, D_p 4096.

Rates against what the card itself was measured to do just before: model FLOP utilisation against
the rate of a large bf16 product, bytes a second against a copy. Without a GPU it runs on the CPU
in float32, which proves that the code runs and says so; the numbers then mean nothing.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from bench import feedback_load, machine
from bench import load as http_load
from bench.feedback import ARMS
from bench.measure import interleaved
from bench.models import save_random_model
from bench.report import Table
from bench.runs import first_aligned
from bench.scale import TINY, Scale
from bench.servers import bare_model, ours
from bench.texts import real_lengths, texts_of
from r2m_client import Client
from r2m_service.modeling.attention import pool
from r2m_service.modeling.loading import load_backbone

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "max_position_embeddings": 4096,
}


@dataclass(frozen=True, slots=True)
class Size:
    """What is measured with.

    Attributes:
        side: of the square product that stands for the card's peak.
        copy_bytes: of the copy.
        batch, tokens: of the bare forward pass.
        calls: samples a server cell.
        inner: d of the cross attention.
        repeats: of what takes milliseconds.
    """

    shape: Mapping[str, int]
    width: int
    side: int
    copy_bytes: int
    batch: int
    tokens: int
    calls: int
    inner: int
    repeats: int


GPU = Size(LLAMA_8B, 4096, 8192, 2 << 30, 32, 512, 128, 2048, 10)


def table(scale: Scale, say: Callable[[str], None]) -> Table:
    """The card, the bare model, the attention over states, the server."""
    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    size = (
        GPU
        if cuda and scale is not TINY
        else Size(scale.shape, 32, 64, 1 << 20, 2, 16, scale.real_calls, 16, 2)
    )
    if cuda:
        machine.share_all_cores()
    name = torch.cuda.get_device_name() if cuda else "the CPU (no GPU: the numbers mean nothing)"
    made = Table("gpu", f"On {name}, {dtype}", ("what", "measured", "unit"))
    say("the card")
    flops, bandwidth = _product(size, device, dtype), _copy(size, device)
    made.rows += [
        ["product of two matrices", flops / 1e12, "TFLOP/s"],
        ["copy, read and written", bandwidth / 1e9, "GB/s"],
    ]
    with tempfile.TemporaryDirectory() as folder:
        say("making the model")
        kind = str(dtype).removeprefix("torch.")
        model = save_random_model(Path(folder) / "model", size.shape, dtype=kind, device=device)
        if cuda:
            torch.cuda.empty_cache()
        _bare(made, model, size, device, kind, flops, say)
        _pooling(made, size, device, dtype, bandwidth, say)
        _server(made, model, size, device, kind, scale, say)
    return made


def _seconds(work: Callable[[], object], repeats: int, device: str) -> float:
    """Median seconds of one run, the device waited for."""
    found: list[float] = []
    for _ in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])  # the first one chooses kernels


def _product(size: Size, device: str, dtype: torch.dtype) -> float:
    left = torch.randn(size.side, size.side, device=device).to(dtype)
    return 2.0 * size.side**3 / _seconds(lambda: left @ left, size.repeats, device)


def _copy(size: Size, device: str) -> float:
    source = torch.zeros(size.copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * size.copy_bytes / _seconds(lambda: target.copy_(source), size.repeats, device)


def _bare(
    made: Table,
    model: Path,
    size: Size,
    device: str,
    kind: str,
    flops: float,
    say: Callable[[str], None],
) -> None:
    """Tokens a second of one padded batch, and the share of the card's rate that it uses."""
    say("the bare model")
    backbone = load_backbone(str(model), device=device, dtype=kind)
    ids = [[3 + n % 200 for n in range(size.tokens)] for _ in range(size.batch)]
    spent = _seconds(lambda: backbone.encode(ids), max(2, size.repeats // 3), device)
    needed = forward_flops(size.shape, size.batch, size.tokens)
    made.rows += [
        [f"bare model, {size.batch} × {size.tokens}", size.batch * size.tokens / spent, "tokens/s"],
        ["model FLOP utilisation (of the product's rate)", needed / spent / flops, "share"],
    ]
    made.keys["gpu_mfu"] = needed / spent / flops


def forward_flops(shape: Mapping[str, int], batch: int, tokens: int) -> float:
    """Operations of a Llama's forward pass: products of weights, and causal attention."""
    width, heads = shape["hidden_size"], shape["num_attention_heads"]
    narrow = width * shape["num_key_value_heads"] // heads
    weights = 2 * width * width + 2 * width * narrow + 3 * width * shape["intermediate_size"]
    attention = 2 * width * tokens  # two products over half of the S × S places
    return 2.0 * batch * tokens * shape["num_hidden_layers"] * (weights + attention / 2)


def _pooling(
    made: Table,
    size: Size,
    device: str,
    dtype: torch.dtype,
    bandwidth: float,
    say: Callable[[str], None],
) -> None:
    """Bytes of h a second that the absorbed attention reads, against a copy's rate."""
    say("the attention over states")
    h_NSP = torch.randn(size.batch, size.tokens, size.width, device=device).to(dtype)
    u_P = torch.randn(size.width, device=device)

    def work() -> None:
        for h_SP in h_NSP:
            pool(h_SP, u_P, u_P)

    rate = h_NSP.nbytes / _seconds(work, size.repeats, device)
    made.rows += [
        [f"absorbed attention, h {size.batch} × {size.tokens} × {size.width}", rate / 1e9, "GB/s"],
        ["of the copy's rate", rate / bandwidth, "share"],
    ]
    made.keys["gpu_pool_bandwidth_share"] = rate / bandwidth


def _server(
    made: Table,
    model: Path,
    size: Size,
    device: str,
    kind: str,
    scale: Scale,
    say: Callable[[str], None],
) -> None:
    """Samples a second against the bare model, and with hidden states against without."""
    say("the server")
    # A step of one call: a gibibyte of states at most.
    flags = ("--device", device, "--dtype", kind, "--grpc-message-bytes", str(1 << 30))
    seeds = itertools.count(2)
    with (
        tempfile.TemporaryDirectory() as folder,
        ours(model, Path(folder), *flags) as server,
        bare_model(model, kind, device) as bare,
    ):
        with Client(server.grpc, timeout=300) as client:
            for way in ("", "-step"):
                client.create_run(f"none{way}", feedback="none")
                first_aligned(client, f"policy{way}", width=size.width, inner=size.inner)

        def texts() -> list[str]:
            # Never seen before: the cache, which align needs, spares nobody any work.
            return texts_of(real_lengths(size.calls, most=size.tokens), seed=next(seeds))

        def called() -> float:
            bodies = [server.body([text]) for text in texts()]
            job = http_load.Job(server.port, server.path, bodies, callers=scale.headline)
            return size.calls / http_load.run(job).seconds

        def fed(mode: feedback_load.Mode, way: feedback_load.Way) -> float:
            run = ("none" if mode == "none" else "policy") + ("-step" if way == "step" else "")
            job = feedback_load.Job(
                server.grpc, run, mode, way, texts(), size.tokens, size.width,
                in_flight=2 * scale.headline,
            )  # fmt: skip
            return size.calls / feedback_load.run(job).seconds

        arms: dict[str, Callable[[], float]] = {
            "bare model, windows of 32": lambda: size.calls / bare(texts(), 32),
            "bf16, stream": partial(fed, "bfloat16", "stream"),
            f"server, {scale.headline} callers": called,
            **{name: partial(fed, *arm) for name, arm in ARMS.items()},
        }
        warm = dict(list(arms.items())[:3])  # chooses kernels, for the model and the attention
        interleaved(warm, rounds=1, say=lambda what: say(f"warm-up, {what}"))
        found = interleaved(arms, rounds=scale.rounds, say=say)
    for arm in arms:
        made.rows.append([arm, found.median(arm), "samples/s"])
        base = "none, " + arm.partition(", ")[2].removesuffix(" again")
        if base in arms and base != arm:
            made.rows.append([f"{arm}, against none", found.ratio(arm, base), "share"])
    limit = "bare model, windows of 32"
    made.keys["gpu_server_vs_limit"] = found.ratio(f"server, {scale.headline} callers", limit)
    made.keys["gpu_stream_vs_limit"] = found.ratio("none, stream", limit)
    made.keys["gpu_streamed_cost"] = 1.0 - found.ratio("bf16, stream", "none, stream")
    made.keys["gpu_int8_cost"] = 1.0 - found.ratio("int8, stream", "none, stream")
    made.keys["gpu_split_cost"] = 1.0 - found.ratio("split, calls", "none, calls")
    made.keys["gpu_aa_spread"] = found.spread("none, stream", "none, stream again")
    # A step is the same scores, and an align.
    made.keys["gpu_align_vs_score"] = found.ratio("bf16, stream", "bf16, score + align") - 1.0
    sent = 2.0 * size.tokens * size.width * found.median("bf16, stream")
    made.rows.append(["bytes of bf16 states over the stream", sent / 1e9, "GB/s"])
