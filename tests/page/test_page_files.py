"""The live page's files: all there, from here alone, and asking only for what the server has."""

import re
from importlib.resources import files

import httpx
import pytest
from support.serving import running

PAGE = files("r2m_service") / "page"
VENDOR = {"page/vendor/uplot.js", "page/vendor/uplot.css"}
OWN = sorted(one.name for one in PAGE.iterdir() if one.is_file())


@pytest.fixture(scope="module")
def url(reward_model, tmp_path_factory):
    with running(reward_model, tmp_path_factory.mktemp("state")) as server:
        yield server.urls["http"]


def test_the_page_and_all_it_names_are_served(url):
    index = httpx.get(f"{url}/")
    assert index.status_code == 200
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    named = re.findall(r'(?:href|src)="([^"]+)"', index.text)
    named += [f"page/{name}" for name in re.findall(r'from "\./([^"]+)"', scripts())]
    assert {f"page/{name}" for name in OWN} == {*named} - VENDOR | {"page/index.html"}
    for name in named:
        answer = httpx.get(f"{url}/{name}")
        assert answer.status_code == 200, name
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fsettings.py", "../settings.py", "vendor"])
def test_nothing_else_is(url, name):
    answer = httpx.get(f"{url}/page/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("name", OWN)
def test_it_asks_nobody_else(name):
    elsewhere = re.findall(r"https?://[^\s\"'`)]+", text(name))
    assert set(elsewhere) <= {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in text(name)  # what a run is called is text, not markup


def test_it_asks_for_what_the_server_has(url):
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    asked = set(re.findall(r'ask\("([^"]+)"', scripts()))
    asked |= {f"v1/runs/{{run}}{rest}" for rest in re.findall(r'at\([^,()]+, "(/\w+)"', scripts())}
    assert {"readyz", "v1/server", "v1/runs"} <= asked
    assert {f"v1/runs/{{run}}/{rest}" for rest in ("heads", "changes", "rollback")} <= asked
    assert {f"/{one}" for one in asked} <= set(paths)


def scripts():
    return "".join(text(name) for name in OWN if name.endswith(".js"))


def text(name):
    return (PAGE / name).read_text()
