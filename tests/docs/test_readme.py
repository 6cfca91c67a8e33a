"""The README's examples run as they stand."""

import json
import pathlib
import re
import shutil
import subprocess

import pytest
from support.serving import running

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture(scope="module")
def url(reward_model, tmp_path_factory):
    with running(reward_model, tmp_path_factory.mktemp("state")) as server:
        yield server.urls["http"]


def test_the_ten_lines_run(url, capsys):
    (code,) = re.findall(r"<!-- example: client -->\n```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 11
    exec(compile(code.replace("http://127.0.0.1:8080", url), "README.md", "exec"), {})
    rewards, answer = capsys.readouterr().out.strip().splitlines()
    assert len(json.loads(rewards)) == 4
    # A random model's rewards hardly differ, so the gate may well find the step too large.
    words = answer.split()
    assert (words[0], words[-1]) in {("accepted", "1"), ("rejected", "0")}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_line_runs(url):
    (code,) = re.findall(r"```\n(curl .*?)```", README, re.DOTALL)
    done = subprocess.run(
        code.replace("http://127.0.0.1:8080", url),
        shell=True, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    (score,) = json.loads(done.stdout)["scores"]
    assert score["reward"] == score["vanilla_reward"]


def test_what_the_readme_links_to_exists():
    root = pathlib.Path(__file__).parents[2]
    pages = [root / "README.md", *root.glob("docs/*.md"), root / "CONTRIBUTING.md"]
    for page in pages:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), (page, link)
