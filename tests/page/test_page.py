"""Captions, languages and keys, with live captions played by the test."""

from playwright.sync_api import expect

from tests.page.acting import listened, options, start

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
    listened(faked, seconds=1)
    faked.keyboard.press("Space")
    expect(faked.locator("#start")).to_have_text("Start")

    rate = faked.evaluate("() => new AudioContext().sampleRate")
    wanted = {"type": "start", "encoding": "pcm_s16le", "sample_rate": rate, "language": "de", "target_language": "en"}
    assert stream.started == [wanted]
    # 16-bit samples in frames of 50 to 100 ms, more than a second of them
    assert {0.05 <= len(frame) / 2 / rate <= 0.1 for frame in stream.sound} == {True}
    assert sum(map(len, stream.sound)) / 2 / rate >= 1
    assert stream.stopped == 1


def test_only_the_end_of_a_silence_is_kept(page):
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


def test_unfinished_words_look_different_and_only_final_ones_are_announced(faked, stream):
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


def test_an_interim_text_that_is_withdrawn_disappears(faked, stream):
    start(faked, stream)
    stream.result(0, "Hm", stable=0)
    expect(faked.locator("#interim .line")).to_have_count(1)
    stream.result(0, "")
    expect(faked.locator("#interim .line")).to_have_count(0)
    assert faked.locator("#log .line").count() == 0


def test_the_detected_language_is_shown(faked, stream):
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
    # The fake microphone beeps for 20 ms, twice a second.
    faked.wait_for_function("""() => document.querySelector("#meter:not([aria-valuenow='0'])")""")


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


def test_a_new_language_continues_at_the_time_where_the_last_one_ended(faked, stream):
    start(faked, stream)
    stream.result(0, "Hello.")
    expect(faked.locator("#log .line")).to_have_count(1)
    faked.select_option("#language", "de")
    expect(faked.locator("#status")).to_have_text("Listening")
    assert [told["language"] for told in stream.started] == ["auto", "de"]
    stream.result(1, "Hallo.", language="de")
    # 2 s into the second session, which began 1.5 s after the first
    expect(faked.locator("#log .line").nth(1).locator("time")).to_have_text("0:03")


def test_stopping_while_the_language_changes_stops_for_good(faked, stream, monkeypatch):
    start(faked, stream)
    done, say = [], stream.say
    monkeypatch.setattr(stream, "say", done.append)
    faked.select_option("#language", "de")
    expect(faked.locator("#start")).to_have_text("Stopping")
    faked.click("#start")
    say(*done)
    expect(faked.locator("#start")).to_have_text("Start")
    expect(faked.locator("#status")).to_have_text("Ready")
    assert len(stream.started) == 1


# --- languages


def test_only_supported_languages_are_offered(page):
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
    faked.get_by_label("Use single-key shortcuts").uncheck()
    faked.keyboard.press("Escape")
    # The browser closes it a moment later; until then, Space would check the box again.
    expect(faked.locator("#keys")).to_be_hidden()
    faked.keyboard.press("Space")
    faked.keyboard.press("?")
    expect(faked.locator("#keys")).to_be_hidden()
    assert stream.connections == []


def test_keys_pressed_in_a_menu_choose_a_language(faked, stream):
    faked.focus("#language")
    faked.keyboard.press("e")
    faked.keyboard.press("o")
    assert faked.locator("#language").input_value() in ("en", "es")
    assert stream.connections == []
