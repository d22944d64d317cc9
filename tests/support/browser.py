"""A real browser, for tests of the web page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)


@contextmanager
def browsing() -> Iterator[Any]:
    """Yield Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engine:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-renderer-backgrounding"]
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()
