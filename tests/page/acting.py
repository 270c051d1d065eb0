"""What several tests of the page do and see."""

import json
from collections.abc import Callable

from playwright.sync_api import Page, expect

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


def capabilities(**more) -> str:
    languages = [
        {"code": "en", "name": "English", "targets": ["de", "fr"]},
        {"code": "de", "name": "German", "targets": ["en"]},
        {"code": "fr", "name": "French", "targets": ["en"]},
    ]
    subtitles = {"max_characters": 84, "max_s": 7}
    told = {"model": "m", "languages": languages, "default_language": "en", "max_upload_mb": 1, "subtitles": subtitles}
    return json.dumps({**told, **more})


def options(page: Page, menu: str) -> list[str]:
    return page.locator(f"{menu} option").evaluate_all("(options) => options.map((option) => option.value)")


def start(page: Page, stream) -> None:
    """Starts listening from the keyboard; `stream` answers."""
    page.keyboard.press("Space")
    expect(page.locator("#status")).to_have_text("Listening")


def listened(page: Page, seconds: int) -> None:
    """Waits until it has listened for so long."""
    told = "(seconds) => Number(document.getElementById('elapsed').textContent.split(':')[1]) >= seconds"
    page.wait_for_function(told, arg=seconds)


def try_now(page: Page, mend: Callable[[], object]) -> None:
    """Asks to connect at once when `mend` has made that possible. Then the page may have done so by itself."""
    expect(page.locator("#notice-action")).to_have_text("Try now")
    mend()
    # Hidden, it can still be pressed, and does nothing.
    page.locator("#notice-action").dispatch_event("click")
