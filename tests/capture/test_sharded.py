"""A policy sharded by FSDP, both generations of it: gloo, one process, its own interpreter."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]

SHARDED = """
import sys, warnings
warnings.simplefilter("ignore")
import torch, torch.distributed as dist
from policies import alone, padded, policy, texts
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from r2m_client.capture import Recorder

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
ids = texts()
tokens, mask = padded(ids, "left")


def shard(model, kind):
    if kind == "fully_shard":
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)
    layer = type(model.model.layers[0])
    return FullyShardedDataParallel(
        model, auto_wrap_policy=ModuleWrapPolicy({layer}), device_id=torch.device("cpu")
    )


for kind in ("fully_shard", "FullyShardedDataParallel"):
    for order in ("before", "after"):
        model = policy("llama")
        expected = [alone(model, one) for one in ids]
        recorder = Recorder(model) if order == "before" else None
        sharded = shard(model, kind)
        recorder = recorder or Recorder(sharded)
        for gradient in (False, True):
            with recorder.recording() as taken, torch.set_grad_enabled(gradient):
                out = sharded(tokens, attention_mask=mask, use_cache=False)
                if gradient:
                    out.logits.square().mean().backward()
            for found, one in zip(taken.states(), expected, strict=True):
                torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-4)
            print(kind, order, len(taken.passes), type(taken.states()[0]).__name__)
dist.destroy_process_group()
"""


def test_sharded(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, tmp_path / "store"],
        env={"PYTHONPATH": f"{TESTS}:{TESTS / 'capture'}", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{kind} {order} 1 Tensor"
        for kind in ("fully_shard", "FullyShardedDataParallel")
        for order in ("before", "after")
        for _ in range(2)
    ]
