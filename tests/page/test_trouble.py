"""What the page does when something goes wrong: refusals, no microphone, a server that is not ready."""

import pytest
from playwright.sync_api import expect

from tests.page.acting import capabilities, start


def test_a_fatal_error_ends_listening_in_the_servers_words(faked, stream):
    start(faked, stream)
    stream.say({"type": "error", "code": "too_many_sessions", "message": "All 8 sessions are in use.", "fatal": True})
    expect(faked.get_by_role("alert")).to_have_text("All 8 sessions are in use.")
    expect(faked.locator("#start")).to_have_text("Start")
    faked.get_by_role("button", name="Dismiss").click()
    expect(faked.locator("#notice")).to_be_hidden()


def test_a_problem_that_is_not_fatal_is_told_and_listening_goes_on(faked, stream):
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
def test_a_microphone_that_cannot_be_had_is_explained(page, name, words):
    page.evaluate(
        "(name) => { navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', name); }; }", name
    )
    page.keyboard.press("Space")
    expect(page.get_by_role("alert")).to_contain_text(words)
    expect(page.locator("#start")).to_be_enabled()


def test_it_waits_for_the_model_and_for_the_server(visit):
    answers = [
        lambda route: route.abort(),
        lambda route: route.fulfill(status=503, body='{"error": {"code": "model_loading", "message": "m"}}'),
        lambda route: route.fulfill(status=500, body="<h1>Oops</h1>"),
        lambda route: route.fulfill(
            status=503, body='{"error": {"code": "model_failed", "message": "No such model."}}'
        ),
        lambda route: route.fulfill(body=capabilities()),
    ]
    page = visit(prepare=lambda page: page.route("**/capabilities", lambda route: answers.pop(0)(route)))
    notice = page.get_by_role("alert")
    expect(notice).to_have_text("The server does not answer. The page keeps trying.")
    expect(page.locator("#status")).to_have_text("Waiting for the server")
    expect(page.locator("#status")).to_have_text("Loading the model")
    expect(notice).to_be_hidden()
    expect(notice).to_have_text("The server answered with status 500. The page keeps trying.")
    expect(notice).to_have_text("No such model. The page keeps trying.")
    page.get_by_role("button", name="Try now").click()
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
