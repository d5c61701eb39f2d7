"""Tables of slt-report compare in each form: the cells are there, and what has a meaning in the form is escaped."""

import re
from html.parser import HTMLParser

import pytest
from result_helpers import results_folder

from slt_plugin.cli import report
from slt_plugin.report.tables import Table, as_csv, as_html, as_latex, as_markdown, as_text, latex

NASTY = r"a_b & 100% {x} | <script>alert(1)</script> \cmd $y$ #1 ~ ^ `z` *w*"
GROUPS = (((NASTY, "1.50 ± 0.20*"), ("b", "10.25")), (("†p", "~3.4"),))
TABLE = Table("T & t", ("system", "BLEU-4"), GROUPS, range(1, 2))


class Cells(HTMLParser):
    """Rows of cells of a page, their tags, and every tag there is."""

    def __init__(self):
        super().__init__()
        self.rows, self.tags, self._open = [], [], False

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
            self._open = True

    def handle_endtag(self, tag):
        self._open &= tag not in ("th", "td")

    def handle_data(self, data):
        if self._open:
            self.rows[-1][-1] += data


def cells_of(page: str) -> Cells:
    parser = Cells()
    parser.feed(page)
    return parser


def test_text_is_aligned():
    first, *others = as_text([TABLE], ["a note"]).splitlines()
    assert first == "system" + " " * (len(NASTY) - len("system")) + "        BLEU-4"
    assert others[1] == "b" + " " * (len(NASTY) + 7) + " 10.25" and others[-2:] == ["", "a note"]


def test_markdown_has_one_cell_for_each():
    title, _, header, rule, *rows = as_markdown([TABLE], ["x < y"]).splitlines()
    assert title == "**T & t**" and rows[3:] == ["", r"- x \< y"]
    assert re.fullmatch(r"\| -+ \| -+: \|", rule)
    for line in (header, *rows[:3]):
        assert len(re.split(r"(?<!\\)\|", line)) == 4 and len(line) == len(header)
    # backslash escapes undone, as a renderer does
    unescaped = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", rows[0])
    assert unescaped.startswith(f"| {NASTY} | ")
    assert r"1.50 ± 0.20\*" in rows[0] and r"\~3.4" in rows[2] and r"\<script\>" in rows[0]


def test_latex_escapes_every_special_character():
    lines = as_latex([TABLE], ["100 % of a_b"]).splitlines()
    rows = [line for line in lines if line.endswith(r"\\")]
    assert len(rows) == 4 and all(len(re.split(r"(?<!\\)&", line)) == 2 for line in rows)
    assert [lines.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 2, 1]
    assert r"\begin{tabular}{lr}" in lines and r"\caption{T \& t}" in lines
    assert r"\par\footnotesize 100 \% of a\_b" in lines and lines[-1] == r"\end{table}"
    commands = r"\\textbackslash\{\}|\\text\w+\{\}|\\[&%$#_{}]|\$\\(pm|downarrow)\$"
    for special in (NASTY, '±†↓"<>'):
        assert not re.search(r"[\\&%$#_{}~^<>|\"±†↓]", re.sub(commands, "", latex(special)))
    assert latex("a\nb") == "a b"


def test_html_shows_text_as_text():
    page = as_html([TABLE], ["<b>note</b>"])
    found = cells_of(page)
    assert found.rows == [["system", "BLEU-4"], [NASTY, "1.50 ± 0.20*"], ["b", "10.25"], ["†p", "~3.4"]]
    names = [tag for tag, _ in found.tags]
    assert "script" not in names and "b" not in names and names.count("tbody") == 2
    assert not any("src" in attributes or "href" in attributes for _, attributes in found.tags)
    assert "default-src 'none'" in page and "color-scheme: light dark" in page


def test_csv_keeps_numbers_and_leaves_the_unknown_empty():
    text = as_csv([{"system": 'a,"b"', "bleu4": 12.345678901, "p": None}, {"system": "c", "bleu4": 1, "p": 0.5}])
    assert text.splitlines() == ["system,bleu4,p", '"a,""b""",12.345678901,', "c,1,0.5"]


@pytest.mark.parametrize("form", ["text", "markdown", "csv", "latex", "html"])
def test_every_form_of_one_comparison(tmp_path, capsys, form):
    texts = {f"s{i}": ("a small house stands", f"a {'small' if i % 2 else 'big'} house stands") for i in range(9)}
    for name in "ab":
        results_folder(tmp_path / name, texts, model={"parameters": 2_000_000, "gflops_per_second_of_signing": 1.5})
    out = tmp_path / "new" / "table.txt"
    words = [f"a_1={tmp_path / 'a'}", f"b={tmp_path / 'b'}", "--published", "how2sign", "--format", form]
    assert report.main(["compare", *words, "--out", str(out), "--note", "first of all"]) == 0
    assert capsys.readouterr().out == ""
    text = out.read_text()
    assert "a_1" in text.replace("\\_", "_") and "SSVP-SLT-LSP (MAE + CLIP)" in text and "Rust et al." in text
    assert ("first of all" in text) == (form != "csv")
    assert ("2.00 M" in text) == (form != "csv") and "1.5" in text
    assert report.main(["compare", *words]) == 0
    printed = capsys.readouterr().out
    assert ("first of all" in printed) is False and printed.count("\n") <= text.count("\n")


def test_the_page_in_a_browser(tmp_path, browser_page):
    results_folder(tmp_path / "a", {f"s{i}": ("a small house", "a small house") for i in range(3)})
    out = tmp_path / "table.html"
    words = ["compare", f"a={tmp_path / 'a'}", "--published", "how2sign", "--format", "html", "--out", str(out)]
    assert report.main([*words, "--note", "<img src=http://example.org/x.png>"]) == 0
    page = browser_page.page
    page.set_viewport_size({"width": 380, "height": 700})
    page.goto(out.as_uri())
    assert page.locator("tbody tr").count() == 10 and page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # the table scrolls by itself
    assert browser_page.console_errors == [] and browser_page.outside_requests == []
