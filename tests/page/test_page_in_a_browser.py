"""The live page in Chromium, against a real server: what it says, and what its buttons do."""

import contextlib
import os
import shutil

import pytest
from support.rollouts import WIDTH_P, groups, labelled
from support.serving import running

from r2m_client import Client

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: '.[browser]'")
CHROMIUM = os.environ.get("R2M_TEST_CHROMIUM") or shutil.which("chromium")

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium (R2M_TEST_CHROMIUM)")

METHOD = {"width": 16, "learning_rate": 3e-3, "gate": {"spread_max": 3.0}}
CONTROLS = ["shuffled", "backbone", "none"]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        one = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture
def server(reward_model, tmp_path):
    """A run of six steps, rolled back to the fourth and gone on; and one that has no step."""
    with (
        running(reward_model, tmp_path / "state") as one,
        Client(one.urls["grpc"], wire_dtype="float32") as client,
    ):
        client.create_run("empty", policy_hidden_size=WIDTH_P, method=METHOD)
        client.create_run("tldr", policy_hidden_size=WIDTH_P, method=METHOD)
        for step in range(1, 7):
            client.align("tldr", step=step, groups=groups(step))
        client.rollback("tldr", to_step=4, reason="looked hacked")
        client.align("tldr", step=5, groups=groups(50))
        one.client = client
        yield one


@pytest.fixture
def page(browser, server, request):
    errors = []
    shown = browser.new_page(viewport={"width": 1280, "height": 1000})
    shown.on("pageerror", lambda error: errors.append(str(error)))
    # A refused call shows as an error of the network, which is the page's to tell.
    shown.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    shown.goto(f"{server.urls['http']}/#tldr")
    sync_api.expect(shown.locator("#lineage circle").first).to_be_visible()
    shown.errors = errors
    yield shown
    shown.close()


def expect(page, selector, text):
    sync_api.expect(page.locator(selector)).to_contain_text(text, timeout=15_000)


def confirm(page, answer, text=None):
    if text is not None:
        page.locator("#ask-input").fill(text)
    page.locator("#ask-yes" if answer else "#ask button[value=no]").click()


def test_it_says_how_things_stand(page, server):
    run = server.client.run("tldr")
    expect(page, "#health", "ready")
    expect(page, "#tiles", f"head {run.head}")
    expect(page, "#tiles", "on b1")
    expect(page, "#tiles", "1 of 1 accepted")
    expect(page, "#tiles", "version 0")
    assert page.locator("#charts canvas").count() == 4
    heads = server.client.heads("tldr")
    assert page.locator("#lineage circle").count() == len(heads)
    assert page.locator("circle.live").get_attribute("data-head") == str(run.head)
    page.locator("circle[data-head='2']").click()
    expect(page, "#head", heads[2].reason)
    page.locator("#runs button", has_text="empty").click()
    expect(page, "#tiles", "no step yet")
    expect(page, "#name", "empty")
    assert page.errors == []


def test_a_new_step_shows_by_itself(page, server):
    made = server.client.align("tldr", step=6, groups=groups(60))
    expect(page, "#tiles", f"head {made.head}")
    sync_api.expect(page.locator(f"circle[data-head='{made.head}']")).to_be_visible()
    assert page.errors == []


def test_whether_feedback_pays(browser, server, tmp_path):
    """A run with controls says it in a tile and a chart; one without says nothing of it."""
    rate = METHOD["learning_rate"]
    method = {"profile": "labelled", "width": 16, "learning_rate": rate, "controls": CONTROLS}
    server.client.create_run("watched", policy_hidden_size=WIDTH_P, method=method)
    for step in range(1, 13):
        answer = server.client.align("watched", step=step, groups=labelled(step))
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.goto(f"{server.urls['http']}/#watched")
    expect(page, "#tiles", "Does feedback pay?")
    for arm in answer.controls.arms:
        expect(page, "#tiles", f"less {arm.control}: ")
        expect(page, "#tiles", f"on 36 labels, {arm.verdict.replace('_', ' ')}")
    chart = page.locator(".chart", has_text="live less each control")
    sync_api.expect(chart.locator("canvas")).to_be_visible()
    # The profile's gate has no bounds, so nobody measures drift.
    expect(page, "#charts", "not measured")
    picture = tmp_path / "controls.png"
    page.screenshot(path=picture, full_page=True)
    print(picture)
    page.locator("#runs button", has_text="tldr").click()
    sync_api.expect(page.locator("#charts canvas")).to_have_count(4)
    sync_api.expect(chart).to_have_count(0)
    sync_api.expect(page.locator("#tiles")).not_to_contain_text("Does feedback pay?")
    page.close()


def test_nothing_is_done_without_a_yes(page, server):
    before = server.client.run("tldr")
    page.locator("#freeze").click()
    confirm(page, False, "never mind")
    page.locator("circle[data-head='5']").click()
    page.locator("#head button", has_text="Roll back").click()
    confirm(page, False)
    after = server.client.run("tldr")
    assert (after.frozen, after.head, after.branch) == (None, before.head, before.branch)


def test_freeze_and_lift(page, server):
    page.locator("#freeze").click()
    confirm(page, True, "the judge is on holiday")
    expect(page, "#tiles", "frozen")
    expect(page, "#freeze", "Lift the freeze")
    assert server.client.run("tldr").frozen == "the judge is on holiday"
    page.locator("#freeze").click()
    confirm(page, True)
    expect(page, "#freeze", "Freeze…")
    assert server.client.run("tldr").frozen is None


def test_roll_back_and_alias(page, server):
    page.locator("circle[data-head='5']").click()
    page.locator("#head button", has_text="alias").click()
    confirm(page, True, "best")
    expect(page, "#head", "best")
    page.locator("#head button", has_text="Roll back").click()
    confirm(page, True, "back to the best")
    expect(page, "#tiles", "no step yet on b2")
    run = server.client.run("tldr")
    assert (run.head, run.branch, run.aliases["best"]) == (5, "b2", 5)
    assert server.client.changes("tldr")[-1].reason == "back to the best"


def test_what_the_server_refuses_is_said(page, server):
    page.locator("circle[data-head='5']").click()
    page.locator("#head button", has_text="alias").click()
    confirm(page, True, "live")
    expect(page, "#trouble", "live")
    assert server.client.run("tldr").head != 5


def test_a_server_that_is_gone(browser, reward_model, tmp_path):
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(reward_model, tmp_path / "state"))
        page = browser.new_page()
        page.goto(server.urls["http"])
        expect(page, "#none", "No run yet")
        stack.close()
        expect(page, "#health", "no answer")
        expect(page, "#trouble", "cannot be reached")
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420])
def test_it_fits(browser, server, scheme, width, tmp_path):
    """Nothing is wider than the window. The pictures are for people: `-s` says where they are."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(f"{server.urls['http']}/#tldr")
    sync_api.expect(page.locator("#charts canvas").first).to_be_visible()
    picture = tmp_path / f"{scheme}-{width}.png"
    page.screenshot(path=picture, full_page=True)
    print(picture)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(16, 18, 22)") == (scheme == "dark")
    page.close()
