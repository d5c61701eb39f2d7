"""``report.html`` in headless Chromium: what people do with it, by mouse, keyboard and on a phone."""

import json

import pytest
from report_helpers import HOSTILE, PAIRS, RTL, evidence_of, write_results

from slt_plugin.report.html import write_report


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    return write_report(write_results(tmp_path_factory.mktemp("page"))).as_uri()


@pytest.fixture
def page(browser_page, address):
    """The report, opened; at the end nothing may have gone wrong and nothing may have been asked of the network."""
    browser_page.page.set_default_timeout(8000)
    browser_page.page.goto(address)
    yield browser_page.page
    assert browser_page.console_errors == []
    assert browser_page.outside_requests == []


def ids(page) -> list[str]:
    return page.locator(".opener").all_text_contents()


def opener(page, key: str):
    return page.get_by_role("button", name=key, exact=True)


def test_worst_sentences_come_first_and_views_change_the_order(page):
    assert ids(page)[0] == "row-0005"  # nothing came out
    page.get_by_role("button", name="Best first").click()
    assert ids(page)[0] == "row-0000"  # perfect, and longer than the other perfect one
    assert page.get_by_role("button", name="Best first").get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Random").click()
    assert sorted(ids(page)) == [f"row-{i:04d}" for i in range(len(PAIRS))]


def test_search_finds_in_references_outputs_and_ids_whatever_the_case(page):
    search = page.get_by_role("searchbox")
    status = page.locator("#status")
    for text, expected in (("TOMORROW meet", ["row-0001"]), ("again", ["row-0001"]), ("0004", ["row-0004"])):
        search.fill(text)
        page.wait_for_function("text => document.getElementById('status').textContent.includes('found')", arg=text)
        page.wait_for_timeout(200)
        assert ids(page) == expected, text
    search.fill("no such words anywhere")
    page.get_by_text("No sentence fits").wait_for()
    assert status.text_content() == "0 sentences found among 6"
    search.fill("")
    page.locator(".opener").nth(5).wait_for()


def test_columns_sort_both_ways_and_say_so(page):
    header = page.locator("th[data-key=wer]")
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    rates = [float(text) for text in page.locator("tr.row td[data-label=WER]").all_text_contents()]
    assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1]
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert page.locator("th[aria-sort]").count() == 1
    assert page.locator("[data-view][aria-pressed=true]").count() == 0
    page.locator("th[data-key=n] button").click()
    assert ids(page) == [f"row-{i:04d}" for i in range(len(PAIRS))]


def test_filters(page):
    page.get_by_label("with words over time").check()
    assert sorted(ids(page)) == ["row-0000", "row-0001"]
    page.get_by_label("with errors").check()
    assert ids(page) == ["row-0001"]


def test_differences_are_marked_by_more_than_colour(page):
    row = page.locator("tr.row", has_text="row-0001")
    assert row.locator("del").all_text_contents() == ["tomorrow"]
    assert sorted(" ".join(row.locator("ins").all_text_contents()).split()) == ["again", "today"]
    for element, sign in (("del", "−"), ("ins", "+")):
        mark = "e => getComputedStyle(e, '::before').content + getComputedStyle(e).textDecorationLine"
        found = row.locator(element).first.evaluate(mark)
        assert sign in found and found.endswith(("line-through", "underline"))


