"""A trainer of two processes: each keeps its own states, small vectors meet on rank 0."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.rollouts import WIDTH_P, groups

from r2m_client import Client

TESTS = Path(__file__).parents[1]

RANK = """
import dataclasses, json, sys
import torch.distributed as distributed
from r2m_client import Client
from r2m_client.split import States, torch_ranks
from support.rollouts import groups

rank, store, url, run = int(sys.argv[1]), *sys.argv[2:]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
mine = {s.id: s.hidden_states for g in groups(1) for n, s in enumerate(g.samples) if n % 2 == rank}
states = torch_ranks(States(mine))
if rank:
    states.follow()
else:
    # The texts are on rank 0; of the states, only its own.
    bare = [
        dataclasses.replace(g, samples=[dataclasses.replace(s, hidden_states=None)
                                        for s in g.samples])
        for g in groups(1)
    ]
    with states, Client(url, wire_dtype="float32") as client:
        scored = client.score([s for g in bare for s in g.samples], run=run, feedback=states)
        answer = client.align(
            run, step=1, groups=bare, feedback=states, context=scored.context
        )
    print(json.dumps({
        "rewards": scored.rewards, "verdict": answer.verdict, "samples": answer.drift.samples,
        "norm": answer.gradient_norm,
    }))
distributed.destroy_process_group()
"""


def test_two_ranks_are_as_one(server, run_name, tmp_path):
    method = {"width": 16, "learning_rate": 3e-4}
    with Client(server.urls["grpc"], wire_dtype="float32") as client:
        for name in (run_name, f"{run_name[:80]}-alone"):
            client.create_run(name, policy_hidden_size=WIDTH_P, method=method)
        alone = f"{run_name[:80]}-alone"
        samples = [sample for group in groups(1) for sample in group.samples]
        rewards = client.score(samples, run=alone, feedback="split").rewards
        answer = client.align(alone, step=1, groups=groups(1), feedback="split")
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "store"), server.urls["grpc"],
             run_name],
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=100) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said[0][1] + said[1][1]
    found = json.loads(said[0][0])
    assert found["rewards"] == pytest.approx(rewards, abs=1e-6)
    assert (found["verdict"], found["samples"]) == (answer.verdict, answer.drift.samples)
    assert found["norm"] == pytest.approx(answer.gradient_norm, rel=1e-5)
