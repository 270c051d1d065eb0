"""What the page does with a server that behaves as the test says: states, keys, lost connections, refusals."""

import json
import re

import pytest
from playwright.sync_api import Page, expect

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


def capabilities(**more) -> str:
    languages = [
        {"code": "en", "name": "English", "targets": ["de", "fr"]},
        {"code": "de", "name": "German", "targets": ["en"]},
        {"code": "fr", "name": "French", "targets": ["en"]},
    ]
    return json.dumps({"model": "m", "languages": languages, "default_language": "en", "max_upload_mb": 1, **more})


def options(page: Page, menu: str) -> list[str]:
    return page.locator(f"{menu} option").evaluate_all("(options) => options.map((option) => option.value)")


def start(page: Page, stream) -> None:
    page.keyboard.press("Space")
    expect(page.locator("#status")).to_have_text("Listening")


# --- captions


def test_the_empty_page_says_what_to_do(page):
    words = "Press Start and speak, or drop a recording here, and read along."
    expect(page.locator("#invitation")).to_have_text(words, use_inner_text=True)
    expect(page.locator(".keys")).to_contain_text("Space")
    expect(page.locator("#status")).to_have_text("Ready")


def test_sound_is_sent_as_the_microphone_records_it(faked, stream):
    faked.select_option("#language", "de")
    faked.select_option("#target", "en")
    start(faked, stream)
    expect(faked.locator("#elapsed")).to_have_text("0:01")
    faked.keyboard.press("Space")
    expect(faked.locator("#start")).to_have_text("Start")

    rate = faked.evaluate("() => new AudioContext().sampleRate")
    wanted = {"type": "start", "encoding": "pcm_s16le", "sample_rate": rate, "language": "de", "target_language": "en"}
    assert stream.started == [wanted]
    # 16-bit samples in frames of 50 to 100 ms, more than a second of them
    assert {0.05 <= len(frame) / 2 / rate <= 0.1 for frame in stream.sound} == {True}
    assert sum(map(len, stream.sound)) / 2 / rate >= 1
    assert stream.stopped == 1


def test_of_a_silence_little_is_kept(page):
    kept = page.evaluate(
        """async () => {
            const { Backlog } = await import("/static/backlog.js");
            const backlog = new Backlog(1000);
            for (let i = 0; i < 200; i++) backlog.push(new Int16Array(1000));
            const lengths = [backlog.end - backlog.start];
            for (let i = 0; i < 90; i++) backlog.next();
            lengths.push(backlog.unsent);
            backlog.settle(197.5);
            lengths.push(backlog.end - backlog.start, backlog.rewind(), backlog.unsent);
            return lengths;
        }"""
    )
    # a minute and a half at most; all sent; from the frame on in which the settled part ends
    assert kept == [90, 0, 3, 197, 3]


def test_what_may_change_is_set_apart_and_only_what_is_final_is_read_out(faked, stream):
    start(faked, stream)
    stream.result(0, "My sister sees five", stable=9)
    expect(faked.locator("#interim .text")).to_have_text("My sister sees five")
    expect(faked.locator("#interim .tail")).to_have_text("sees five")
    expect(faked.locator("#interim")).to_have_attribute("aria-hidden", "true")
    assert faked.locator("#log .line").count() == 0

    stream.result(0, "My sister sees five dogs.", translation={"language": "de", "text": "Hunde!", "stable_chars": 6})
    line = faked.locator("#log[role=log][aria-live=polite] .line")
    expect(line.locator(".text[lang=en]")).to_have_text("My sister sees five dogs.")
    expect(line.locator(".translation[lang=de]")).to_have_text("Hunde!")
    expect(line.locator("time")).to_have_text("0:00")
    expect(faked.locator("#interim .line")).to_have_count(0)


def test_a_guess_that_comes_to_nothing_disappears(faked, stream):
    start(faked, stream)
    stream.result(0, "Hm", stable=0)
    expect(faked.locator("#interim .line")).to_have_count(1)
    stream.result(0, "")
    expect(faked.locator("#interim .line")).to_have_count(0)
    assert faked.locator("#log .line").count() == 0


