"""The live page in Chromium, against a real server: what it says, and what its buttons do."""

import contextlib
import os
import re
import shutil

import pytest
from support.rollouts import WIDTH_P, groups, labelled
from support.serving import running

from r2m_client import Client
from r2m_service.access.keyfile import KeyFile
from r2m_service.domain.access import Scope
from r2m_service.transports.access import Gate

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: '.[browser]'")
CHROMIUM = os.environ.get("R2M_TEST_CHROMIUM") or shutil.which("chromium")

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium (R2M_TEST_CHROMIUM)")

METHOD = {"width": 16, "learning_rate": 3e-3, "gate": {"spread_max": 3.0}}
NO_BOUNDS = {"spread_min": None, "spread_max": None, "rank_correlation_min": None}
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
    page.locator("#ask-yes" if answer else "#ask-no").click()


def test_it_says_how_things_stand(page, server):
    run = server.client.run("tldr")
    expect(page, "#health", "ready")
    expect(page, "#tiles", f"head {run.head}")
    expect(page, "#tiles", "on b1")
    expect(page, "#tiles", "1 of 1 accepted")
    expect(page, "#tiles", "version 0")
    assert page.locator("#charts canvas").count() == 5
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
    sync_api.expect(page.locator("#charts canvas")).to_have_count(5)
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


def opens(page, what):
    """Open one of the page's dialogs; whether the run changed is asked of the server."""
    if what == "freeze":
        page.locator("#freeze").click()
        return
    page.locator("circle[data-head='5']").click()
    page.locator("#head button", has_text="Roll back" if what == "rollback" else "alias").click()


@pytest.mark.parametrize("what", ["freeze", "rollback", "alias"])
def test_enter_confirms_what_was_typed_and_no_less(page, server, what):
    trail = server.client.changes("tldr")
    dialog = page.locator("#ask")
    opens(page, what)
    page.keyboard.press("Enter")  # nothing was typed: nothing is confirmed
    page.keyboard.type("   ")
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    page.keyboard.type("typed")
    page.keyboard.press("Escape")
    sync_api.expect(dialog).to_be_hidden()
    assert server.client.changes("tldr") == trail
    opens(page, what)
    page.keyboard.type("typed")  # into the first field, which has the focus
    page.keyboard.press("Enter")
    expect(page, "#changes tr:first-child", "typed")
    (made,) = server.client.changes("tldr")[len(trail) :]
    assert made.what == ("frozen" if what == "freeze" else what)
    assert (made.reason or made.detail["alias"]) == "typed"
    assert page.errors == []


@pytest.fixture
def guarded(reward_model, tmp_path):
    """A server with keys, and the text of an admin's."""
    keys = KeyFile(tmp_path / "keys.json")
    _, text = keys.create("boss", Scope.ADMIN)
    with running(reward_model, tmp_path / "state", gate=Gate(keys)) as server:
        with Client(server.urls["http"], api_key=text) as client:
            client.create_run("tldr", feedback="none", method=METHOD)
        yield server.urls["http"], text


def test_a_key_is_asked_for_in_place(browser, guarded):
    url, key = guarded
    page = browser.new_page()
    page.goto(url)
    expect(page, "#sign-in", "API key")
    for absent in ("#trouble", "#runs", "#load"):
        sync_api.expect(page.locator(absent)).to_be_hidden()
    page.keyboard.type("r2m_00000000_wrong")  # the field has the focus
    page.keyboard.press("Enter")
    expect(page, "#sign-in", "the API key is none of this server's")
    page.locator("#key").fill(key)
    page.wait_for_timeout(4500)  # two looks at the server leave what was typed
    page.keyboard.press("Enter")
    expect(page, "#name", "tldr")
    sync_api.expect(page.locator("#sign-in")).to_be_hidden()
    expect(page, "#model", "float32")
    page.locator("#freeze").click()
    page.keyboard.type("a look at the labels")
    page.keyboard.press("Enter")
    cells = page.locator("#changes tr:first-child td")
    sync_api.expect(cells).to_have_text(
        [re.compile(r"\d"), "frozen", "boss", "a look at the labels"], timeout=15_000
    )
    page.close()


def test_runs_newest_first_found_and_archived_apart(browser, server):
    for name in ("later", "gone", "newest"):
        server.client.create_run(name, feedback="none", method=METHOD)
    server.client.archive_run("gone")
    page = browser.new_page()
    page.goto(server.urls["http"])
    expect(page, "#name", "newest")
    names = page.locator("#runs button")
    sync_api.expect(names).to_have_text(
        [re.compile(f"^{one}step") for one in ("newest", "later", "tldr", "empty")]
    )
    expect(page, "#archived", "Archived (1)")
    sync_api.expect(page.locator("#archived button")).to_be_hidden()
    page.locator("#search").fill("NE")
    sync_api.expect(names).to_have_text([re.compile("^newest")])
    sync_api.expect(page.locator("#archived button")).to_be_visible()
    page.locator("#archived button").click()
    expect(page, "#name", "gone (archived)")
    sync_api.expect(page.locator("#freeze")).to_be_hidden()
    page.locator("#search").fill("nothing of it")
    expect(page, "nav", "No run of this name")
    page.close()


