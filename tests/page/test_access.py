"""The page for everyone: contrast, names, any width, phones; and its content security policy."""

import re
from itertools import pairwise

import pytest
from playwright.sync_api import expect

from tests.page.acting import PHONE, start


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(visit, stream, scheme):
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


def test_controls_have_names_and_images_have_descriptions(page):
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


@pytest.mark.parametrize("width", [320, 360, 390])
def test_on_a_phone_every_button_and_every_language_can_be_read(visit, width):
    page = visit(**{**PHONE, "viewport": {"width": width, "height": 700}})
    page.locator("#start:enabled").wait_for()
    labels = page.locator(".side button span, .languages label span")
    assert labels.all_inner_texts() == [
        "Spoken language", "Translate to", "Copy", "Download", "Clear", "Open file", "Settings"
    ]  # fmt: skip
    for label in labels.all():
        expect(label).to_be_visible()
        assert label.evaluate("(label) => getComputedStyle(label).clipPath") == "none"
        assert label.evaluate("(label) => parseFloat(getComputedStyle(label).fontSize)") >= 12
    boxes = [button.bounding_box() for button in page.locator(".side button").all()]
    assert all(a["x"] + a["width"] <= b["x"] for a, b in pairwise(boxes))
    # A name that does not fit ends in an ellipsis. "German · Deutsch" may, after "German".
    cut = page.evaluate(
        """() => {
            const pen = document.createElement("canvas").getContext("2d");
            return [...document.querySelectorAll("select")].flatMap((select) => {
                const style = getComputedStyle(select);
                pen.font = style.font;
                const room = select.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
                const names = [...select.options].map((option) => option.text.split(" · ")[0]);
                return names.filter((name) => pen.measureText(name).width > room);
            });
        }"""
    )
    assert cut == []


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


def test_everything_comes_from_the_server_and_nothing_else_may_run(visit, address):
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


def test_an_unchanged_file_is_not_sent_again(page, address):
    script = f"{address}/static/main.js"
    etag = page.request.get(script).headers["etag"]
    assert page.request.get(script, headers={"if-none-match": etag}).status == 304


def test_files_outside_the_static_folder_are_not_found(page, address):
    for path in ("static/../routes/page.py", "static/%2e%2e/routes/page.py", "static/"):
        assert page.request.get(f"{address}/{path}").status == 404