def test_the_language_that_is_heard_is_told(faked, stream):
    start(faked, stream)
    stream.result(0, "Hallo", stable=0, language="de")
    expect(faked.locator("#status")).to_have_text("Listening · German")
    stream.result(1, "Hello", stable=0, language="en")
    expect(faked.locator("#status")).to_have_text("Listening · English")


def test_lag_is_shown_until_it_is_over(faked, stream):
    start(faked, stream)
    stream.say({"type": "lag", "seconds": 3.4})
    expect(faked.locator("#status")).to_have_text("3.4 s behind")
    stream.say({"type": "lag", "seconds": 0})
    expect(faked.locator("#status")).to_have_text("Listening")


def test_the_level_of_the_microphone_is_shown(faked, stream):
    expect(faked.locator("#meter")).to_be_hidden()
    start(faked, stream)
    # the fake microphone beeps
    faked.locator("#meter:not([aria-valuenow='0'])").wait_for()


def test_the_page_follows_the_newest_words_unless_someone_reads_back(faked, stream):
    start(faked, stream)
    for i in range(40):
        stream.result(i, f"Line {i}.")
    expect(faked.get_by_text("Line 39.")).to_be_in_viewport()
    faked.mouse.wheel(0, -4000)
    latest = faked.get_by_role("button", name="Latest")
    expect(latest).to_be_visible()
    stream.result(40, "Line 40.")
    expect(faked.get_by_text("Line 40.")).not_to_be_in_viewport()
    latest.click()
    expect(faked.get_by_text("Line 40.")).to_be_in_viewport()
    expect(latest).to_be_hidden()


def test_another_language_goes_on_where_the_last_one_ended(faked, stream):
    start(faked, stream)
    stream.result(0, "Hello.")
    expect(faked.locator("#log .line")).to_have_count(1)
    faked.select_option("#language", "de")
    expect(faked.locator("#status")).to_have_text("Listening")
    assert [told["language"] for told in stream.started] == ["auto", "de"]
    stream.result(1, "Hallo.", language="de")
    # 2 s into the second session, which began 1.5 s after the first
    expect(faked.locator("#log .line").nth(1).locator("time")).to_have_text("0:03")


# --- what goes wrong


def test_after_a_lost_connection_the_sound_since_the_last_final_words_is_sent_again(faked, stream):
    start(faked, stream)
    expect(faked.locator("#elapsed")).to_have_text("0:01")
    stream.result(0, "Safe.", start=0.0, end=0.3)
    expect(faked.locator("#log .line")).to_have_count(1)
    stream.result(1, "Never fin", stable=5)
    expect(faked.locator("#interim .line")).to_have_count(1)
    stream.sound.clear()
    stream.connections[-1].close(code=1011, reason="oops")
    expect(faked.locator("#interim .line")).to_have_count(0)
    expect(faked.locator("#status")).to_have_text("Listening · English")
    assert len(stream.connections) == 2

    expect(faked.locator("#elapsed")).to_have_text("0:02")
    rate = stream.started[-1]["sample_rate"]
    # from 0.3 s on: of two seconds, more than the second that came after the connection was lost
    assert sum(map(len, stream.sound)) / 2 / rate > 1.3
    stream.result(0, "Said again.", start=0.9, end=1.5)
    expect(faked.locator("#log .text")).to_have_text(["Safe.", "Said again."])
    expect(faked.locator("#log time").nth(1)).to_have_text("0:01")


def test_it_says_that_it_reconnects_for_as_long_as_it_must(faked, stream):
    start(faked, stream)
    stream.refuse = True
    stream.connections[-1].close(code=1011)
    expect(faked.locator("#status")).to_have_text("Reconnecting; what you say is kept")
    stream.refuse = False
    expect(faked.locator("#status")).to_have_text("Listening")


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
        lambda route: route.fulfill(
            status=503, body='{"error": {"code": "model_failed", "message": "No such model."}}'
        ),
        lambda route: route.fulfill(body=capabilities()),
    ]
    page = visit(prepare=lambda page: page.route("**/capabilities", lambda route: answers.pop(0)(route)))
    for words in ("Waiting for the server", "Loading the model", "No such model.", "Ready"):
        expect(page.locator("#status")).to_have_text(words)


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


