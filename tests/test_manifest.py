"""slt_plugin.data.manifest: every kind of bad line is found and placed; what is written reads back the same."""

import os
import pickle
import time
from pathlib import Path

import pytest

from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import COLUMNS, ManifestError, Row, read_manifest, resolve_path, write_manifest

FULL = Row(
    id="a-1",
    path="poses/a.pose",
    text="Héllo „wörld”\u2028 and more",
    start=1.25,
    end=3.3333333333333335,
    num_frames=52,
    fps=25.0,
    box=(-0.25, 0.0, 1.5, 0.75),
    sign_lang="ase",
    text_lang="en",
    signer="s 1",
    corpus="how2sign",
)


def read(tmp_path: Path, content: str | bytes, **options) -> list[Row]:
    file = tmp_path / "m.tsv"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_manifest(file, **options)


def problems(tmp_path: Path, content: str | bytes, **options) -> list[tuple[int | None, str | None, str]]:
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, content, **options)
    assert str(tmp_path / "m.tsv") in str(caught.value)
    return [(p.line, p.column, p.reason) for p in caught.value.problems]


def one_problem(tmp_path: Path, content: str | bytes, **options) -> tuple[int | None, str | None, str]:
    found = problems(tmp_path, content, **options)
    assert len(found) == 1, found
    return found[0]


def test_reads_columns_in_any_order_and_empty_cells_as_none(tmp_path):
    rows = read(tmp_path, "text\tpath\tid\tbox\n hi there\tx.pose\t1\t0,0.25,0.5,1\n\ty.pose\t2\t\n")
    assert rows == [
        Row(id="1", path="x.pose", text=" hi there", box=(0.0, 0.25, 0.5, 1.0)),
        Row(id="2", path="y.pose"),
    ]


def test_text_keeps_quotes_and_unicode_line_separators(tmp_path):
    text = 'say "yes\u2028or\x0bno\x85'
    assert read(tmp_path, f"id\tpath\ttext\n1\ta\t{text}\n")[0].text == text


def test_last_line_may_lack_its_newline(tmp_path):
    assert len(read(tmp_path, "id\tpath\n1\ta\n2\tb")) == 2


def test_round_trip_is_exact_and_writes_only_used_columns(tmp_path):
    file = tmp_path / "m.tsv"
    write_manifest(file, [FULL, Row(id="b", path="/abs/b.npy")])
    assert read_manifest(file) == [FULL, Row(id="b", path="/abs/b.npy")]
    assert file.read_text().split("\n")[0] == "\t".join(COLUMNS)
    write_manifest(file, [Row(id="b", path="b.npy", fps=24.0, text="")])
    assert file.read_text() == "id\tpath\tfps\nb\tb.npy\t24.0\n"


BAD_CELLS = [
    ("start", "-1", "negative"),
    ("start", "abc", "not a number"),
    ("start", "nan", "not a number"),
    ("start", "inf", "not a number"),
    ("start", "1e999", "too large"),
    ("start", "1_0", "not a number"),
    ("start", "٣", "not a number"),
    ("start", " 1", "not a number"),
    ("end", "0", "not above 0"),
    ("fps", "0", "not above 0"),
    ("fps", "-25", "not above 0"),
    ("num_frames", "0", "whole number above 0"),
    ("num_frames", "12.0", "whole number above 0"),
    ("num_frames", "9" * 5000, "whole number above 0"),
    ("box", "0,0,1", "3 numbers"),
    ("box", "0,0,1,2.01", "leaves [-1, 2]"),
    ("box", "-1.1,0,1,1", "leaves [-1, 2]"),
    ("box", "0.5,0,0.5,1", "x0 < x1"),
    ("box", "0,0.6,1,0.5", "y0 < y1"),
    ("box", "0,0,nan,1", "not a number"),
    ("text", "  ", "only spaces"),
    ("signer", " s1", "spaces around"),
]


@pytest.mark.parametrize(("column", "cell", "reason"), BAD_CELLS, ids=[f"{c}-{v[:9]}" for c, v, _ in BAD_CELLS])
def test_bad_cell_is_placed(tmp_path, column, cell, reason):
    line, name, why = one_problem(tmp_path, f"id\tpath\t{column}\n1\ta\t\n2\tb\t{cell}\n")
    assert (line, name) == (3, column)
    assert reason in why


def test_end_must_follow_start(tmp_path):
    table = "id\tpath\tstart\tend\n1\ta\t2\t2\n2\ta\t2\t1.5\n3\ta\t2\t2.5\n4\ta\t\t1\n5\ta\t7\t\n"
    found = problems(tmp_path, table)
    assert [(line, column) for line, column, _ in found] == [(2, "end"), (3, "end")]
    assert found[1][2] == "end 1.5 is not after start 2: correct one of them"


