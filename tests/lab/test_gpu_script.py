"""The script for real models: what it refuses, and one step of it with tiny ones."""

import json
import os
import subprocess
import sys

import pytest
from support.models import save_reward_model

from lab import gpu


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    sys.path.insert(0, "tests/trl_trainers")
    try:
        from trl_training import save_policy
    finally:
        sys.path.pop(0)
    base = tmp_path_factory.mktemp("gpu")
    save_policy(base / "policy")
    save_reward_model(base / "reward")
    save_reward_model(base / "judge", seed=1)
    return base


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--policy", "nowhere"], "--policy nowhere: there is no such folder"),
        (["--arm", "labelled"], "give --judge"),
        (["--judge", "x"], "--judge x: there is no such"),
        (["--arm", "labels"], "give --judge"),
        (["--steps", "0"], "--steps is at least 1, got 0"),
        (["--kl", "nan"], "--kl is at least 0, got nan"),
        (["--labelled", "1.5"], "--labelled is a share of the groups"),
        (["--batch", "9"], "--batch 9 is not a multiple of --generations 8"),
        ([], "no GPU here; --cpu"),
    ],
)
def test_what_it_refuses_it_refuses_at_once(folders, more, words, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    given = ["--policy", str(folders / "policy"), "--reward", str(folders / "reward")]
    assert gpu.main([*given, "--arm", "frozen", "--out", str(tmp_path), *more]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.timeout(400)
@pytest.mark.parametrize("arm", ["labelled", "frozen", "labels"])
def test_two_steps_with_a_judge(folders, tmp_path, arm):
    done = subprocess.run(
        [sys.executable, "-m", "lab.gpu", "--cpu", "--policy", folders / "policy", "--reward",
         folders / "reward", "--judge", folders / "judge", "--arm", arm, "--labelled", "1",
         *(["--eval-judge", folders / "reward"] if arm == "frozen" else []),
         "--steps", "2", "--batch", "8", "--generations", "4", "--tokens", "6", "--width", "16",
         "--out", tmp_path],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "benchmarks"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = tmp_path / f"{arm}-0"
    rows = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all("rewards/judge/mean" in row and "r2m/vanilla_reward" in row for row in rows)
    assert all("kl" in row for row in rows)  # what arms are compared at
    assert all(("rewards/eval_judge/mean" in row) == (arm == "frozen") for row in rows)
    verdict = "r2m/verdict/accepted" if arm == "labelled" else "r2m/verdict/frozen"
    assert rows[-1][verdict] == 1
    if arm == "labels":  # they alone are the policy's reward: 1 and -1 in each group of four
        assert all(row["rewards/labels/mean"] == 0 for row in rows)
        assert all(row["rewards/labels/std"] == pytest.approx((4 / 7) ** 0.5) for row in rows)
        assert all(row["reward"] == 0 for row in rows)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 2
    if arm == "labelled":
        assert summary["controls"].keys() == {"shuffled", "backbone", "none"}
        assert summary["controls"]["none"]["pairs"] > 0
        last = rows[-1]
        for name in ("pairs", "difference", "low", "high"):
            assert last[f"r2m/controls/none/{name}"] == summary["controls"]["none"][name]


def test_a_dataset_without_prompts_is_refused(folders, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"text": "Hi"}\n')
    given = ["--policy", str(folders / "policy"), "--reward", str(folders / "reward"), "--cpu"]
    data = ["--dataset", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out")]
    assert gpu.main([*given, "--arm", "frozen", *data]) == 2
    assert "it needs a column `prompt`; it has text" in capsys.readouterr().err