# --- languages


def test_only_what_the_model_can_do_is_offered(page):
    assert options(page, "#language") == ["auto", "en", "fr", "de", "es"]
    page.select_option("#language", "en")
    assert options(page, "#target") == ["", "fr", "de", "es"]
    page.select_option("#target", "es")
    page.select_option("#language", "de")
    assert options(page, "#target") == ["", "en"]
    assert page.locator("#target").input_value() == ""


def test_languages_are_remembered(page):
    page.select_option("#language", "en")
    page.select_option("#target", "fr")
    page.reload()
    page.locator("#start:enabled").wait_for()
    assert page.locator("#language").input_value() == "en"
    assert page.locator("#target").input_value() == "fr"


# --- keys


def test_everything_can_be_reached_with_tab(faked, stream):
    start(faked, stream)
    stream.result(0, "Hello.")
    faked.keyboard.press("Space")
    expect(faked.locator("#start")).to_have_text("Start")
    reached = []
    for _ in range(12):
        faked.keyboard.press("Tab")
        reached.append(faked.evaluate("() => document.activeElement.id || document.activeElement.className"))
    assert reached[:9] == ["skip", "language", "target", "copy", "download", "clear", "start", "open", "help"]


def test_keys_do_what_the_buttons_do(faked, stream):
    # Listened for from the start: the browser takes a moment to hand its dialogs over.
    choosers = []
    faked.on("filechooser", lambda chooser: choosers.append(chooser))
    start(faked, stream)
    stream.result(0, "Hello.")
    expect(faked.locator("#log .line")).to_have_count(1)
    faked.keyboard.press("Escape")
    expect(faked.locator("#start")).to_have_text("Start")
    faked.keyboard.press("d")
    expect(faked.locator("#export")).to_be_visible()
    faked.keyboard.press("Escape")
    expect(faked.locator("#export")).to_be_hidden()
    size = "() => parseFloat(getComputedStyle(document.getElementById('log')).fontSize)"
    before = faked.evaluate(size)
    faked.keyboard.press("+")
    assert faked.evaluate(size) > before
    expect(faked.locator("#open")).to_be_enabled()
    faked.keyboard.press("o")
    for _ in range(200):
        if choosers:
            break
        faked.wait_for_timeout(50)
    assert len(choosers) == 1
    faked.keyboard.press("x")
    expect(faked.locator("#log .line")).to_have_count(0)
    faked.keyboard.press("?")
    expect(faked.locator("#keys")).to_be_visible()


def test_single_keys_can_be_turned_off(faked, stream):
    faked.keyboard.press("?")
    faked.get_by_label("Single keys work").uncheck()
    faked.keyboard.press("Escape")
    faked.keyboard.press("Space")
    faked.keyboard.press("?")
    expect(faked.locator("#keys")).to_be_hidden()
    assert stream.connections == []


def test_keys_typed_into_a_menu_are_the_menus(faked, stream):
    faked.focus("#language")
    faked.keyboard.press("e")
    faked.keyboard.press("o")
    assert faked.locator("#language").input_value() in ("en", "es")
    assert stream.connections == []