def gated(server, steps, **gate):
    """A run whose gate is what is given; its answers."""
    method = {**METHOD, "gate": {**NO_BOUNDS, "freeze_after": 100, **gate}}
    server.client.create_run("gated", policy_hidden_size=WIDTH_P, method=method)
    return [server.client.align("gated", step=n, groups=groups(n)) for n in range(1, steps + 1)]


def test_the_gates_bounds_are_the_runs_own(browser, server):
    gated(server, 4, spread_min=0.25, spread_max=4.5, rank_correlation_min=-0.5)
    page = browser.new_page()
    page.goto(f"{server.urls['http']}/#gated")
    spread = page.locator(".chart", has=page.locator("h3", has_text="Spread ratio"))
    rank = page.locator(".chart", has=page.locator("h3", has_text="Rank correlation"))
    sync_api.expect(spread.locator("h3")).to_contain_text("≥ 0.25, ≤ 4.5")
    sync_api.expect(rank.locator("h3")).to_contain_text("≥ -0.5")
    low, high = (spread.locator(f".bound[data-limit='{limit}']") for limit in (0.25, 4.5))
    sync_api.expect(rank.locator(".bound")).to_have_count(1)
    plot = spread.locator(".u-over").bounding_box()
    tops = [line.bounding_box()["y"] for line in (high, low)]
    # Both lie within the plot, where the axis has them: 4.5 is 18 times as high above 0 as 0.25.
    assert plot["y"] < tops[0] < tops[1] < plot["y"] + plot["height"]
    server.client.update_run("gated", {"gate": {"spread_max": 3, "rank_correlation_min": None}})
    sync_api.expect(spread.locator("h3")).to_contain_text("≥ 0.25, ≤ 3", timeout=15_000)
    sync_api.expect(rank.locator(".bound")).to_have_count(0)
    page.close()


def test_a_candidates_drift_is_not_the_live_heads(browser, server):
    """Every candidate is rejected: live is version 0, whose drift no step has measured."""
    answers = gated(server, 3, rank_correlation_min=0.99999)
    assert [one.verdict for one in answers] == ["rejected"] * 3
    page = browser.new_page()
    page.goto(f"{server.urls['http']}/#gated")
    tile = page.locator(".tile", has_text="Drift of the live head")
    sync_api.expect(tile.locator("b")).to_have_text("not measured")
    sync_api.expect(tile).to_contain_text(
        f"rejected candidate, head 3: spread {answers[-1].drift.spread_ratio:.3g} × head 0"
    )
    chart = page.locator(".chart", has_text="Spread ratio")
    sync_api.expect(chart.locator(".u-legend")).to_contain_text("not accepted")
    sync_api.expect(chart.locator(".u-legend")).not_to_contain_text("went live")
    page.close()


def test_charts_follow_the_branch_that_was_left(page):
    """b2 left main at step 3: b1, which left it at step 2 and has newer heads, is no part of it."""
    branch = [
        {"branch": "main"},
        {"branch": "b1", "origin_branch": "main", "origin_step": 2},
        {"branch": "b2", "origin_branch": "main", "origin_step": 3},
    ]
    lines = {"main": [1, 2, 3, 4], "b1": [3, 4], "b2": [4]}
    heads = [{"branch": one, "step": n} for one, steps in lines.items() for n in steps]
    found = page.evaluate(
        "async (given) => (await import('/page/lineage.js')).path(...given)",
        [{"branch": "b2", "branches": branch}, heads],
    )
    assert [(one["branch"], one["step"]) for one in found] == [
        ("main", 1), ("main", 2), ("main", 3), ("b2", 4),
    ]  # fmt: skip


@pytest.mark.parametrize("zoom", [1, 2])
def test_the_branches_names_stay_in_view(browser, server, zoom):
    for step in range(6, 40):
        server.client.align("tldr", step=step, groups=groups(step, count=1))
    page = browser.new_page(
        viewport={"width": 700 // zoom, "height": 700}, device_scale_factor=zoom
    )
    page.goto(f"{server.urls['http']}/#tldr")
    place = page.locator("#lineage")
    sync_api.expect(place.locator("circle").last).to_be_visible()
    # The newest heads are in view: the place has scrolled.
    assert place.evaluate("one => one.scrollLeft") > 100
    for name in ("main", "b1"):
        label, box = place.get_by_text(name, exact=True).bounding_box(), place.bounding_box()
        assert box["x"] <= label["x"] < box["x"] + 60
    page.close()


def test_a_look_at_the_server_keeps_the_focus(page, server):
    page.locator("circle[data-head='3']").focus()
    server.client.align("tldr", step=6, groups=groups(60))
    expect(page, "#tiles", "step 6 of 6")
    assert page.evaluate("document.activeElement.dataset.head") == "3"
    page.locator("#runs button", has_text="empty").focus()
    server.client.align("tldr", step=7, groups=groups(61))
    expect(page, "#runs", "step 7")
    assert page.evaluate("document.activeElement.firstChild.data") == "empty"
    assert page.errors == []


def test_freeze_and_lift(page, server):
    page.locator("#freeze").click()
    confirm(page, True, "the judge is on holiday")
    expect(page, "#tiles", "frozen")
    expect(page, "#freeze", "Lift the freeze")
    assert server.client.run("tldr").frozen == "the judge is on holiday"
    page.locator("#freeze").click()
    confirm(page, True, "it is back")
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
    expect(page, "#changes tr:first-child", "back to the best")
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
