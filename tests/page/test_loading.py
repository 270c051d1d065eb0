"""A page whose scripts fail: it says so, and offers to try again."""

import pytest
from playwright.sync_api import Page, Route, expect

FAILURES = {
    "is answered 500": lambda route: route.fulfill(status=500),
    "never arrives": lambda route: route.abort(),
    "cannot be parsed": lambda route: route.fulfill(body="const ;", content_type="text/javascript"),
    "throws": lambda route: route.fulfill(body="throw new Error('broken')", content_type="text/javascript"),
}


def try_again(page: Page, pattern: str) -> None:
    """Follow the link that the page offers, now that scripts load."""
    page.unroute(pattern)
    page.locator("#failed").get_by_role("link", name="Try again").click()
    expect(page.locator("#status")).to_have_text("Ready")
    expect(page.locator("#failed")).to_be_hidden()
    expect(page.locator("#start")).to_be_enabled()


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("script", ["main.js", "backlog.js"])
def test_the_page_says_so_when_a_script(visit, script, failure):
    pattern = f"**/static/{script}"
    page = visit(may_fail=True, prepare=lambda page: page.route(pattern, FAILURES[failure]))
    expect(page.locator("#failed [role=alert]")).to_contain_text("This page did not load completely.")
    expect(page.locator("#status")).to_have_text("Not loaded")
    expect(page.locator("#start")).to_be_disabled()
    try_again(page, pattern)


def test_the_page_says_so_when_no_script_loads_at_all(visit):
    pattern = "**/*.js"

    def prepare(page: Page) -> None:
        page.route(pattern, lambda route: route.abort())
        # The style sheet waits ten seconds before it says so; here, a tenth of one.
        client = page.context.new_cdp_session(page)
        client.send("Animation.enable")
        client.send("Animation.setPlaybackRate", {"playbackRate": 100})

    page = visit(may_fail=True, prepare=prepare)
    expect(page.locator("#failed")).to_be_visible()
    try_again(page, pattern)


def test_a_page_that_loads_slowly_is_not_called_broken(visit):
    waiting: list[Route] = []
    pattern = "**/static/main.js"
    page = visit(prepare=lambda page: page.route(pattern, lambda route: waiting.append(route)), wait_until="commit")
    expect(page.locator("#status")).to_have_text("Loading")
    expect(page.locator("#failed")).to_be_hidden()
    expect(page.locator("#welcome")).to_be_visible()
    waiting.pop().continue_()
    expect(page.locator("#status")).to_have_text("Ready")


def test_an_error_later_on_is_named_and_keeps_the_text(visit, stream):
    page = visit(may_fail=True, prepare=stream.install)
    page.locator("#start:enabled").wait_for()
    page.keyboard.press("Space")
    expect(page.locator("#status")).to_have_text("Listening")
    stream.result(0, "Hello.")
    expect(page.locator("#log .text")).to_have_text("Hello.")
    page.evaluate("() => { setTimeout(() => { throw new Error('No such thing'); }); }")
    expect(page.locator("#notice [role=alert]")).to_contain_text("failed: No such thing.")
    expect(page.locator("#log .text")).to_have_text("Hello.")
    expect(page.locator("#status")).to_have_text("Listening · English")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#start")).to_have_text("Start")
    with page.expect_navigation():
        page.get_by_role("button", name="Reload").click()
    expect(page.locator("#status")).to_have_text("Ready")
