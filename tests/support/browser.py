"""A real browser, for tests of the web page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.support.limits import LIMIT_SECONDS

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)


@contextmanager
def browsing() -> Iterator[Any]:
    """Yield Chromium, driven by Playwright."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=1000 * LIMIT_SECONDS)
    with sync_playwright() as engine:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-renderer-backgrounding"]
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=flags, timeout=1000 * LIMIT_SECONDS)
        yield browser
        browser.close()


@contextmanager
def console_checked_tabs(browser: Any) -> Iterator[Callable[..., Any]]:
    """Yield a function that opens a tab; fail when a tab writes an error to its console."""
    errors: list[str] = []
    with ExitStack() as stack:

        def opened(url: str, **looks: Any) -> Any:
            context = browser.new_context(**({"viewport": {"width": 1200, "height": 800}} | looks))
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(1000 * LIMIT_SECONDS)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("console", lambda message: message.type == "error" and errors.append(message.text))
            page.goto(url)
            return page

        opened.errors = errors  # type: ignore[attr-defined]
        yield opened
    # At a test's end its server goes before the tabs do, and they notice: refused, reset, or a socket not connected.
    assert [message for message in errors if "net::ERR_" not in message] == []
