"""A recording opened or dropped on the page, transcribed by the real server, and saved."""

import pytest
from playwright.sync_api import Page, Route, expect

from tests.page.acting import options


@pytest.fixture
def opened(page: Page, samples) -> Page:
    return written_out(page, samples)


def written_out(page: Page, samples: dict[str, dict]) -> Page:
    """The page with a recording and its translation."""
    page.select_option("#language", "en")
    page.select_option("#target", "de")
    page.set_input_files("#picker", samples["en"]["path"])
    expect(page.locator("#status")).to_have_text("Ready")
    page.locator("#log .translation").first.wait_for()
    expect(page.locator("#start")).to_have_text("Start")
    return page


def saved(page: Page, format: str, which: str = "As spoken") -> str:
    page.get_by_role("button", name="Download").click()
    page.get_by_role("radio", name=which).check()
    with page.expect_download() as download:
        page.locator(f"#export button[value={format}]").click()
    assert download.value.suggested_filename == f"captions.{format}"
    return download.value.path().read_text(encoding="utf-8")


def on_screen(page: Page, part: str) -> str:
    return " ".join(page.locator(f"#log .{part}").all_inner_texts())


def test_a_recording_is_transcribed_with_its_translation_beside_it(opened, samples):
    assert on_screen(opened, "text") == samples["en"]["text"]
    assert on_screen(opened, "translation") == samples["en"]["translations"]["de"]
    expect(opened.locator("#file")).to_be_hidden()


def test_the_text_is_saved_as_subtitles(opened, samples, read_cues):
    for format in ("srt", "vtt"):
        cues = read_cues(format, saved(opened, format))
        assert " ".join(cue.text for cue in cues) == samples["en"]["text"]
        assert 0 <= cues[0].start < cues[-1].end <= samples["en"]["duration"] + 0.1
    assert saved(opened, "txt", "Translation").replace("\n", " ").strip() == samples["en"]["translations"]["de"]


def test_subtitles_follow_the_servers_limits(visit, serve, samples, read_cues):
    page = visit(at=serve(CANARY_SUBTITLE_LINE_LENGTH="10", CANARY_SUBTITLE_LINES="1"))
    page.locator("#start:enabled").wait_for()
    cues = read_cues("srt", saved(written_out(page, samples), "srt"))
    assert " ".join(cue.text for cue in cues) == samples["en"]["text"]
    assert max(len(cue.text) for cue in cues) <= 10


def test_a_parakeet_offers_its_languages_and_no_translation_and_transcribes_a_recording(visit, serve, samples):
    page = visit(at=serve(models=("toy-parakeet", "toy")))
    page.locator("#start:enabled").wait_for()
    assert options(page, "#language") == ["auto", "en", "fr", "de", "es"]
    for language in ("auto", "de"):
        page.select_option("#language", language)
        assert options(page, "#target") == [""]
    page.set_input_files("#picker", samples["de"]["path"])
    expect(page.locator("#status")).to_have_text("Ready")
    assert on_screen(page, "text") == samples["de"]["text"]


def test_the_text_is_copied(opened, samples):
    opened.keyboard.press("c")
    expect(opened.locator("#notice")).to_contain_text("Copied")
    copied = opened.evaluate("() => navigator.clipboard.readText()")
    assert samples["en"]["text"].split(".")[0] in copied
    assert samples["en"]["translations"]["de"].split(".")[0] in copied


def test_clearing_can_be_undone(opened, samples):
    opened.keyboard.press("x")
    expect(opened.locator("#log .line")).to_have_count(0)
    expect(opened.locator("#welcome")).to_be_visible()
    opened.get_by_role("button", name="Undo").click()
    assert on_screen(opened, "text") == samples["en"]["text"]


def test_a_dropped_recording_is_transcribed_and_shows_its_progress(page, samples):
    page.evaluate(
        """() => {
            const Own = Audio;
            window.Audio = function () {
                const audio = new Own();
                audio.addEventListener("loadedmetadata", () => (window.isDurationKnown = true));
                return audio;
            };
            window.seen = new Set();
            new MutationObserver(() => seen.add(document.getElementById("file-phase").textContent))
                .observe(document.getElementById("file"), { subtree: true, childList: true, characterData: true });
        }"""
    )

    def slowly(route: Route) -> None:
        # The text would be there before the browser knows how long the recording is.
        page.wait_for_function("() => window.isDurationKnown")
        route.continue_()

    page.route("**/transcribe", slowly)
    data = page.evaluate_handle(
        """async (bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "talk.flac", { type: "audio/flac" }));
            return data;
        }""",
        list(samples["en"]["path"].read_bytes()),
    )
    page.dispatch_event("main", "dragenter", {"dataTransfer": data})
    expect(page.locator("#drop")).to_be_visible()
    page.dispatch_event("main", "drop", {"dataTransfer": data})
    expect(page.locator("#drop")).to_be_hidden()
    page.locator("#log .line").first.wait_for()
    expect(page.locator("#start")).to_have_text("Start")
    assert on_screen(page, "text") == samples["en"]["text"]
    seen = page.evaluate("() => [...seen]")
    assert "Uploading" in seen
    # how much of it has been transcribed
    assert any(f"of 0:{int(samples['en']['duration']):02}" in phase for phase in seen), seen


def test_a_file_that_is_not_audio_is_refused_and_the_text_stays(opened, samples):
    opened.set_input_files("#picker", {"name": "poem.txt", "mimeType": "text/plain", "buffer": b"Roses are red " * 99})
    expect(opened.get_by_role("alert")).to_contain_text("poem.txt")
    expect(opened.locator("#start")).to_have_text("Start")
    assert on_screen(opened, "text") == samples["en"]["text"]


def test_a_recording_can_be_cancelled(page, samples):
    # The answer never comes.
    page.route("**/transcribe", lambda route: None)
    page.set_input_files("#picker", samples["en"]["path"])
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#file")).to_be_hidden()
    expect(page.locator("#start")).to_have_text("Start")
    expect(page.locator("#welcome")).to_be_visible()


def test_a_recording_can_be_cancelled_while_its_duration_is_read(page, samples):
    """The browser may take long for that; neither the upload nor the button waits."""
    page.evaluate("() => { window.Audio = class {}; }")
    page.route("**/transcribe", lambda route: None)
    with page.expect_request("**/transcribe"):
        page.set_input_files("#picker", samples["en"]["path"])
    with page.expect_event("requestfailed"):
        page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#start")).to_have_text("Start")
    expect(page.locator("#file")).to_be_hidden()
    page.unroute("**/transcribe")
    assert on_screen(written_out(page, samples), "text") == samples["en"]["text"]


def test_no_recording_is_opened_while_the_microphone_is_being_opened(page, samples):
    page.evaluate(
        """() => {
            navigator.mediaDevices.getUserMedia = () => new Promise((_, refuse) => { window.refuse = refuse; });
        }"""
    )
    page.keyboard.press("Space")
    expect(page.locator("#start")).to_have_text("Starting")
    page.set_input_files("#picker", samples["en"]["path"])
    expect(page.get_by_role("alert")).to_contain_text("Stop first")
    expect(page.locator("#start")).to_have_text("Starting")
    page.wait_for_function("() => window.refuse")
    page.evaluate("() => refuse(new DOMException('', 'NotAllowedError'))")
    expect(page.get_by_role("alert")).to_contain_text("may not use the microphone")
    assert on_screen(written_out(page, samples), "text") == samples["en"]["text"]
