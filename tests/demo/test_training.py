"""The demo's trainer code on a tiny policy: real TRL, real server, real sockets."""

import json
import pathlib
import sys

import pytest
import torch
from support import models
from support.serving import running

DEMO = pathlib.Path(__file__).parents[2] / "examples" / "demo"

# TRL and what it imports warn about their own future; that is not this project's.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(DEMO)
    for name in ("training", "report", "server", "model", "prompts", "run"):
        sys.modules.pop(name, None)
    return DEMO


@pytest.fixture
def policy(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(3)
    template = models.TEMPLATE + "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    folder = tmp_path / "policy"
    AutoModelForCausalLM.from_config(
        models.config("llama", hidden_size=48, num_attention_heads=4)
    ).save_pretrained(folder)
    models.tokenizer(template=template).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_rloo_trains_and_the_head_follows(demo, policy, reward_model, tmp_path):
    import training
    from report import header, line, write_plot, write_summary

    from r2m_client import Client
    from r2m_client.integrations.trl import R2M

    training.NEW_TOKENS = 8
    model, tokenizer = policy
    rows, doing = [], []
    with (
        running(reward_model, tmp_path / "state") as server,
        Client(server.urls["grpc"]) as client,
    ):
        client.create_run("demo", policy_hidden_size=48, method={"width": 16})
        prompts = [f"What is {n}? " * (1 + n % 2) for n in range(8)]
        training.train(
            model, tokenizer, R2M(client, "demo"), prompts, steps=2, out=tmp_path,
            show=rows.append, doing=doing.append,
        )  # fmt: skip
        heads = client.heads("demo")
    assert [row.step for row in rows] == [1, 2]
    assert {row.verdict for row in rows} <= {"accepted", "rejected"}
    assert [head.head for head in heads] == [0, 1, 2]
    assert all(row.bytes_sent > 0 for row in rows)
    assert doing[:4] == [
        "run demo: branch main, step 0, head 0",
        "step 1: generating",
        "step 1: scoring",
        "step 1: aligning",
    ]

    assert len(header()) == len(line(rows[0]))
    write_summary(tmp_path / "summary.json", rows, heads, 1.0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary.keys() == {"steps", "heads", "seconds"}
    expected = {"reward", "vanilla_reward", "omega", "head", "verdict", "bt", "gre", "bytes_sent",
                "seconds", "accepted"}  # fmt: skip
    assert expected <= summary["steps"][0].keys()
    write_plot(tmp_path / "demo.png", rows)
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
