"""Takes the README's pictures of the page: docs/captions.png and, in dark, docs/captions-dark.png.

    python -m tests.page.screenshot

Starts the server with the toy model and plays the recordings that ship with it into Chromium's microphone: German,
Spanish and French, translated to English while they are heard. Each picture is taken when the last sentence is half
spoken; on a machine too busy to show that, it tries again. It uses the font Inter if that is installed, which resembles
the fonts of Macs and phones: `apt-get install chromium fonts-inter`.
"""

import os
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr
from playwright.sync_api import Browser, Playwright, TimeoutError, sync_playwright

from tests.page.conftest import CHROMIUM, HOW_TO_GET_IT, SAMPLES, SWITCHES, served

DOCS = Path(__file__).parents[2] / "docs"
PICTURES: dict[Literal["light", "dark"], Path] = {"light": DOCS / "captions.png", "dark": DOCS / "captions-dark.png"}
SIZE = {"width": 1280, "height": 660}

RATE = 48_000
PAUSE_S = 1.0
ATTEMPTS = 3
SPOKEN = ("de.flac", "es.flac", "fr.flac")

FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig>
  <include ignore_missing="yes">/etc/fonts/fonts.conf</include>
  <alias binding="strong"><family>sans</family><prefer><family>Inter</family></prefer></alias>
  <alias binding="strong"><family>sans-serif</family><prefer><family>Inter</family></prefer></alias>
</fontconfig>
"""

# Three lines are final. Of the fourth and its translation, the last words are not certain yet, and more is being said.
HALF_SPOKEN = """() => {
    const isHalfCertain = (text) => text?.firstChild?.nodeType === Node.TEXT_NODE && text.querySelector(".tail");
    const interim = document.querySelector("#interim .line");
    return document.querySelectorAll("#log .translation").length >= 3
        && isHalfCertain(interim?.querySelector(".text"))
        && isHalfCertain(interim.querySelector(".translation"))
        && interim.querySelector(".text").textContent.split(" ").length >= 6
        && document.getElementById("meter").ariaValueNow > 30;
}"""


def main() -> None:
    if not CHROMIUM:
        raise SystemExit(HOW_TO_GET_IT)
    DOCS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, served() as address, sync_playwright() as playwright:
        fonts, sound = Path(folder) / "fonts.conf", Path(folder) / "spoken.wav"
        fonts.write_text(FONTS)
        soundfile.write(sound, spoken(), RATE)
        for scheme, picture in PICTURES.items():
            for attempt in range(ATTEMPTS):
                try:
                    take(picture, scheme, address, listening_to(sound, fonts, playwright))
                    break
                except TimeoutError:
                    print(f"{picture.name}: attempt {attempt + 1} of {ATTEMPTS} missed the moment", flush=True)
            else:
                raise SystemExit(f"{picture.name} could not be taken; try again on a machine with less to do")
            print(f"{picture.relative_to(DOCS.parent)}: {picture.stat().st_size / 1000:.0f} kB", flush=True)


def listening_to(sound: Path, fonts: Path, playwright: Playwright) -> Browser:
    """A new Chromium. The recording starts when it first uses its microphone."""
    return playwright.chromium.launch(
        executable_path=CHROMIUM,
        args=[*SWITCHES, f"--use-file-for-fake-audio-capture={sound}%noloop"],
        env={**os.environ, "FONTCONFIG_FILE": str(fonts)},
    )


def take(picture: Path, scheme: Literal["light", "dark"], address: str, browser: Browser) -> None:
    """Start, wait for the moment to show, and save it. Raises TimeoutError."""
    with browser:
        page = browser.new_page(viewport=SIZE, device_scale_factor=2, color_scheme=scheme, reduced_motion="reduce")
        page.goto(address)
        page.locator("#start:enabled").wait_for()
        page.select_option("#language", "auto")
        page.select_option("#target", "en")
        # a little smaller, so that all of it can be seen
        for _ in range(2):
            page.keyboard.press("-")
        page.click("#start")
        page.mouse.move(0, 0)
        page.wait_for_function(HALF_SPOKEN, timeout=40_000)
        page.screenshot(path=picture)


def spoken() -> np.ndarray:
    """Mono samples at RATE: the recordings with pauses between them."""
    pause = np.zeros(int(PAUSE_S * RATE), np.float32)
    parts = [pause]
    for name in SPOKEN:
        samples, rate = soundfile.read(SAMPLES / name, dtype="float32")
        parts += [soxr.resample(samples, rate, RATE), pause]
    return np.concatenate([*parts, pause, pause])


if __name__ == "__main__":
    main()
