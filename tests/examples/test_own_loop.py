"""examples/own_loop.py on a tiny policy against a real server: trains, labels, resumes."""

import pathlib
import runpy
import sys

import pytest
import torch
from support import models
from support.serving import running
from transformers import AutoModelForCausalLM

from r2m_client import Client

LOOP = pathlib.Path(__file__).parents[2] / "examples" / "own_loop.py"
WIDTH = 48


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("policy")
    shape = models.config("llama", hidden_size=WIDTH, num_attention_heads=4)
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    models.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def loop(monkeypatch, policy, tmp_path):
    def run(url, *flags):
        command = ["own_loop.py", "--url", url, "--policy", str(policy), "--tokens", "6"]
        command += ["--lr", "1e-2", "--out", str(tmp_path / "out"), *flags]
        monkeypatch.setattr(sys, "argv", command)
        runpy.run_path(str(LOOP), run_name="__main__")

    return run


def test_it_trains_labels_and_resumes(loop, reward_model, tmp_path, capsys):
    with (
        running(reward_model, tmp_path / "state") as server,
        Client(server.urls["grpc"]) as client,
    ):
        loop(server.urls["grpc"], "--steps", "3")
        first = capsys.readouterr().out.splitlines()
        before = client.run("own-loop")
        with pytest.raises(SystemExit, match=r"run own-loop is at step 3, .* --resume 3"):
            loop(server.urls["grpc"], "--steps", "1")
        with pytest.raises(
            SystemExit, match=r"no policy at .*step-9; .* has step-1, step-2, step-3"
        ):
            loop(server.urls["grpc"], "--resume", "9")
        capsys.readouterr()
        loop(server.urls["grpc"], "--steps", "2", "--resume", "1")
        again = capsys.readouterr().out.splitlines()
        after = client.run("own-loop")
        samples = client.samples("own-loop").samples
        heads = client.heads("own-loop")
    assert [line.split()[0] for line in first[1:4]] == ["1", "2", "3"]
    assert [line.split()[1] for line in first[1:4]] == ["yes", "no", "yes"]
    assert first[4].startswith("a step takes ")
    assert (before.next_step, before.branch) == (4, "main")
    assert [line.split()[0] for line in again[1:3]] == ["2", "3"]
    assert (after.next_step, after.branch) == (4, "b1")
    assert {one.step for one in heads if one.branch == "main"} == {0, 1, 2, 3}
    assert {one.step for one in heads if one.branch == "b1"} == {2, 3}
    assert any(one.accepted for one in heads if one.step)
    assert samples
    assert all(one.labels for one in samples)
