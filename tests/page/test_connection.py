"""A slow, refused or lost connection: the page keeps what is said, says what happened and offers to try again."""

import time
from contextlib import ExitStack
from urllib.parse import urlsplit

from playwright.sync_api import Page, WebSocketRoute, expect

from tests.page.acting import listened, start, try_now
from tests.page.conftest import served
from tests.page.test_live import errors, words

# --- while the connection is being made


def test_the_first_words_are_not_lost_while_the_connection_is_being_made(visit, microphone, samples):
    sample = samples["en"]
    held: list[tuple[WebSocketRoute, str | bytes]] = []
    is_slow = True

    def slow_to_be_ready(connection: WebSocketRoute) -> None:
        server = connection.connect_to_server()
        server.on_message(lambda message: held.append((connection, message)) if is_slow else connection.send(message))

    page = visit(microphone(sample["path"]), prepare=lambda page: page.route_web_socket("**/stream", slow_to_be_ready))
    page.select_option("#language", "en")
    page.click("#start")
    expect(page.locator("#status")).to_have_text("Connecting; what you say is kept")
    # The first sentence is over.
    listened(page, seconds=7)
    is_slow = False
    for connection, message in held:
        connection.send(message)
    lines = page.locator("#log .line")
    lines.filter(has_text=sample["text"].split()[-1]).wait_for()
    page.click("#start")
    expect(page.locator("#start")).to_have_text("Start")
    heard, said = words(" ".join(lines.locator(".text").all_inner_texts())), words(sample["text"])
    assert heard[:2] == said[:2]
    assert errors(heard, said) <= 0.15 * len(said), heard


def test_all_sound_of_a_slow_start_is_sent(faked, stream):
    stream.hold = True
    faked.keyboard.press("Space")
    listened(faked, seconds=6)
    assert stream.sound == []
    stream.ready()
    # Some seconds of silence later, it has caught up.
    listened(faked, seconds=8)
    faked.keyboard.press("Space")
    expect(faked.locator("#start")).to_have_text("Start")
    assert stream.seconds() >= 8


def test_the_microphone_opens_only_when_the_page_can_record(visit, stream):
    def prepare(page: Page) -> None:
        stream.install(page)
        page.add_init_script(
            """
            window.order = [];
            const load = Worklet.prototype.addModule;
            Worklet.prototype.addModule = async function (url) {
                await load.call(this, url);
                await new Promise((resolve) => setTimeout(resolve, 300));
                order.push("worklet");
            };
            const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
            navigator.mediaDevices.getUserMedia = (wanted) => (order.push("microphone"), open(wanted));
            """
        )

    page = visit(prepare=prepare)
    page.locator("#start:enabled").wait_for()
    start(page, stream)
    assert page.evaluate("() => order") == ["worklet", "microphone"]


def test_what_was_said_before_stop_is_transcribed_although_the_connection_came_later(faked, stream):
    stream.hold = True
    faked.keyboard.press("Space")
    listened(faked, seconds=1)
    faked.keyboard.press("Space")
    expect(faked.locator("#start")).to_have_text("Stopping")
    assert stream.stopped == 0
    stream.ignore_stop = True
    stream.ready()
    stream.result(0, "Hello.")
    stream.say({"type": "done", "duration": 1.0})
    expect(faked.locator("#start")).to_have_text("Start")
    expect(faked.locator("#log .text")).to_have_text("Hello.")
    assert stream.stopped == 1
    assert stream.seconds() >= 1


def test_a_server_that_is_never_ready_is_asked_again(visit, stream):
    stream.hold = True
    page = with_clock(visit, stream)
    page.keyboard.press("Space")
    listened(page, seconds=1)
    stream.hold = False
    page.clock.fast_forward(31_000)
    expect(page.locator("#status")).to_have_text("Listening")
    assert len(stream.connections) == 2
    page.keyboard.press("Space")
    expect(page.locator("#start")).to_have_text("Start")
    assert stream.seconds() >= 1


# --- no connection


def test_a_refused_connection_is_reported_and_tried_again(faked, stream):
    stream.refuse = True
    faked.keyboard.press("Space")
    expect(faked.get_by_role("alert")).to_have_text(
        "The live connection to the server failed. What you said is kept while the page tries again."
    )
    expect(faked.locator("#status")).to_have_text("Connecting; what you say is kept")
    try_now(faked, lambda: setattr(stream, "refuse", False))
    expect(faked.locator("#status")).to_have_text("Listening")
    expect(faked.locator("#notice")).to_be_hidden()


def test_the_notice_of_a_lost_connection_goes_when_it_is_back(faked, stream):
    start(faked, stream)
    stream.refuse = True
    stream.connections[-1].close(code=1011)
    expect(faked.get_by_role("alert")).to_contain_text("The live connection to the server failed.")
    expect(faked.locator("#status")).to_have_text("Reconnecting; what you say is kept")
    stream.refuse = False
    expect(faked.locator("#status")).to_have_text("Listening")
    expect(faked.locator("#notice")).to_be_hidden()