def test_duplicate_ids_name_the_first_line(tmp_path):
    assert one_problem(tmp_path, "id\tpath\nx\ta\ny\tb\nx\tc\n") == (
        4,
        "id",
        "'x' is already the id of line 2: give each row its own",
    )


@pytest.mark.parametrize(("row", "column"), [("\ta", "id"), ("1\t", "path"), ("  \ta", "id")])
def test_empty_id_or_path(tmp_path, row, column):
    assert {(line, name) for line, name, _ in problems(tmp_path, f"id\tpath\n{row}\n")} == {(2, column)}


def test_unknown_column_suggests_a_near_miss(tmp_path):
    line, column, reason = one_problem(tmp_path, "id\tpath\tTexts\n1\ta\tb\n")
    assert (line, column) == (1, "Texts")
    assert "'text'" in reason
    assert "'num_frames'" in one_problem(tmp_path, "id\tpath\tNUM_FRAMES\n1\ta\t3\n")[2]
    assert "remove it (known columns: id, path" in one_problem(tmp_path, "id\tpath\tvideo_quality\n1\ta\tb\n")[2]


def test_header_problems_do_not_hide_the_rows(tmp_path):
    found = problems(tmp_path, "id\tfps\tfps\n1\t-3\t25\n")
    assert [(line, column) for line, column, _ in found] == [(1, "fps"), (1, "path"), (2, "fps")]
    assert "2 times" in found[0][2]
    assert found[1][2] == "required column is missing: add it"


@pytest.mark.parametrize("column", ["id", "path"])
def test_required_columns(tmp_path, column):
    assert one_problem(tmp_path, f"{column}\n1\n2\n")[0] == 1


def test_no_header_points_to_convert(tmp_path):
    line, _, reason = one_problem(tmp_path, "abcde.mp4\t3.2\tsome caption\n")
    assert line == 1
    assert "slt-manifest convert" in reason


def test_wrong_number_of_cells(tmp_path):
    found = problems(tmp_path, "id\tpath\ttext\n1\ta\tb\tc\n2\ta\n\n")
    assert [line for line, _, _ in found] == [2, 3, 4]
    assert "4 cells, but the header has 3: remove tabs inside a cell" in found[0][2]
    assert "2 cells" in found[1][2]
    assert "empty line" in found[2][2]


def test_crlf_is_one_problem_and_the_rest_is_still_checked(tmp_path):
    found = problems(tmp_path, "id\tpath\tfps\r\n1\ta\t25\r\n2\tb\tx\r\n")
    assert [(line, column) for line, column, _ in found] == [(1, None), (3, "fps")]
    assert "3 lines (CRLF)" in found[0][2]
    line, _, reason = one_problem(tmp_path, "id\tpath\n1\ta\n2\tb\r\n3\tc\n")
    assert line == 3
    assert "1 lines" in reason


def test_carriage_return_and_nul_inside_a_line(tmp_path):
    found = problems(tmp_path, b"id\tpath\ttext\n1\ta\tb\rc\n2\tb\tx\0y\n")
    assert [line for line, _, _ in found] == [2, 3]
    assert "carriage return inside" in found[0][2]
    assert "NUL" in found[1][2]


def test_byte_order_marks(tmp_path):
    line, _, reason = one_problem(tmp_path, b"\xef\xbb\xbfid\tpath\n1\ta\n")
    assert line == 1
    assert "BOM" in reason
    assert "UTF-16" in one_problem(tmp_path, "id\tpath\n1\ta\n".encode("utf-16"))[2]


def test_not_utf8_names_the_lines_and_the_rest_is_still_checked(tmp_path):
    found = problems(tmp_path, b"id\tpath\ttext\n1\ta\tcaf\xe9\n2\tb\tok\n2\td\tok\n3\tc\t\xff\n")
    assert [line for line, _, _ in found] == [2, 4, 5]  # in line order, whatever was found first
    assert "0xe9 at position 8" in found[0][2]


@pytest.mark.parametrize("content", ["", "\n\n", "  "])
def test_empty_file(tmp_path, content):
    assert "the file is empty" in one_problem(tmp_path, content)[2]


def test_header_only(tmp_path):
    assert "no rows" in one_problem(tmp_path, "id\tpath\n")[2]


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ManifestError, match=r"none\.tsv: cannot be read: No such file"):
        read_manifest(tmp_path / "none.tsv")
    with pytest.raises(ManifestError, match="cannot be read: Is a directory"):
        read_manifest(tmp_path)


def test_require_text(tmp_path):
    table = "id\tpath\ttext\n1\ta\thello\n2\tb\t\n3\tc\t\n"
    assert len(read(tmp_path, table)) == 3
    assert [(line, column) for line, column, _ in problems(tmp_path, table, require_text=True)] == [
        (3, "text"),
        (4, "text"),
    ]
    assert one_problem(tmp_path, "id\tpath\n1\ta\n", require_text=True)[:2] == (1, "text")


