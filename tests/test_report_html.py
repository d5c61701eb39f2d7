"""``report.html`` as a file: what is in it, what cannot get in, and what is said of damaged folders."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from report_helpers import HOSTILE, PAIRS, write_results

from slt_plugin.cli.report import main
from slt_plugin.report.errors import ReportError
from slt_plugin.report.html import write_report
from slt_plugin.report.markup import Html, label, table, tag
from slt_plugin.report.page_data import page_json, sentences
from slt_plugin.report.results_folder import read_results


class Page(HTMLParser):
    """Elements with their attributes, the text of each script and style, and all other text."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.raw: list[tuple[str, str]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""
        if self._inside:
            self.raw.append((tag, ""))

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside:
            self.raw[-1] = (self._inside, self.raw[-1][1] + data)
        else:
            self.text += data


def report(folder) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    return report(write_results(tmp_path_factory.mktemp("report")))


def test_headline_scores_have_intervals_and_signatures(page):
    for expected in ("41.25", "40.00 to 42.50", "nrefs:1|tok:13a", "lower is better", "jiwer"):
        assert expected in page.text


def test_all_parts_of_the_evaluation_are_told(page):
    for expected in (
        "85 %", "17 of 20 words", "hide and see", "without hands", "0.50", "1,234,567", "a note", "2.11.0", "beam: 5",
        "slt-evaluate 'results=a b'", "x_y/checkpoint_best.pt", "too-long", "<b>s0</b>", "hours", "right hand",
    ):  # fmt: skip
        assert expected in page.text, expected


def test_curves_of_the_log_beside_the_checkpoint_are_drawn(page):
    labels = [attributes.get("aria-label", "") for name, attributes in page.elements if name == "svg"]
    assert any("training: 4.5 at first, 2.5 at last" in text for text in labels)
    assert any("BLEU: 10.5 at first, 20.5 at last" in text for text in labels)
    assert any("1 left out" in text or "left out" in text for text in labels)


def test_nothing_is_loaded_from_elsewhere_and_no_inline_style_or_handler_needs_permission(page):
    for name, attributes in page.elements:
        assert name not in ("iframe", "object", "embed", "base"), name
        for key, value in attributes.items():
            assert not key.startswith("on") and key != "style", (name, key)
            if key in ("src", "href", "xlink:href", "action", "srcset", "poster", "data"):
                assert value.startswith(("#", "data:")), (name, value)


def test_the_policy_names_exactly_the_page_s_own_script_and_style(page):
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    data, script = (text for name, text in page.raw if name == "script")
    (style,) = (text for name, text in page.raw if name == "style")
    for directive, text in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[directive] == f"'sha256-{digest}'"
    assert len(json.loads(data)["sentences"]) == len(PAIRS)


def test_hostile_text_ends_no_element_and_comes_back_whole(page):
    data = next(text for name, text in page.raw if name == "script")
    records = json.loads(data)["sentences"]
    assert records[3]["ref"] == HOSTILE and "<" not in data
    assert sum(name == "script" for name, _ in page.elements) == 2  # data and code
    assert not any(name == "img" for name, _ in page.elements)


