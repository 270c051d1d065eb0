"""What the page does when something goes wrong: refusals, no microphone, a server that is not ready."""

import pytest
from playwright.sync_api import Page, Route, expect

from tests.page.acting import capabilities, listened, start


def test_a_fatal_error_ends_listening_in_the_servers_words_and_can_be_tried_again(faked, stream):
    for step in ("Dismiss", "Try again"):
        start(faked, stream)
        stream.say({"type": "error", "code": "too_many_sessions", "message": "All 8 sessions are used.", "fatal": True})
        expect(faked.get_by_role("alert")).to_have_text("All 8 sessions are used.")
        expect(faked.locator("#start")).to_have_text("Start")
        faked.get_by_role("button", name=step).click()
        expect(faked.locator("#notice")).to_be_hidden()
        expect(faked.locator("#start")).to_be_focused()
    expect(faked.locator("#status")).to_have_text("Listening")


@pytest.mark.parametrize("code", ["model_loading", "stopping"])
def test_an_error_that_passes_by_itself_is_waited_out(faked, stream, code):
    start(faked, stream)
    listened(faked, seconds=1)
    stream.sound.clear()
    stream.say({"type": "error", "code": code, "message": "Not now.", "fatal": True})
    expect(faked.locator("#status")).to_have_text("Reconnecting; what you say is kept")
    expect(faked.locator("#status")).to_have_text("Listening")
    expect(faked.locator("#notice")).to_be_hidden()
    assert len(stream.connections) == 2


def test_the_notice_that_nothing_is_heard_goes_when_something_is(visit, stream):
    def prepare(page: Page) -> None:
        stream.install(page)
        page.add_init_script(
            """
            navigator.mediaDevices.getUserMedia = async () => {
                const context = new AudioContext();
                const tone = new OscillatorNode(context);
                window.volume = new GainNode(context, { gain: 0 });
                const microphone = new MediaStreamAudioDestinationNode(context);
                tone.connect(volume).connect(microphone);
                tone.start();
                return microphone.stream;
            };
            """
        )

    page = visit(prepare=prepare)
    page.locator("#start:enabled").wait_for()
    start(page, stream)
    notice = page.get_by_role("alert")
    expect(notice).to_contain_text("Nothing can be heard.")
    page.evaluate("() => { volume.gain.value = 0.5; }")
    expect(notice).to_be_hidden()
    page.evaluate("() => { volume.gain.value = 0; }")
    expect(notice).to_contain_text("Nothing can be heard.")
    # Another notice stays when something is heard.
    stream.say({"type": "error", "code": "loop", "message": "A part was left out.", "fatal": False})
    expect(notice).to_have_text("A part was left out.")
    page.evaluate("() => { volume.gain.value = 0.5; }")
    page.locator("#meter:not([aria-valuenow='0'])").wait_for()
    expect(notice).to_have_text("A part was left out.")


def test_an_error_that_is_not_fatal_is_shown_and_listening_continues(faked, stream):
    start(faked, stream)
    stream.say({"type": "error", "code": "loop", "message": "A part was left out.", "fatal": False})
    expect(faked.get_by_role("alert")).to_have_text("A part was left out.")
    expect(faked.locator("#start")).to_have_text("Stop")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NotAllowedError", "may not use the microphone"),
        ("NotFoundError", "No microphone was found"),
        ("NotReadableError", "in use by another program"),
    ],
)
def test_a_microphone_that_cannot_be_opened_is_explained(page, name, words):
    page.evaluate(
        "(name) => { navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', name); }; }", name
    )
    page.keyboard.press("Space")
    expect(page.get_by_role("alert")).to_contain_text(words)
    expect(page.locator("#start")).to_be_enabled()
    page.evaluate("() => { delete navigator.mediaDevices.getUserMedia; }")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#status")).to_have_text("Listening")
    expect(page.locator("#notice")).to_be_hidden()


def test_it_waits_for_the_model_and_for_the_server(visit):
    asked: list[Route] = []
    # Playwright sets an attribute of a handler, which `asked.append` cannot have.
    page = visit(prepare=lambda page: page.route("**/capabilities", lambda route: asked.append(route)))

    def next_request() -> Route:
        while not asked:
            page.wait_for_timeout(20)
        return asked.pop(0)

    notice = page.get_by_role("alert")
    next_request().abort()
    expect(notice).to_have_text("The server does not answer. The page keeps trying.")
    expect(page.locator("#status")).to_have_text("Waiting for the server")
    next_request().fulfill(status=503, body='{"error": {"code": "model_loading", "message": "m"}}')
    expect(page.locator("#status")).to_have_text("Loading the model")
    expect(notice).to_be_hidden()
    next_request().fulfill(status=500, body="<h1>Oops</h1>")
    expect(notice).to_have_text("The server answered with status 500. The page keeps trying.")
    next_request().fulfill(status=503, body='{"error": {"code": "model_failed", "message": "No such model."}}')
    expect(notice).to_have_text("No such model. The page keeps trying.")
    page.get_by_role("button", name="Try now").click()
    next_request().fulfill(body=capabilities())
    expect(page.locator("#status")).to_have_text("Ready")
    expect(notice).to_be_hidden()