def test_long_lists_show_twenty_and_count_the_rest(tmp_path):
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, "id\tpath\tfps\n" + "".join(f"{i}\ta\tx\n" for i in range(45)))
    lines = str(caught.value).split("\n")
    assert len(caught.value.problems) == 45
    assert lines[0].endswith("45 problems:")
    assert lines[1] == "  line 2, column fps: 'x' is not a number: write it like 12.5"
    assert len(lines) == 22
    assert lines[-1] == "  ... and 25 more"


def test_error_is_a_data_error_and_survives_pickling(tmp_path):
    with pytest.raises(DataError) as caught:
        read(tmp_path, "id\tpath\n1\t\n")
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 (our own bytes)
    assert str(copy) == str(caught.value)
    assert copy.problems == caught.value.problems


BAD_ROWS = [
    (Row(id="x", path="a", text="two\tcells"), "tab or line break"),
    (Row(id="x", path="a", text="two\nlines"), "tab or line break"),
    (Row(id="x", path="a", text="a\rb"), "tab or line break"),
    (Row(id="x", path=""), "empty"),
    (Row(id="x", path="a", start=3.0, end=2.0), "not after start"),
    (Row(id="x", path="a", fps=float("nan")), "not a number"),
    (Row(id="x", path="a", box=(0.0, 0.0, 2.5, 1.0)), "leaves [-1, 2]"),
    (Row(id="x", path="a", num_frames=2.5), "float"),
    (Row(id="x", path="a", start="soon"), "soon"),
    (Row(id="x", path=Path("a")), "is not a string: convert it"),
    (Row(id="x", path="a", text="\udc80"), "not UTF-8"),
    (Row(id="first", path="a"), "already the id of line 2"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS, ids=[reason for _, reason in BAD_ROWS])
def test_write_refuses_what_read_would_and_keeps_the_old_file(tmp_path, row, reason):
    file = tmp_path / "m.tsv"
    file.write_text("old")
    with pytest.raises(ManifestError) as caught:
        write_manifest(file, [Row(id="first", path="a"), row])
    assert caught.value.problems[0].line == 3
    assert f"row {row.id!r}" in str(caught.value)
    assert reason in str(caught.value)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["m.tsv"]


def test_write_refuses_no_rows_and_missing_folders(tmp_path):
    with pytest.raises(ManifestError, match="no rows"):
        write_manifest(tmp_path / "m.tsv", [])
    with pytest.raises(ManifestError, match="make the folder"):
        write_manifest(tmp_path / "none" / "m.tsv", [FULL])
    assert os.listdir(tmp_path) == []


def test_write_is_atomic(tmp_path, monkeypatch):
    """Until os.replace the old file is whole, and a failure leaves no temporary file."""
    file = tmp_path / "m.tsv"
    file.write_text("old")
    seen = []

    def fail(source, target):
        seen.append((Path(source).parent, Path(source).read_text(), Path(target).read_text()))
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_manifest(file, [Row(id="1", path="a")])
    assert seen == [(tmp_path, "id\tpath\n1\ta\n", "old")]
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["m.tsv"]


def test_resolve_path():
    assert resolve_path(Row(id="1", path="v/a.mp4"), Path("/data")) == Path("/data/v/a.mp4")
    assert resolve_path(Row(id="1", path="/v/a.mp4"), Path("/data")) == Path("/v/a.mp4")
    assert resolve_path(Row(id="1", path="features/{epoch}/a.pt"), "/data") == Path("/data/features/{epoch}/a.pt")


def test_large_manifest_is_fast(tmp_path):
    """100,000 rows take about a second; the limit leaves room for a busy machine."""
    rows = [Row(f"id{i}", f"v/{i}.mp4", "ten words or so " * 3, i, i + 7.3, 180, 25.0) for i in range(20_000)]
    write_manifest(tmp_path / "m.tsv", rows)
    begin = time.process_time()
    assert len(read_manifest(tmp_path / "m.tsv")) == 20_000
    assert time.process_time() - begin < 2


def test_the_example_in_the_readme_is_valid(tmp_path):
    readme = (Path(__file__).parents[1] / "manifests/README.md").read_text(encoding="utf-8")
    rows = read(tmp_path, readme.split("```\n")[1], require_text=True)
    assert [row.id for row in rows] == ["v7-001", "v7-001-es", "v7-002"]
    assert all(f"`{column}`" in readme for column in COLUMNS)


@pytest.mark.parametrize("name", ["how2sign_realigned_val.tab.csv", "PHOENIX-2014-T.test.corpus.csv"])
def test_real_foreign_tables_are_refused_in_two_lines(name):
    file = Path(__file__).parents[2] / "shared/realdata/manifests" / name
    if not file.exists():
        pytest.skip(f"real data is not here: {file}")
    with pytest.raises(ManifestError, match="no header") as caught:
        read_manifest(file)
    assert len(caught.value.problems) == 2  # CRLF, and no header of ours