def test_an_opened_sentence_shows_words_over_time_alternatives_and_saliency(page):
    button = opener(page, "row-0001")
    button.click()
    assert button.get_attribute("aria-expanded") == "true"
    detail = page.locator("#detail-1")
    assert detail.locator(".alternatives li bdi").all_text_contents() == ["we meet today again again", HOSTILE]
    assert detail.locator(".word bdi").all_text_contents() == ["we", "meet", "today", "again"]
    assert detail.locator(".skeleton path.right_hand").count() > 4
    word = detail.locator(".word").nth(1)
    word.hover()
    told = detail.locator(".told")
    assert "“meet” rests on 0.75–1.50 s; hiding it costs 2.50 nats" in told.text_content()
    canvas, stretch = (detail.locator(s).bounding_box() for s in (".canvas", ".stretch"))
    assert stretch["x"] - canvas["x"] == pytest.approx(canvas["width"] * 0.75 / 3, abs=2)
    assert stretch["width"] == pytest.approx(canvas["width"] * 0.75 / 3, abs=3)
    assert "unproved" in detail.locator(".word").nth(2).get_attribute("class")
    painted = (
        "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((_, i) => i % 4 == 3)).size"
    )
    assert detail.locator("canvas.heat").evaluate(painted) > 5
    before = detail.locator("canvas.heat").bounding_box()["height"]
    detail.get_by_role("button", name="Each landmark").click()
    assert detail.locator("canvas.heat").bounding_box()["height"] > 3 * before
    detail.get_by_text("The same as a table").click()
    assert "2.50" in detail.get_by_role("row", name="meet").text_content()
    button.click()
    assert detail.count() == 0 and button.get_attribute("aria-expanded") == "false"


def test_the_slider_moves_the_large_picture_and_play_ends_at_the_last(page):
    opener(page, "row-0001").click()
    detail = page.locator("#detail-1")
    figure = detail.locator("svg.figure")
    slider = detail.get_by_role("slider")
    slider.focus()
    page.keyboard.press("Home")
    first = figure.inner_html()
    page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "0.50 s" and figure.inner_html() != first
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    detail.get_by_role("button", name="Play").click()
    page.wait_for_function("() => document.querySelector('#detail-1 input[type=range]').value === '5'")
    detail.get_by_role("button", name="Play").wait_for()


def test_everything_is_reached_and_worked_by_keyboard(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the sentences"
    page.get_by_role("searchbox").focus()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        if reached[-1] == "open-1":
            break
    assert {"Worst first", "Best first", "Random", "WER"} <= set(reached) and reached[-1] == "open-1"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    detail = page.locator("#detail-1")
    detail.wait_for()
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('word')"):
            break
    assert "“we” rests on" in detail.locator(".told").text_content()
    page.keyboard.press("Enter")
    assert detail.locator(".word[aria-pressed=true]").count() == 1
    page.keyboard.press("Escape")
    assert detail.locator(".word[aria-pressed=true]").count() == 0
    assert detail.locator(".stretch").is_hidden()


@pytest.mark.parametrize("width", [320, 360, 800, 1000, 1280])
def test_the_page_never_scrolls_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 700})
    opener(page, "row-0001").click()
    opener(page, "row-0003").click()
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_on_a_phone_rows_are_still_rows_and_sorting_is_there(page):
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.get_by_role("table", name="Sentences").get_by_role("row").count() == 1 + len(PAIRS)
    page.get_by_role("columnheader", name="BLEU").get_by_role("button").click()
    assert page.locator("th[data-key=bleu]").get_attribute("aria-sort") == "ascending"
    box = opener(page, "row-0001").bounding_box()
    assert box["height"] >= 24  # a finger's target, WCAG 2.2


