"""Headless Chromium for the tests of pages: one browser for the session, a fresh context for each test.

The browser is a process of its own and each test connects to it: Playwright's synchronous interface keeps an asyncio
loop running in the thread that it was started in, which other tests must not find there.
"""

import ipaddress
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_SECONDS = 60
OPTIONS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--mute-audio",
    # what a page asks of the world is recorded (BrowserPage.outside_requests), and not found
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
)


@dataclass
class BrowserPage:
    """A page, and what it did that a test may not like.

    page: Playwright's page (``goto``, ``click``, ``locator``, ``set_viewport_size``, ``emulate_media``, ...).
    console_errors: messages of console.error, uncaught exceptions, files that could not be loaded, broken CSP rules.
    outside_requests: addresses beyond this machine (http, https, ws, wss) that the page asked for.
    """

    page: "Page"
    console_errors: list[str] = field(default_factory=list)
    outside_requests: list[str] = field(default_factory=list)


def missing() -> str | None:
    """Why no page can be opened here; None where it can."""
    if find_spec("playwright") is None:
        return "playwright is not installed (pip install -e '.[dev]')"
    if executable() is None:
        return "no Chromium is installed (Debian: apt-get install chromium)"
    return None


def executable() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def running_browser(folder: Path) -> Iterator[str]:
    """Starts the browser with a profile in ``folder``; its DevTools address."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox does not start as root
    log = folder / "chromium.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [executable(), *OPTIONS, *sandbox, f"--user-data-dir={folder / 'profile'}", "about:blank"],
            stdout=stream, stderr=stream, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        yield _address(process, folder / "profile" / "DevToolsActivePort", log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen, port_file: Path, log: Path) -> str:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        # Chromium writes two lines: the port, and the path of the browser's own target
        if port_file.is_file() and len(lines := port_file.read_text().splitlines()) == 2:
            return f"http://127.0.0.1:{lines[0]}"
        time.sleep(0.05)
    pytest.fail(f"{executable()} does not start (exit status {process.poll()}): {log.read_text()[-2000:]}")


@contextmanager
def open_page(address: str) -> Iterator[BrowserPage]:
    """A page in a context of its own (no cookies, no storage of other tests) of the browser at ``address``."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.connect_over_cdp(address)
        context = browser.new_context(locale="en-GB", viewport={"width": 1280, "height": 900})
        page = context.new_page()
        opened = BrowserPage(page)
        page.on("console", lambda m: opened.console_errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: opened.console_errors.append(str(error)))
        context.on("request", lambda request: _note(opened, request.url))
        page.on("websocket", lambda socket: _note(opened, socket.url))
        try:
            yield opened
        finally:
            context.close()
            browser.close()  # of a browser that was connected to: the connection alone


def _note(opened: BrowserPage, url: str) -> None:
    if leaves_the_machine(url):
        opened.outside_requests.append(url)


def leaves_the_machine(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "ws", "wss"):
        return False
    if parts.hostname == "localhost":
        return False
    try:
        return not ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return True
