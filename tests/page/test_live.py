"""A recording played into Chromium's microphone, through the real server, onto the screen."""

from playwright.sync_api import expect


def words(text: str) -> list[str]:
    return [word.strip(".,?!").lower() for word in text.split()]


def errors(heard: list[str], said: list[str]) -> int:
    """The fewest words to change, add or take away."""
    row = list(range(len(said) + 1))
    for i, word in enumerate(heard, 1):
        last, row[0] = row[0], i
        for j, other in enumerate(said, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (word != other))
    return row[-1]


def test_the_page_captions_a_recording_with_its_translation_beside_it(visit, microphone, samples):
    sample = samples["en"]
    page = visit(microphone(sample["path"]))
    page.select_option("#language", "en")
    page.select_option("#target", "de")
    page.click("#start")

    page.locator("#interim .text").first.wait_for()  # before anything is final
    expect(page.locator("#status")).to_contain_text("Listening")
    said = words(sample["text"])
    lines = page.locator("#log .line")
    # the recording's last sentence is final
    lines.filter(has_text=sample["text"].split()[-1]).wait_for()
    page.click("#start")
    expect(page.locator("#start")).to_have_text("Start")

    heard = words(" ".join(lines.locator(".text").all_inner_texts()))
    assert errors(heard, said) <= 0.15 * len(said), heard
    translated = words(" ".join(lines.locator(".translation").all_inner_texts()))
    wanted = words(sample["translations"]["de"])
    assert errors(translated, wanted) <= 0.25 * len(wanted), translated
    assert lines.first.locator(".text").get_attribute("lang") == "en"
    assert lines.first.locator(".translation").get_attribute("lang") == "de"
    text, translation = (lines.first.locator(part).bounding_box() for part in (".text", ".translation"))
    assert text
    assert translation
    assert translation["x"] >= text["x"] + text["width"]
    assert abs(translation["y"] - text["y"]) < 5


def test_the_page_detects_the_spoken_language(visit, microphone, samples):
    page = visit(microphone(samples["de"]["path"]))
    page.select_option("#language", "auto")
    page.keyboard.press("Space")
    last = samples["de"]["text"].split()[-1]
    line = page.locator("#log .line").filter(has_text=last)
    line.wait_for()
    assert line.locator(".text").get_attribute("lang") == "de"


def test_the_page_captions_a_recording_with_a_parakeet(visit, serve, microphone, samples):
    page = visit(microphone(samples["en"]["path"]), at=serve(models=("toy-parakeet", "toy")))
    page.locator("#start:enabled").click()
    page.locator("#interim .text").first.wait_for()
    lines = page.locator("#log .line")
    lines.filter(has_text=samples["en"]["text"].split()[-1]).wait_for()
    said = words(samples["en"]["text"])
    assert errors(words(" ".join(lines.locator(".text").all_inner_texts())), said) <= 0.15 * len(said)
    assert lines.first.locator(".translation").count() == 0


def test_the_page_works_only_with_the_right_key(visit, serve, samples):
    page = visit(at=serve(CANARY_API_KEYS="a-long-key"))
    key = page.get_by_label("API key")
    key.fill("another-key")
    page.keyboard.press("Enter")
    expect(key).to_be_visible()
    expect(page.locator("#start")).to_be_disabled()
    key.fill("a-long-key")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Ready")

    page.keyboard.press("Space")
    expect(page.locator("#status")).to_have_text("Listening")
    page.keyboard.press("Space")
    expect(page.locator("#start")).to_have_text("Start")
    page.set_input_files("#picker", samples["en"]["path"])
    page.locator("#log .line").filter(has_text=samples["en"]["text"].split()[-1]).wait_for()
