"""docs/trainers.md on TRL and capture runs as it stands, and so does examples/trl_train.py."""

import inspect
import json
import pathlib
import re
import runpy

import pytest
import torch
from support.models import TEMPLATE, config, tokenizer
from support.serving import running
from transformers import AutoModelForCausalLM

from r2m_client import Client
from r2m_client.integrations.trl import R2M

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "trainers.md").read_text()

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL and what it imports, on their own future


@pytest.fixture(scope="module")
def url(reward_model, tmp_path_factory):
    with running(reward_model, tmp_path_factory.mktemp("state")) as server:
        yield server.urls["http"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config("llama")).save_pretrained(folder)
    template = TEMPLATE + "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    tokenizer(template=template).save_pretrained(folder)
    return folder


def example(name, url, policy):
    (code,) = re.findall(rf"<!-- example: {name} -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    for shown, real in (
        ("http://127.0.0.1:8080", url),
        ("Qwen/Qwen2.5-0.5B-Instruct", str(policy)),
        ("max_steps=20", "max_steps=2, use_cpu=True, bf16=False, report_to=[], disable_tqdm=True"),
        ("max_completion_length=64", "max_completion_length=8"),
        ("max_new_tokens=64", "max_new_tokens=8"),
    ):
        if shown in code:
            code = code.replace(shown, real)
    return compile(code, "docs/trainers.md", "exec")


def test_the_trl_example(url, policy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": [{"role": "user", "content": f"What is {n}?"}]} for n in range(8)]
    pathlib.Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = {}
    exec(example("trl", url, policy), names)
    with Client(url) as client:
        assert client.run("tldr").step == 2
    logged = {name for line in names["trainer"].state.log_history for name in line}
    page = PAGE.partition("\n## TRL\n")[2].partition("\n## ")[0]
    shown = {f"r2m/{name}" for name in re.findall(r"`r2m/([a-z_/]+)`", page)}
    shown |= {f"r2m/verdict/{name}" for name in re.findall(r"`…/([a-z]+)`", page)}
    assert {name for name in logged if name.startswith("r2m/")} == shown


@pytest.mark.parametrize("conversational", [True, False])
def test_the_online_dpo_example(url, policy, tmp_path, monkeypatch, conversational):
    monkeypatch.chdir(tmp_path)
    asked = [f"What is {n}?" for n in range(8)]
    rows = [
        {"prompt": [{"role": "user", "content": one}] if conversational else one} for one in asked
    ]
    pathlib.Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewarded = []

    def score(self, samples, **named):
        answer = original(self, samples, **named)
        rewarded.extend(answer.rewards)
        return answer

    original = Client.score
    monkeypatch.setattr(Client, "score", score)
    names = {}
    exec(example("online-dpo", url, policy), names)
    assert names["trainer"].state.global_step == 2
    assert len(rewarded) >= 4
    assert all(isinstance(one, float) for one in rewarded)


def test_the_capture_example(url, policy):
    names = {}
    exec(example("capture", url, policy), names)
    assert len(names["rewards"]) == 2
    assert None not in names["rewards"]


def test_every_setting_is_on_the_page():
    table = PAGE.split("### What it takes")[1].split("###")[0]
    cells = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    named = [(name.strip(" `"), default.strip(' `"')) for _, name, default, *_ in cells[1:]]
    parameters = list(inspect.signature(R2M).parameters.values())
    assert [name for name, _ in named] == [one.name for one in parameters]
    for (_, shown), one in zip(named, parameters, strict=True):
        real = f"{one.default:g}" if type(one.default) is float else str(one.default)
        assert shown in (real, "", "server's")


@pytest.mark.parametrize("trainer", ["grpo", "rloo"])
def test_the_script(url, policy, trainer, tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "examples" / "trl_train.py"))["main"]
    flags = ["--trainer", trainer, "--model", str(policy), "--run", f"script-{trainer}",
             "--tokens", "6", "--save-every", "1", "--out", str(tmp_path)]  # fmt: skip
    assert main([*flags, "--server", url, "--steps", "1"]) == 0
    assert main([*flags, "--server", url, "--steps", "2", "--resume"]) == 0
    with Client(url) as client:
        assert client.run(f"script-{trainer}").step == 2
    gone = ["--server", "http://127.0.0.1:9", "--patience", "0.3", "--steps", "3", "--resume"]
    assert main([*flags, *gone]) == 1
    assert "stopped at step 2: no rewards, so training stops" in capsys.readouterr().err
