"""slt-report reconstruct: a PNG for each row, of the clip and the mask of validation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pretraining_helpers import pretrain, pretraining_task

from slt_plugin.cli import report as command
from slt_plugin.data.manifest import Row, read_manifest, write_manifest
from slt_plugin.models.reconstruction import clip_pictures
from slt_plugin.modules.hiera_mae import mae_tiny_32x64
from slt_plugin.report import clip_picture, reconstruction
from slt_plugin.report.clip_picture import GAP, LINE, MARGIN, draw_clip, write_png
from slt_plugin.report.errors import ReportError
from slt_plugin.report.reconstruction import file_name

SIDE = 128  # pictures of 64 pixels are drawn twice as large


@pytest.fixture(scope="module")
def checkpoint(video_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    pretrain(
        video_corpus,
        folder,
        "optimization.max_update=2",
        "common.seed=7",
        "model.mask_ratio=0.75",
        "dataset.disable_validation=true",
    )
    return folder / "checkpoint_last.pt"


def change(checkpoint, path, edit):
    """The checkpoint with something else in it."""
    state = torch.load(checkpoint, weights_only=True)
    edit(state)
    torch.save(state, path)
    return path


def run(capsys, *words) -> tuple[int, str, str]:
    """Status, stdout and stderr."""
    status = command.main(["reconstruct", *(str(word) for word in words), "--device", "cpu"])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def tile(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    """One picture of 64 x 64 of a PNG."""
    top, left = 2 * LINE + GAP + row * (SIDE + GAP), MARGIN + column * (SIDE + GAP)
    enlarged = picture[top : top + SIDE, left : left + SIDE]
    small = enlarged[::2, ::2]
    assert (enlarged == small.repeat(2, 0).repeat(2, 1)).all()
    return small


def read(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_pictures_are_of_validations_clips_and_masks(video_corpus, checkpoint, tmp_path, capsys):
    status, out, err = run(
        capsys, checkpoint, video_corpus / "valid.tsv", "--out", tmp_path / "a/b", "--ids", "valid-3,valid-1,valid-3"
    )
    assert status == 0, err
    paths = [tmp_path / "a/b" / f"valid-{i}.png" for i in (3, 1)]
    assert out.splitlines() == [str(path) for path in paths] and sorted(paths) == sorted(tmp_path.rglob("*.*"))
    task = pretraining_task(video_corpus, seed=7)
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    mae = mae_tiny_32x64()
    state = torch.load(checkpoint, weights_only=True)["model"]
    mae.load_state_dict({name.removeprefix("mae."): value for name, value in state.items()})
    for path, number in zip(paths, (3, 1), strict=True):
        (expected,) = clip_pictures(mae, dataset.collater([dataset[number]])["net_input"], 0.75)
        drawn, count = read(path), expected.rows.shape[1]
        assert drawn.shape[1] == MARGIN + 8 * (SIDE + GAP)
        for column, step in enumerate(np.linspace(0, count - 1, 8).round().astype(int)):
            for row in range(3):
                assert (tile(drawn, row, column) == expected.rows[row, step].permute(1, 2, 0).numpy()).all()


def test_options_reach_the_pictures(video_corpus, checkpoint, tmp_path, capsys, monkeypatch):
    drawn = []

    def draw(rows, seconds, title, steps):
        drawn.append((rows, seconds, title))
        return draw_clip(rows, seconds, title, steps)

    monkeypatch.setattr(reconstruction, "draw_clip", draw)
    manifest = video_corpus / "valid.tsv"
    for words in ([], ["--seed", 8], ["--mask-ratio", 0.5, "--steps", 3]):
        assert run(capsys, checkpoint, manifest, "--out", tmp_path, "--first", 1, *words)[0] == 0
    (rows, _, title), (other, _, _), (half, _, title_half) = drawn
    assert not torch.equal(rows[0], other[0]) and torch.equal(rows[2], half[2])
    assert "75% hidden" in title and "50% hidden" in title_half and title.startswith("valid-0   loss ")
    assert read(tmp_path / "valid-0.png").shape[1] == MARGIN + 3 * (SIDE + GAP)
    # four rows, or all there are
    assert len(run(capsys, checkpoint, manifest, "--out", tmp_path)[1].splitlines()) == 4
    assert len(run(capsys, checkpoint, manifest, "--out", tmp_path, "--first", 99)[1].splitlines()) == 5


def test_seconds_are_those_of_the_file(video_corpus, checkpoint, tmp_path, capsys, monkeypatch):
    """A clip of 10 frames is all of its row, and its last frame no padding: every second frame from the row's start."""
    seen = []
    monkeypatch.setattr(reconstruction, "draw_clip", lambda *given: seen.append(given[1]) or draw_clip(*given))
    row = read_manifest(video_corpus / "valid.tsv")[0]
    part = replace(row, start=0.4, end=0.8, num_frames=10, path=str(video_corpus / row.path))
    write_manifest(tmp_path / "part.tsv", [part])
    assert run(capsys, checkpoint, tmp_path / "part.tsv", "--out", tmp_path)[0] == 0
    steps = len(seen[0])
    assert seen[0] == pytest.approx([0.4 + 2 * i / 25 for i in range(steps)], abs=0.041) and steps == 5
    assert seen[0][0] == 0.4