# --- for everyone, and for nobody else


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_paper(visit, stream, scheme):
    page = visit(prepare=stream.install, color_scheme=scheme)
    page.locator("#start:enabled").wait_for()
    start(page, stream)
    stream.result(0, "Final.", translation={"language": "de", "text": "Fertig.", "stable_chars": 7})
    stream.result(1, "To come", stable=0, translation={"language": "de", "text": "Noch", "stable_chars": 0})
    page.locator("#interim .tail").first.wait_for()
    stream.say({"type": "error", "message": "Something.", "fatal": False})
    page.locator("#notice").wait_for()
    low = page.evaluate(
        """() => {
            const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
            const luminance = (color) => {
                canvas.fillStyle = color;
                canvas.fillRect(0, 0, 1, 1);
                const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => value / 255)
                    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const paper = (element) => {
                const color = getComputedStyle(element).backgroundColor;
                return color !== "rgba(0, 0, 0, 0)" ? color : paper(element.parentElement);
            };
            const found = [];
            for (const element of document.querySelectorAll("p, span, time, button, select, h1, b, kbd")) {
                if (!element.checkVisibility() || !element.textContent.trim() || element.disabled) continue;
                if (element.closest(":disabled")) continue;
                const [a, b] = [luminance(getComputedStyle(element).color), luminance(paper(element))].sort();
                const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
                if (contrast < 4.5) found.push([element.outerHTML.slice(0, 80), contrast]);
            }
            return found;
        }"""
    )
    assert low == []


def test_every_control_has_a_name_and_every_image_is_described_or_decoration(page):
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, [role=meter], progress, dialog")]
            .filter((element) => !element.hidden && !element.textContent.trim() && !element.labels?.length
                && !element.getAttribute("aria-label") && !element.getAttribute("aria-labelledby")
                && element.getAttribute("aria-hidden") !== "true")
            .map((element) => element.outerHTML)"""
    )
    assert unnamed == []
    assert page.locator("img:not([alt]), svg:not([aria-hidden])").count() == 0
    ids = page.locator("[id]").evaluate_all("(elements) => elements.map((element) => element.id)")
    assert len(set(ids)) == len(ids)
    for landmark in ("banner", "main", "contentinfo"):
        expect(page.get_by_role(landmark)).to_have_count(1)
    expect(page.get_by_role("heading", level=1)).to_have_text("Canary")
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_nothing_is_cut_off_at_any_width(visit, stream, width):
    page = visit(prepare=stream.install, viewport={"width": width, "height": 700})
    page.locator("#start:enabled").wait_for()
    start(page, stream)
    long = "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen und Rhabarberbarbarabarbarbarenbartbarbier"
    stream.result(0, long, translation={"language": "de", "text": long, "stable_chars": 0})
    expect(page.locator("#log .line")).to_have_count(1)
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    for control in page.locator("button:visible, select:visible").all():
        box = control.bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert min(box["width"], box["height"]) >= 44, control.evaluate("(element) => element.outerHTML")


def test_on_a_phone_the_translation_is_below(visit, stream):
    page = visit(prepare=stream.install, **PHONE)
    page.locator("#start:enabled").wait_for()
    words = "Press Start and speak, or open a recording, and read along."
    expect(page.locator("#invitation")).to_have_text(words, use_inner_text=True)
    page.tap("#start")
    expect(page.locator("#status")).to_have_text("Listening")
    stream.result(0, "Hello.", translation={"language": "de", "text": "Hallo.", "stable_chars": 6})
    line = page.locator("#log .line")
    text, translation = (line.locator(part).bounding_box() for part in (".text", ".translation"))
    assert text
    assert translation
    assert translation["y"] >= text["y"] + text["height"]
    assert translation["width"] > 300


def test_nothing_is_loaded_from_another_place_and_nothing_else_may_run(visit, address):
    asked = []
    page = visit(prepare=lambda page: page.on("request", lambda request: asked.append(request.url)))
    page.locator("#start:enabled").wait_for()
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith(address)] == []

    headers = page.request.get(address).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    for path in re.findall(r'(?:src|href)="(static/[^"]+)"', page.request.get(address).text()):
        assert page.request.get(f"{address}/{path}").headers["x-content-type-options"] == "nosniff"


def test_the_page_is_given_to_those_who_ask_twice_without_sending_it_again(page, address):
    script = f"{address}/static/main.js"
    etag = page.request.get(script).headers["etag"]
    assert page.request.get(script, headers={"if-none-match": etag}).status == 304


def test_there_is_no_way_out_of_the_folder(page, address):
    for path in ("static/../routes/page.py", "static/%2e%2e/routes/page.py", "static/"):
        assert page.request.get(f"{address}/{path}").status == 404
