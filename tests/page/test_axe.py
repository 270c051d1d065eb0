"""axe-core finds nothing to complain about, in any state of the page, under the page's own content security policy."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.page.acting import start

WAYS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
    "small phone": {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True},
}


@pytest.fixture(params=WAYS)
def seen(request, visit, stream) -> Page:
    """The page, ready, seen in one of the ways, with live captions played by the test."""
    # Without fades: colours are compared as they end up.
    page = visit(prepare=stream.install, reduced_motion="reduce", **WAYS[request.param])
    page.locator("#start:enabled").wait_for()
    return page


def assert_accessible(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    # It did look: the page passes rules of every kind.
    passed = {rule["id"] for rule in found.response["passes"]}
    assert passed >= {"color-contrast", "button-name", "aria-valid-attr-value", "region"}


def talk(page: Page, stream) -> None:
    page.select_option("#language", "en")
    page.select_option("#target", "de")
    start(page, stream)
    stream.result(0, "Hello.", translation={"language": "de", "text": "Hallo.", "stable_chars": 6})
    stream.result(1, "How are", stable=4, translation={"language": "de", "text": "Wie geht", "stable_chars": 4})
    expect(page.locator("#interim .translation")).to_have_text("Wie geht")


def test_the_idle_page(seen):
    assert_accessible(seen)


def test_live_captions(seen, stream):
    talk(seen, stream)
    assert_accessible(seen)


def test_a_fatal_error(seen, stream):
    talk(seen, stream)
    stream.say({"type": "error", "code": "idle", "message": "Nothing was heard for 60 s.", "fatal": True})
    expect(seen.get_by_role("button", name="Try again")).to_be_visible()
    assert_accessible(seen)


def test_a_lost_connection(seen, stream):
    talk(seen, stream)
    stream.refuse = True
    stream.connections[-1].close(code=1011)
    expect(seen.get_by_role("button", name="Try now")).to_be_visible()
    assert_accessible(seen)


def test_a_recording_and_its_translation(seen, samples):
    seen.select_option("#language", "en")
    seen.select_option("#target", "de")
    seen.set_input_files("#picker", samples["en"]["path"])
    seen.locator("#log .translation").first.wait_for()
    expect(seen.locator("#status")).to_have_text("Ready")
    assert_accessible(seen)
    seen.click("#download")
    expect(seen.locator("#export")).to_be_visible()
    assert_accessible(seen)


def test_a_recording_on_its_way(seen, samples):
    seen.route("**/transcribe", lambda route: None)
    with seen.expect_request("**/transcribe"):
        seen.set_input_files("#picker", samples["en"]["path"])
    expect(seen.locator("#file-progress")).to_be_visible()
    assert_accessible(seen)


def test_the_settings(seen):
    seen.click("#help")
    expect(seen.locator("#keys")).to_be_visible()
    assert_accessible(seen)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_that_did_not_load(visit, scheme):
    page = visit(
        may_fail=True,
        prepare=lambda page: page.route("**/main.js", lambda route: route.fulfill(status=500)),
        color_scheme=scheme,
        reduced_motion="reduce",
    )
    expect(page.locator("#failed")).to_be_visible()
    assert_accessible(page)


def test_a_page_that_needs_a_key(visit):
    refuse = '{"error": {"message": "no"}}'
    page = visit(
        prepare=lambda page: page.route("**/capabilities", lambda route: route.fulfill(status=401, body=refuse)),
        reduced_motion="reduce",
    )
    expect(page.get_by_role("textbox", name="API key")).to_be_visible()
    assert_accessible(page)