def test_a_new_key_is_asked_for_when_the_old_one_is_refused(visit, stream):
    page = visit(prepare=stream.install)
    page.locator("#start:enabled").wait_for()
    start(page, stream)
    refusal = '{"error": {"code": "invalid_api_key", "message": "This key is not known."}}'
    page.route("**/capabilities", lambda route: route.fulfill(status=401, body=refusal))
    stream.refuse = True
    stream.connections[-1].close(code=1006)
    expect(page.get_by_role("alert")).to_contain_text("This key is not known.")
    page.get_by_role("button", name="Enter a key").click()
    page.get_by_role("textbox", name="API key").fill("another-key")
    stream.refuse = False
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Listening")
    assert page.evaluate("() => sessionStorage.getItem('canary.key')") == "another-key"


def test_a_key_that_no_live_connection_can_carry_is_explained(page):
    page.evaluate("() => sessionStorage.setItem('canary.key', 'two words')")
    page.keyboard.press("Space")
    expect(page.get_by_role("alert")).to_contain_text("a character that browsers cannot send")
    expect(page.locator("#start")).to_have_text("Start")


def test_after_a_minute_without_a_connection_it_stops_and_offers_to_try_again(visit, stream):
    page = with_clock(visit, stream)
    start(page, stream)
    stream.result(0, "Half a sent", stable=4)
    expect(page.locator("#interim .line")).to_have_count(1)
    stream.refuse = True
    stream.connections[-1].close(code=1011)
    expect(page.locator("#status")).to_have_text("Reconnecting; what you say is kept")
    page.clock.fast_forward(61_000)
    expect(page.get_by_role("alert")).to_have_text("The connection to the server was lost.")
    expect(page.locator("#start")).to_have_text("Start")
    stream.refuse = False
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#status")).to_have_text("Listening")
    expect(page.locator("#notice")).to_be_hidden()


def test_a_server_that_stops_and_comes_back_continues_the_session(visit, microphone, samples):
    """The server's process ends in the middle of the first sentence. Nothing that is said is missing."""
    sample = samples["en"]
    with ExitStack() as first, ExitStack() as second:
        address = first.enter_context(served())
        page = visit(microphone(sample["path"]), at=address)
        page.locator("#start:enabled").wait_for()
        page.select_option("#language", "en")
        page.click("#start")
        page.locator("#interim .text").first.wait_for()
        first.close()
        expect(page.get_by_role("alert")).to_have_text(
            "The server does not answer. What you said is kept while the page tries again."
        )
        try_now(page, lambda: second.enter_context(served(port=urlsplit(address).port or 0)))
        lines = page.locator("#log .line")
        lines.filter(has_text=sample["text"].split()[-1]).wait_for()
        expect(page.locator("#notice")).to_be_hidden()
        page.click("#start")
        expect(page.locator("#start")).to_have_text("Start")
        heard, said = words(" ".join(lines.locator(".text").all_inner_texts())), words(sample["text"])
        assert errors(heard, said) <= 0.15 * len(said), heard


# --- a lost connection, and after


def test_after_a_lost_connection_the_sound_since_the_last_final_words_is_sent_again(faked, stream):
    start(faked, stream)
    listened(faked, seconds=1)
    stream.result(0, "Safe.", start=0.0, end=0.3)
    expect(faked.locator("#log .line")).to_have_count(1)
    stream.result(1, "Never fin", stable=5)
    expect(faked.locator("#interim .line")).to_have_count(1)
    stream.sound.clear()
    lost = time.monotonic()
    stream.connections[-1].close(code=1011, reason="oops")
    expect(faked.locator("#interim .line")).to_have_count(0)
    expect(faked.locator("#status")).to_have_text("Listening · English")
    assert len(stream.connections) == 2

    # From 0.3 s on: what was said before the connection was lost comes beside all that was said since.
    while stream.seconds() < time.monotonic() - lost + 0.3:
        assert time.monotonic() - lost < 30
        faked.wait_for_timeout(20)
    stream.result(0, "Said again.", start=0.9, end=1.5)
    expect(faked.locator("#log .text")).to_have_text(["Safe.", "Said again."])
    expect(faked.locator("#log time").nth(1)).to_have_text("0:01")


def test_a_connection_lost_while_the_last_words_are_written_is_made_again_for_them(faked, stream):
    start(faked, stream)
    listened(faked, seconds=1)
    stream.ignore_stop = True
    faked.keyboard.press("Space")
    expect(faked.locator("#status")).to_have_text("Writing the last words")
    stream.sound.clear()
    stream.ignore_stop = False
    stream.connections[-1].close(code=1011)
    expect(faked.locator("#status")).to_have_text("Ready")
    assert len(stream.connections) == 2
    assert stream.stopped == 2
    assert stream.seconds() >= 1


def test_the_last_words_are_not_waited_for_without_end(visit, stream):
    page = with_clock(visit, stream)
    start(page, stream)
    stream.result(0, "Half a sent", stable=4)
    stream.ignore_stop = True
    page.keyboard.press("Space")
    expect(page.locator("#status")).to_have_text("Writing the last words")
    page.clock.fast_forward(21_000)
    expect(page.get_by_role("alert")).to_have_text("The last words are missing: the server took too long.")
    expect(page.locator("#start")).to_have_text("Start")
    # What had come of them stays.
    expect(page.locator("#log .text")).to_have_text("Half a sent")


def with_clock(visit, stream) -> Page:
    """The page, ready, with a clock that tests move on, and with live captions played by the test."""

    def prepare(page: Page) -> None:
        stream.install(page)
        page.clock.install()

    page = visit(prepare=prepare)
    page.locator("#start:enabled").wait_for()
    return page