def test_ids_are_unique(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_same_folder_gives_the_same_file(tmp_path):
    folder = write_results(tmp_path)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_what_is_missing_is_left_out(tmp_path):
    gone = dict.fromkeys(
        ("intervals", "breakdown", "speed", "model", "faithfulness", "masked_parts", "dataset", "command", "config",
         "versions", "provenance", "created", "checkpoints", "manifest", "skipped", "generation")
    )  # fmt: skip
    found = report(write_results(tmp_path, evidence=False, log=None, **gone))
    headings = {attributes["id"] for name, attributes in found.elements if name == "section"}
    assert headings == {"scores", "sentences", "errors", "making"}
    assert "41.25" in found.text


def test_a_checkpoint_without_its_log_is_named(tmp_path):
    found = report(write_results(tmp_path, log=None))
    assert f"No log of a training lies in {tmp_path}" in found.text


def test_failed_faithfulness_is_said_plainly(tmp_path):
    failed = {"words": 10, "faithful": 4, "share": 0.4, "required": 0.7, "method": "m"}
    found = report(write_results(tmp_path, faithfulness=failed))
    assert "not passed" in found.text and "Do not read the stretches" in found.text


def test_lowercase_scores_compare_lowercased_words(tmp_path):
    pairs = [("The Weather", "the weather")]
    cased = sentences(read_results(write_results(tmp_path / "a", pairs, evidence=False)))
    lower = sentences(read_results(write_results(tmp_path / "b", pairs, evidence=False, lowercase=True)))
    assert cased.errors["substituted"] == 2 and cased.confusions["The", "the"] == 1
    assert lower.errors["substituted"] == 0 and lower.records[0]["wer"] == 0
    assert lower.records[0]["ref"] == "The Weather"  # shown as written


def test_truecased_scores_compare_the_words_as_scored(tmp_path):
    """Else every capital that truecasing mended is an error below a score that does not count it as one."""
    pairs = [("The Weather in Rome", "the weather in rome"), ("a book", "the book")]
    scored = {"row-0000": "The Weather in Rome", "row-0001": "The book"}
    how = {"bleu4": "tok:13a|truecased:sacremoses-1"}
    folder = write_results(tmp_path / "a", pairs, evidence=False, truecased=scored, signatures=how)
    known = sentences(read_results(folder))
    assert known.errors == {"substituted": 1, "left out": 0, "added": 0} and known.confusions["a", "The"] == 1
    assert [record["hyp"] for record in known.records] == list(scored.values())
    assert known.records[0]["wer"] == 0 and known.records[0]["chrf"] == 100 and known.records[0]["diff"] is None
    text = report(folder).text
    assert "given capitals before scoring (truecase=true). Sentences, word differences and errors below are" in text

    # of a version that did not write them
    old = write_results(tmp_path / "b", pairs, evidence=False, signatures=how)
    assert sentences(read_results(old)).errors["substituted"] == 4
    assert "hypotheses as generated, and may look worse than these scores" in report(old).text
    assert "capitals" not in report(write_results(tmp_path / "c", pairs, evidence=False)).text

    del scored["row-0001"]
    short = write_results(tmp_path / "d", pairs, evidence=False, truecased=scored)
    with pytest.raises(ReportError, match=re.escape('"truecased" has no text of 1 sentences (row-0001)')):
        read_results(short)


def test_word_errors_are_counted_one_by_one(tmp_path):
    known = sentences(read_results(write_results(tmp_path, PAIRS[:3] + PAIRS[5:], evidence=False)))
    # tomorrow -> today, again added; reads left out; three words left out
    assert known.errors == {"substituted": 1, "left out": 4, "added": 1}
    assert known.confusions["reads", ""] == 1 and known.confusions["comes", ""] == 1
    assert known.records[0]["diff"] is None and known.records[0]["seconds"] == 3.0
    assert known.records[0]["more"] == {"signer": "s0"}


def test_page_json_has_no_nan_and_no_tag():
    text = page_json([{"a": "</script>\u2028"}], {"sentences": [{"x": float("nan")}]})
    assert json.loads(text) == {"sentences": [{"a": "</script>\u2028"}], "evidence": {"sentences": [{"x": None}]}}
    assert "<" not in text and "\u2028" not in text


def test_markup_escapes_everything_but_markup():
    assert tag("p", "<b>", Html("<i>"), title='"x"', hidden=True, lang=None) == (
        '<p title="&quot;x&quot;" hidden>&lt;b&gt;<i></p>'
    )
    assert label("peak_memory_mb") == "peak memory mb" and label("a_b/c.pt") == "a_b/c.pt"
    assert 'class="number"' in table(["a", "b"], [["x", "1.5"], ["y", "–"]])
    assert 'class="number"' not in table(["a", "b"], [["x", "one"]])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "metrics.json").unlink(), "has no metrics.json: give a folder that slt-evaluate wrote"),
        (lambda f: (f / "metrics.json").write_text("{"), "metrics.json is no JSON"),
        (lambda f: (f / "metrics.json").write_text("[1]"), "holds a JSON list"),
        (lambda f: (f / "metrics.json").write_text('{"metrics": {"bleu4": "x"}}'), 'no scores under "metrics"'),
        (lambda f: (f / "evidence.json").write_text('{"sentences": [{"id": "a"}]}'), "sentence 0 lacks words, seconds"),
        (lambda f: (f / "hypotheses.jsonl").write_text("{}\n" * len(PAIRS)), "missing id"),
        (
            lambda f: (f / "hypotheses.jsonl").write_text("{}\n"),
            "metrics.json is of 6 sentences, and hypotheses.jsonl has 1: they are of two runs; run slt-evaluate again",
        ),
    ],
)
def test_damaged_folders_are_refused_with_the_file_named(tmp_path, break_it, message):
    folder = write_results(tmp_path)
    break_it(folder)
    with pytest.raises(ReportError, match=re.escape(message)):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_the_parent_folder_is_told_where_the_results_lie(tmp_path):
    folder = write_results(tmp_path)
    with pytest.raises(ReportError, match=re.escape(f"; there is {folder}: choose one")):
        write_report(folder.parent)


def test_slt_report_html_makes_every_folder_again(tmp_path, capsys):
    folders = [write_results(tmp_path / name) for name in "ab"]
    assert main(["html", *map(str, folders)]) == 0
    assert capsys.readouterr().out.split() == [str(folder / "report.html") for folder in folders]
    assert main(["html", str(tmp_path)]) == 1
    assert "has no metrics.json" in capsys.readouterr().err
