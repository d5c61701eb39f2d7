"""Curves out of fairseq's logs, and plots that follow the page's theme."""

import json
import os
import re
from pathlib import Path

import pytest
from report_helpers import LOG

from slt_plugin.report import plots, svg
from slt_plugin.report.curves import Curve, Curves, read_curves

STAMP = "[2026-01-01 10:00:00,000]"


def json_line(name: str, **stats) -> str:
    return f"{STAMP}[{name}][INFO] - {json.dumps(stats)}\n"


def curves_of(folder: Path, text: str, name: str = "train.log") -> Curves:
    (folder / name).write_text(text, encoding="utf-8")
    return read_curves(folder)


def test_plain_logs(tmp_path):
    found = curves_of(tmp_path, LOG)
    assert found.train["loss"] == Curve((50, 100), (4.5, 2.5))  # within epochs, not their means
    assert found.train["lr"].values == (0.001, 0.002)
    assert found.valid["valid"]["bleu"] == Curve((100, 200), (10.5, 20.5))
    assert found.logs == (tmp_path / "train.log",)


def test_json_logs_give_the_same(tmp_path):
    text = (
        json_line("train_inner", epoch=1, update=0.5, loss="4.5", num_updates="50", lr="0.001")
        + json_line("train_inner", epoch=1, update=1, loss="2.5", num_updates="100", lr="0.002")
        + json_line("valid", epoch=1, valid_loss="2", valid_bleu="10.5", valid_chrf="30", valid_num_updates="100")
        + json_line("train", epoch=1, train_loss="3.5", train_num_updates="100")
        + json_line("valid", epoch=2, valid_loss="1", valid_bleu="20.5", valid_chrf="40", valid_num_updates="200")
    )
    found = curves_of(tmp_path, text)
    (tmp_path / "fairseq").mkdir()
    other = text.replace("[valid][INFO] - ", " | INFO | valid | ").replace(
        "[train_inner][INFO] - ", "| INFO | train_inner | "
    )
    assert curves_of(tmp_path / "fairseq", other).valid == found.valid
    assert curves_of(tmp_path / "fairseq", other).train == found.train
    (tmp_path / "plain").mkdir()
    plain = curves_of(tmp_path / "plain", LOG)
    assert found.train["loss"] == plain.train["loss"] and found.train["lr"] == plain.train["lr"]
    assert found.valid["valid"] == plain.valid["valid"]


def test_epochs_are_taken_where_nothing_was_logged_within_them(tmp_path):
    lines = [line for line in LOG.splitlines() if "train_inner" not in line]
    assert curves_of(tmp_path, "\n".join(lines)).train["loss"] == Curve((100,), (3.5,))


def test_of_a_restarted_training_the_last_run_counts(tmp_path):
    again = LOG.replace("bleu 10.5", "bleu 11.5").splitlines()[2]
    found = curves_of(tmp_path, LOG + again + "\n")
    assert found.valid["valid"]["bleu"] == Curve((100,), (11.5,))
    assert found.valid["valid"]["chrf"] == Curve((100,), (30.0,))
    assert found.train["loss"] == Curve((50, 100), (4.5, 2.5))  # of another split, which did not go back


def test_two_trainings_in_one_log_are_not_mixed(tmp_path):
    """The second is shorter, logs elsewhere, and does not score chrF: nothing of the first shows between its points."""
    second = (
        json_line("train_inner", loss="9", num_updates="30")
        + json_line("train_inner", loss="8", num_updates="60")
        + json_line("valid", valid_loss="7", valid_bleu="1.5", valid_num_updates="60")
    )
    found = curves_of(tmp_path, LOG + second)
    assert found.train["loss"] == Curve((30, 60), (9.0, 8.0))
    assert "ppl" not in found.train
    assert found.valid["valid"] == {"loss": Curve((60,), (7.0,)), "bleu": Curve((60,), (1.5,))}


def test_a_resumed_training_keeps_what_came_before_its_checkpoint(tmp_path):
    found = curves_of(tmp_path, LOG + json_line("train_inner", loss="2.25", num_updates="75"))
    assert found.train["loss"] == Curve((50, 75), (4.5, 2.25))


