"""The fixture browser_page: a page works, and what it should not have done is seen."""

import asyncio

import browser
import pytest


def test_a_page_of_this_machine_is_read(browser_page, tmp_path):
    (tmp_path / "page.html").write_text("<p id=a>before</p><script>a.textContent = 'after'</script>")
    browser_page.page.goto((tmp_path / "page.html").as_uri())
    assert browser_page.page.inner_text("p") == "after"
    assert not browser_page.console_errors and not browser_page.outside_requests


def test_errors_and_requests_beyond_the_machine_are_noted(browser_page):
    browser_page.page.set_content(
        "<img src='https://example.com/a.png'><script>console.error('said'); throw new Error('thrown')</script>"
    )
    assert browser_page.outside_requests == ["https://example.com/a.png"]
    assert any("said" in text for text in browser_page.console_errors)
    assert any("thrown" in text for text in browser_page.console_errors)


@pytest.mark.parametrize("value", ["first", "second"])
def test_nothing_stays_from_another_test(browser_page, value, tmp_path):
    (tmp_path / "page.html").write_text("<p>")
    browser_page.page.goto((tmp_path / "page.html").as_uri())
    assert browser_page.page.evaluate("localStorage.getItem('key')") is None
    browser_page.page.evaluate(f"localStorage.setItem('key', '{value}')")


def test_no_loop_is_left_running():
    assert asyncio.run(asyncio.sleep(0, "ran")) == "ran"


@pytest.mark.parametrize(
    ("url", "leaves"),
    [
        ("https://fonts.googleapis.com/css", True),
        ("ws://10.0.0.1/x", True),
        ("http://127.0.0.1.example.com/", True),
        ("http://127.0.0.1:7860/", False),
        ("http://[::1]:7860/", False),
        ("ws://localhost/", False),
        ("file:///tmp/a.html", False),
        ("data:image/png;base64,AA", False),
    ],
)
def test_which_addresses_leave_the_machine(url, leaves):
    assert browser.leaves_the_machine(url) is leaves


def test_where_there_is_no_browser_the_reason_says_what_to_install(monkeypatch):
    monkeypatch.setattr(browser, "NAMES", ("no-such-browser",))
    assert "apt-get install chromium" in browser.missing()
