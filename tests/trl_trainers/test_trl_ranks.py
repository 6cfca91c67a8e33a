"""Two processes train one policy: groups lie across them, small vectors meet on rank 0."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.processes import free_port
from trl_training import METHOD, Aligned, Scored, Watched, by_hand, make_trainer, save_policy

HERE = Path(__file__).parent

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL and what it imports, on their own future


@pytest.mark.timeout(300)  # two more processes import TRL
def test_two_ranks(server, client, run, tmp_path):
    save_policy(tmp_path / "policy")
    places = [server.urls["grpc"], f"http://127.0.0.1:{free_port()}", run, tmp_path, free_port()]
    ranks = [
        subprocess.Popen(
            [sys.executable, HERE / "rank.py", str(rank), *map(str, places)],
            env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=250) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    told = [[json.loads(line) for line in out.splitlines() if line.startswith('{"')]
            for out, _ in said]  # fmt: skip
    assert [len(lines) for lines in told] == [4, 4], said[0][1][-3000:] + said[1][1][-3000:]

    # The rank that dies takes the other with it, whose error says so; no step is made up.
    assert ranks[1].returncode == 9
    assert ranks[0].returncode == 1
    assert client.run(f"{run}-dies").step == 1

    # A server that is not there stops both, with the same words.
    assert told[0][3] == told[1][3]
    assert "no rewards, so training stops: ConnectError" in told[0][3]["stopped"]

    # What the two did together is what one process does with plain calls.
    with Watched(server.urls["http"], "unused") as r2m:
        trainer = make_trainer("grpo", tmp_path / "policy", r2m, tmp_path)
    weights = trainer.model.state_dict()
    events = []
    for number in range(2):
        both = [told[rank][number] for rank in range(2)]
        joined = {key: both[0][key] + both[1][key] for key in both[0]}
        assert [len(one["rewards"]) for one in both] == [2, 2]
        assert len({json.dumps(prompt) for prompt in joined["prompts"]}) == 1  # one group
        events.append(Scored(training=True, weights=weights, forwards=0, **joined))
        events.append(Aligned(number + 1, [number], weights))
    seen = SimpleNamespace(events=events, scored=events[::2], groups=4)
    rewards, answers = by_hand(client, f"{run}-hand", seen, trainer)
    for one, expected in zip(seen.scored, rewards, strict=True):
        assert one.rewards == pytest.approx(expected, abs=2e-4 * (max(expected) - min(expected)))
    metrics = told[0][2]
    assert metrics["used"] == [1, 1]
    assert metrics["bt"] == pytest.approx([answer.loss.bt for answer in answers], rel=1e-3)
    assert metrics["reward"] == pytest.approx([sum(one) / 4 for one in rewards], abs=1e-5)
    assert METHOD["width"] == client.run(run).method["width"]