def test_a_media_root_of_its_own(video_corpus, checkpoint, tmp_path, capsys):
    write_manifest(tmp_path / "rows.tsv", read_manifest(video_corpus / "valid.tsv")[:1])
    words = [checkpoint, tmp_path / "rows.tsv", "--out", tmp_path / "out"]
    assert run(capsys, *words, "--media-root", video_corpus)[0] == 0
    status, out, err = run(capsys, *words)
    assert status == 1 and out == "" and "row 'valid-0'" in err and "valid-0.mp4" in err


def test_sign_clip_without_its_text_tower(video_corpus, checkpoint, tmp_path, capsys):
    """The directory of its text tower need not be here; options that nobody gave have their defaults."""

    def edit(state):
        state["cfg"]["model"] = {"_name": "sign_clip", "variant": "tiny_32x64", "text_tower": "/not/here"}
        state["model"]["text_tower.layer.weight"] = torch.zeros(3)

    path = change(checkpoint, tmp_path / "clip.pt", edit)
    pretrained = reconstruction.read_pretrained(path)
    assert pretrained.mask_ratio == 0.9 and pretrained.mae.norm_pix_loss and pretrained.seed == 7
    status, out, err = run(capsys, path, video_corpus / "valid.tsv", "--out", tmp_path, "--first", 1)
    assert status == 0, err
    assert out == f"{tmp_path / 'valid-0.png'}\n"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state["cfg"]["model"].update(_name="sign_to_text"), "expected a checkpoint of slt-pretrain"),
        (lambda state: state.pop("cfg"), "expected a checkpoint of slt-pretrain"),
        (lambda state: state.pop("task_state"), "expected a checkpoint of slt-pretrain"),
        (lambda state: state["cfg"]["model"].update(variant="huge"), "model.variant=huge is not known here"),
        (lambda state: state["cfg"]["criterion"].update(no_mae=True), "criterion.no_mae=true"),
        (lambda state: state["model"].pop("mae.mask_token"), "missing names: mask_token"),
    ],
)
def test_other_checkpoints_are_refused(video_corpus, checkpoint, tmp_path, capsys, edit, message):
    path = change(checkpoint, tmp_path / "other.pt", edit)
    status, out, err = run(capsys, path, video_corpus / "valid.tsv", "--out", tmp_path)
    assert status == 1 and out == "" and err.startswith(f"slt-report reconstruct: {path}") and message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ids", "valid-1,valid_2"], "has no row valid_2; did you mean 'valid-2'?"),
        (["--first", 0], "--first 0 of 5 rows"),
        (["--mask-ratio", 1], "--mask-ratio 1: give a share above 0 and below 1"),
        (["--steps", 0], "--steps 0 --seed 7"),
        (["--seed", -1], "--steps 8 --seed -1"),
        (["--device", "gpu"], "device=gpu: give cuda"),
        (["--media-root", "nowhere"], "--media-root nowhere is no folder"),
    ],
)
def test_options_that_cannot_be(video_corpus, checkpoint, tmp_path, capsys, words, message):
    given = [checkpoint, video_corpus / "valid.tsv", "--out", tmp_path / "out", "--device", "cpu", *words]
    assert command.main(["reconstruct", *map(str, given)]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_row_that_cannot_be_drawn_is_named(video_corpus, checkpoint, tmp_path, capsys):
    rows = read_manifest(video_corpus / "valid.tsv")[:2]
    rows[1] = replace(rows[1], start=0.0, end=0.05, num_frames=None)
    write_manifest(tmp_path / "rows.tsv", rows)
    status, out, err = run(capsys, checkpoint, tmp_path / "rows.tsv", "--out", tmp_path, "--media-root", video_corpus)
    assert status == 1 and out == f"{tmp_path / 'valid-0.png'}\n" and "row 'valid-1': too short for a clip" in err
    (tmp_path / "file").touch()
    status, _, err = run(capsys, checkpoint, video_corpus / "valid.tsv", "--out", tmp_path / "file")
    assert status == 1 and "is no folder" in err


def test_help_says_whose_faces_these_are(capsys):
    with pytest.raises(SystemExit):
        command.main(["reconstruct", "--help"])
    assert "faces are personal data" in capsys.readouterr().out


def test_file_names():
    plain = ["valid-3", "Ünïcode_ß", "a.b,c=1", "手話"]
    assert [file_name(name, 5) for name in plain] == [f"{name}.png" for name in plain]
    odd = ["a/b", "a\\b", "../up", "..", ".hidden", "a b", "x" * 300, "tab\t"]
    names = [file_name(name, number) for number, name in enumerate(odd)]
    assert len(set(names)) == len(odd) and all("~" in name and len(name.encode()) < 200 for name in names)
    assert not any("/" in name or "\\" in name or name.startswith(".") for name in names)


def test_a_picture_is_whole_or_not_there(tmp_path, monkeypatch):
    rows = torch.randint(256, (3, 2, 3, 64, 64), dtype=torch.uint8)
    picture, path = draw_clip(rows, [0.0, 1.0], "title", 8), tmp_path / "a.png"
    write_png(picture, path)
    before = path.read_bytes()

    def fail(self, file, **options):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(clip_picture.Image.Image, "save", fail)
    with pytest.raises(ReportError, match=r"a\.png cannot be written: No space left"):
        write_png(picture, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_long_id_widens_the_picture():
    rows = torch.zeros(3, 1, 3, 224, 224, dtype=torch.uint8)
    narrow, wide = (draw_clip(rows, [0.0], title, 8) for title in ("a", "a" * 100))
    assert narrow.width == MARGIN + 224 + GAP < wide.width and narrow.height == wide.height
    drawn = np.asarray(wide)
    assert (drawn[:LINE, -40:] < 128).any()  # the title's end is there
    assert drawn[2 * LINE + GAP, MARGIN].tolist() == [0, 0, 0]


def test_row_is_the_manifests(tmp_path):
    rows = [Row(f"r{i}", f"{i}.mp4") for i in range(5)]
    write_manifest(tmp_path / "m.tsv", rows)
    assert [n for n, _ in reconstruction.choose_rows(tmp_path / "m.tsv", ids=["r4", "r0"])] == [4, 0]
    assert [n for n, _ in reconstruction.choose_rows(tmp_path / "m.tsv", first=2)] == [0, 1]