def test_a_key_is_asked_for_and_sent(visit, stream):
    sent = []

    def answer(route) -> None:
        sent.append(route.request.headers.get("authorization"))
        known = sent[-1] == "Bearer right-key"
        route.fulfill(status=200 if known else 401, body=capabilities() if known else '{"error": {"message": "no"}}')

    page = visit(prepare=lambda page: page.route("**/capabilities", answer))
    for key in ("wrong-key", "right-key"):
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Ready")
    assert sent == [None, "Bearer wrong-key", "Bearer right-key"]


def test_a_recording_that_is_too_large_is_not_sent(visit):
    page = visit(prepare=lambda page: page.route("**/capabilities", lambda route: route.fulfill(body=capabilities())))
    page.locator("#start:enabled").wait_for()
    page.set_input_files("#picker", {"name": "long.wav", "mimeType": "audio/wav", "buffer": bytes(1_000_001)})
    expect(page.get_by_role("alert")).to_contain_text("larger than 1 MB")
    with page.expect_file_chooser():
        page.get_by_role("alert").locator("..").get_by_role("button", name="Open a file").click()


def test_a_recording_that_failed_on_the_way_can_be_sent_again(page, samples):
    page.route("**/transcribe", lambda route: route.abort())
    page.set_input_files("#picker", samples["en"]["path"])
    expect(page.get_by_role("alert")).to_have_text("en.flac: The connection was lost. Is the server still running?")
    page.unroute("**/transcribe")
    page.get_by_role("button", name="Try again").click()
    page.locator("#log .line").filter(has_text=samples["en"]["text"].split()[-1]).wait_for()
    expect(page.locator("#notice")).to_be_hidden()


def test_a_recording_is_sent_again_with_another_key(page, samples):
    refusal = '{"error": {"code": "invalid_api_key", "message": "This key is not known."}}'
    page.route("**/transcribe", lambda route: route.fulfill(status=401, body=refusal))
    page.set_input_files("#picker", samples["en"]["path"])
    page.get_by_role("button", name="Enter a key").click()
    page.get_by_role("textbox", name="API key").fill("another-key")
    page.unroute("**/transcribe")
    with page.expect_request("**/transcribe") as sent:
        page.keyboard.press("Enter")
    assert sent.value.headers["authorization"] == "Bearer another-key"
    page.locator("#log .line").first.wait_for()


# --- Escape


@pytest.mark.parametrize("place", ["body", "#language", "#copy", "#notice-close"])
def test_escape_ends_the_session_at_once_from_anywhere(faked, stream, place):
    start(faked, stream)
    stream.result(0, "Hello.")
    stream.say({"type": "error", "code": "loop", "message": "A part was left out.", "fatal": False})
    faked.locator("#notice").wait_for()
    faked.focus(place)
    faked.keyboard.press("Escape")
    expect(faked.locator("#start")).to_have_text("Start")
    expect(faked.locator("#status")).to_have_text("Ready")
    expect(faked.locator("#notice")).to_be_hidden()
    assert stream.stopped == 1


def test_a_second_escape_does_not_wait_for_the_last_words(faked, stream):
    start(faked, stream)
    stream.result(0, "Half a sent", stable=4)
    expect(faked.locator("#interim .line")).to_have_count(1)
    stream.ignore_stop = True
    faked.keyboard.press("Escape")
    expect(faked.locator("#status")).to_have_text("Writing the last words")
    faked.keyboard.press("Escape")
    expect(faked.locator("#status")).to_have_text("Ready")
    expect(faked.locator("#log .text")).to_have_text("Half a sent")


def test_escape_ends_a_session_without_a_connection(faked, stream):
    stream.refuse = True
    faked.keyboard.press("Space")
    faked.locator("#notice").wait_for()
    faked.keyboard.press("Escape")
    expect(faked.locator("#status")).to_have_text("Writing the last words")
    faked.keyboard.press("Escape")
    expect(faked.locator("#status")).to_have_text("Ready")
    expect(faked.locator("#start")).to_have_text("Start")


def test_escape_ends_waiting_for_the_microphone(faked, stream):
    faked.evaluate(
        """() => {
            const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
            navigator.mediaDevices.getUserMedia = async (wanted) => {
                await new Promise((resolve) => { window.allow = resolve; });
                return window.opened = await open(wanted);
            };
        }"""
    )
    faked.keyboard.press("Space")
    expect(faked.locator("#status")).to_have_text("Waiting for the microphone")
    faked.wait_for_function("() => window.allow")
    faked.keyboard.press("Escape")
    expect(faked.locator("#status")).to_have_text("Ready")
    # Allowed too late, the microphone is closed again.
    faked.evaluate("() => allow()")
    faked.wait_for_function("() => window.opened?.getTracks().every((track) => track.readyState === 'ended')")
    expect(faked.locator("#start")).to_have_text("Start")
    assert stream.connections == []