def test_logs_are_read_in_the_order_in_which_they_were_written(tmp_path):
    """By time and not by name: the later training counts."""
    (tmp_path / "a.log").write_text(json_line("train_inner", loss="1", num_updates="10"))
    (tmp_path / "b.log").write_text("".join(json_line("train_inner", loss="2", num_updates=n) for n in ("5", "15")))
    for late, expected in (("a", Curve((5, 10), (2.0, 1.0))), ("b", Curve((5, 15), (2.0, 2.0)))):
        for name in "ab":
            os.utime(tmp_path / f"{name}.log", (1000 + (name == late),) * 2)
        assert read_curves(tmp_path).train["loss"] == expected


def test_broken_lines_and_infinite_values_are_passed_over(tmp_path):
    text = (
        LOG
        + json_line("valid", valid_loss="0.5", valid_num_updates="300")[:-9]
        + f"{STAMP}[valid][INFO] - epoch 003 | valid on 'valid' subset | loss nan | bleu 1 | num_updates 300\n"
        + f"{STAMP}[train_inner][INFO] - epoch 003:  1 / 9 loss=inf, num_upd"
    )
    found = curves_of(tmp_path, text)
    assert found.valid["valid"]["loss"].updates == (100, 200)
    assert found.valid["valid"]["bleu"].values == (10.5, 20.5, 1.0)


def test_other_logs_and_empty_folders(tmp_path):
    assert not read_curves(tmp_path) and not read_curves(tmp_path / "nowhere")
    assert not curves_of(tmp_path, "hello\nnum_updates are counted\n", "other.log").logs
    found = curves_of(tmp_path, LOG)
    assert found and found.logs == (tmp_path / "train.log",)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> dict[str, str]:
    curves = curves_of(tmp_path_factory.mktemp("log"), LOG)
    return {
        "loss": plots.loss_plot(curves, "loss"),
        "scores": plots.score_plot(curves, "scores"),
        "lengths": plots.length_plot([3, 4, 70], [3, 3, 0], "lengths"),
        "by-length": plots.score_by_length_plot([3, 3, 70], [50.0, 70.0, 90.0], "by-length"),
        "spread": plots.score_histogram([10.0, 100.0], "spread"),
        "errors": plots.error_plot({"substituted": 3, "left out": 1, "added": 0}, "errors"),
    }


def test_plots_take_every_colour_from_the_page(drawn):
    for name, text in drawn.items():
        colours = set(re.findall(r'(?:fill|stroke)="([^"]*)"', text))
        fixed = {c for c in colours if not re.fullmatch(r"none|currentColor|var\(--\w+\)|url\(#.*\)", c)}
        assert not fixed, (name, fixed)
        assert "style" not in text and "<metadata" not in text


def test_plots_keep_their_ids_apart_and_their_references_whole(drawn):
    for name, text in drawn.items():
        ids = re.findall(r' id="([^"]*)"', text)
        assert ids and all(i.startswith(f"{name}-") for i in ids)
        used = re.findall(r'(?:href="#|url\(#)([^")]*)', text)
        assert set(used) <= set(ids)


def test_plots_say_what_they_show(drawn):
    assert 'aria-label="Word errors: 3 substituted, 1 left out, 0 added"' in drawn["errors"]
    assert "mean 25.7 in references, 2.0 in hypotheses" in drawn["lengths"]
    assert "3 words: 60.0 (2 sentences); 40 words: 90.0 (1 sentences)" in drawn["by-length"]
    assert "1 of 2 reach 95 or more, 1 are below 50" in drawn["spread"]


def test_nothing_to_draw_is_none():
    assert plots.loss_plot(Curves(), "a") is None and plots.score_plot(Curves(), "a") is None
    assert plots.error_plot({"substituted": 0}, "a") is None and plots.length_plot([], [], "a") is None


def test_a_plot_of_one_value_and_a_long_curve(tmp_path):
    one = Curves(valid={"valid": {"bleu": Curve((5,), (1.0,))}})
    assert "1 at first" in plots.score_plot(one, "a")
    long = Curves(train={"loss": Curve(tuple(range(50_000)), tuple(1 / (n + 1) for n in range(50_000)))})
    assert len(plots.loss_plot(long, "a")) < 60_000


def test_labels_without_characters_that_xml_cannot_hold():
    assert svg.printable("a\x00b\x1f🤟") == "a\ufffdb\ufffd🤟"