def brightness(page, expression: str) -> float:
    """0 to 255."""
    colour = page.evaluate(f"getComputedStyle({expression}).backgroundColor")
    values = [float(v) for v in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    return sum(values) / 3


def test_dark_as_the_system_says_and_as_the_button_says(page):
    assert brightness(page, "document.body") > 200
    page.emulate_media(color_scheme="dark")
    assert brightness(page, "document.body") < 60
    line = "document.querySelector('#training svg.plot text')"
    assert page.evaluate(f"getComputedStyle({line}).fill") != "rgb(0, 0, 0)"
    button = page.locator("#theme")
    button.click()
    assert button.text_content() == "Theme: light" and brightness(page, "document.body") > 200
    button.click()
    page.emulate_media(color_scheme="light")
    assert button.text_content() == "Theme: dark" and brightness(page, "document.body") < 60
    page.reload()
    assert brightness(page, "document.body") < 60  # remembered


# WCAG 2: relative luminance of each text and of the first opaque ground behind it
CONTRAST = """() => {
  const rgb = c => c.match(/[\\d.]+/g).map(Number);
  const linear = v => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = c => {
    const [r, g, b] = rgb(c).map(v => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if ((rgb(c)[3] ?? 1) === 1) return c;
    }
  };
  const poor = [];
  for (const e of document.querySelectorAll('main *, header *, nav *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest('svg') || e.disabled || !e.getClientRects().length) continue;
    const [a, b] = [luminance(getComputedStyle(e).color), luminance(ground(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${e.tagName}.${e.className} ${e.textContent.slice(0, 20)} ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page, scheme):
    page.emulate_media(color_scheme=scheme)
    opener(page, "row-0001").click()
    assert page.evaluate(CONTRAST) == []


def test_hostile_text_is_shown_as_text(page):
    row = page.locator("tr.row", has_text="row-0003")
    assert row.locator(".ref").text_content() == HOSTILE
    opener(page, "row-0003").click()
    assert page.locator("#detail-3 .texts-full bdi").first.text_content() == HOSTILE
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    right = page.locator("tr.row", has_text="row-0004").locator(".ref")
    assert right.text_content() == RTL
    assert right.evaluate("e => getComputedStyle(e).direction") == "rtl"


def test_a_script_that_got_in_would_not_run(browser_page, address, tmp_path):
    """The policy, seen at work: the same page with a script, a style and a picture from elsewhere put into it."""
    page = browser_page.page
    page.goto(address)
    page.evaluate("""() => {
        const script = document.createElement('script');
        script.textContent = 'window.hacked = 1';
        document.body.append(script);
        const picture = document.createElement('img');
        picture.src = 'https://example.org/x.png';
        document.body.append(picture);
        return fetch('https://example.org/').catch(() => 0);
    }""")
    assert page.evaluate("window.hacked") is None
    assert sum("Content Security Policy" in text for text in browser_page.console_errors) >= 3


def test_frames_without_a_skeleton_and_words_without_a_strip(browser_page, tmp_path):
    dot = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    frames = {"kind": "frames", "times": [0.5, 1.5, 2.5], "images": [dot] * 3, "blurred": True}
    folder = write_results(tmp_path)
    sentences = [
        evidence_of("row-0000", ["the"], strip=frames, saliency=None),
        evidence_of("row-0001", ["we", "meet"], strip=None, saliency=None),
    ]
    (folder / "evidence.json").write_text(json.dumps({"sentences": sentences}))
    page = browser_page.page
    page.goto(write_report(folder).as_uri())
    opener(page, "row-0000").click()
    assert page.locator("#detail-0 .frames img").count() == 3
    assert "faces blurred" in page.locator("#detail-0 .gutter").text_content()
    opener(page, "row-0001").click()
    page.locator("#detail-1 .word").nth(1).hover()
    assert "“meet” rests on 1.50–3.00 s" in page.locator("#detail-1 .told").text_content()
    assert browser_page.console_errors == []


def test_many_sentences_stay_usable(browser_page, tmp_path):
    count = 3000
    pairs = [
        (f"sentence number {i} here", f"sentence number {i} here" if i % 3 else f"number {i}") for i in range(count)
    ]
    folder = write_results(tmp_path, pairs, evidence=False)
    page = browser_page.page
    page.goto(write_report(folder).as_uri())
    assert page.locator("#status").text_content() == "1–25 of 3000 sentences"
    assert page.locator("tr.row").count() == 25
    page.locator("#last").click()
    assert page.locator("#status").text_content() == "2976–3000 of 3000 sentences"
    assert page.locator("#next").is_disabled() and page.locator("#previous").is_enabled()
    page.get_by_label("Sentences a page").select_option("100")
    assert page.locator("tr.row").count() == 100
    page.get_by_role("searchbox").fill("number 2999 here")
    page.get_by_text("1–1 of 1 sentences found among 3000").wait_for()
    assert browser_page.console_errors == []
