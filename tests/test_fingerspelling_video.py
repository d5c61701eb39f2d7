"""manifests/fingerspelling_video.py and fingerspelling_render.py: the fingerspelling corpus as small H.264 videos."""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "manifests"))

import fingerspelling  # noqa: E402
import fingerspelling_render as render  # noqa: E402
import fingerspelling_video as video  # noqa: E402

from slt_plugin.data.clips import ClipOptions, VideoSource  # noqa: E402
from slt_plugin.data.manifest import read_manifest  # noqa: E402

if importlib.util.find_spec("spoken_to_signed") is None:
    pytest.skip("needs the letter recordings: pip install 'slt-plugin[prep]'", allow_module_level=True)

SIZES = ("--train", "45", "--valid", "3", "--test", "3", "--test-unseen", "2")
SMALL = ("--fps", "5", "--size", "64")


@pytest.fixture(scope="module")
def poses(tmp_path_factory):
    out = tmp_path_factory.mktemp("poses")
    assert fingerspelling.main(["--out", str(out), *SIZES, "--workers", "1"]) == 0
    return out


@pytest.fixture(scope="module")
def corpus(poses, tmp_path_factory):
    out = tmp_path_factory.mktemp("video")
    assert video.main([str(poses), "--out", str(out), *SIZES, *SMALL, "--workers", "1"]) == 0
    return out


def files(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def decode(path: Path) -> tuple[list[np.ndarray], list[int]]:
    """RGB pictures of a video, and the numbers of its keyframes."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.to_ndarray(format="rgb24") for frame in frames], [i for i, f in enumerate(frames) if f.key_frame]


def landmarks(**points: tuple[float, float]) -> np.ndarray:
    """A pose (51, 3) with these landmarks ("right_hand.index_4" written right_hand__index_4) and no others."""
    pose = np.zeros((len(render.NAMES), 3), np.float32)
    for name, (x, y) in points.items():
        pose[render.NAMES.index(name.replace("__", "."))] = (x, y, 1)
    return pose


# ---- files and rows ----


def test_files_and_rows(corpus, poses):
    assert set(files(corpus)) == {
        "corpus.json",
        *(f"{split}.tsv" for split in fingerspelling.SPLITS),
        *(f"videos/train-00{k}.mp4" for k in range(3)),  # 45 sentences, 20 a video
        *(f"videos/{split}-000.mp4" for split in ("valid", "test", "test_unseen")),
    }
    for split, size in zip(fingerspelling.SPLITS, (45, 3, 3, 2), strict=True):
        rows, sources = read_manifest(corpus / f"{split}.tsv"), read_manifest(poses / f"{split}.tsv")
        assert len(rows) == size
        kept = ("id", "text", "sign_lang", "text_lang", "corpus")
        assert [[getattr(row, name) for name in kept] for row in rows] == [
            [getattr(row, name) for name in kept] for row in sources[:size]
        ]
        for row, source in zip(rows, sources, strict=False):
            assert row.fps == 5
            assert row.num_frames == -(-source.num_frames // 5)  # 25 fps there
            x0, y0, x1, y1 = row.box
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
            assert x1 - x0 == pytest.approx(y1 - y0)


def test_segments_are_whole_sentences(corpus):
    """One after another in their video, each beginning with a keyframe: a reader need not decode the one before."""
    rows = read_manifest(corpus / "train.tsv")
    for path in {row.path for row in rows}:
        frames, keys = decode(corpus / path)
        part = [row for row in rows if row.path == path]
        bounds = [(round(row.start * row.fps), round(row.end * row.fps)) for row in part]
        assert [first for first, _ in bounds] == [0, *(last for _, last in bounds[:-1])]
        assert [last - first for first, last in bounds] == [row.num_frames for row in part]
        assert bounds[-1][1] == len(frames)
        assert set(keys) >= {first for first, _ in bounds}


def test_videos_show_the_poses(corpus, poses):
    """Frame k of a sentence shows the pose of the same moment, close to what was drawn, and unlike its neighbours."""
    row, source = (read_manifest(folder / "train.tsv")[21] for folder in (corpus, poses))
    frames, _ = decode(corpus / row.path)
    first = round(row.start * row.fps)
    shown = np.stack(frames[first : first + row.num_frames]).astype(float)
    start = round(source.start * 25)
    drawn = [render.draw(pose, 64) for pose in np.load(poses / source.path)[start : start + source.num_frames : 5]]
    distance = np.array([[np.abs(a - np.asarray(b)).mean() for b in drawn] for a in shown])
    assert (distance.diagonal() < 2).all()
    moving = [k for k in range(len(drawn)) if distance[k].min() < np.partition(distance[k], 1)[1]]
    assert np.mean([distance[k].argmin() == k for k in moving]) > 0.9


def test_the_box_holds_the_spelling_hand(corpus, poses):
    for row, source in zip(read_manifest(corpus / "train.tsv"), read_manifest(poses / "train.tsv"), strict=True):
        start = round(source.start * 25)
        pose = np.load(poses / source.path)[start : start + source.num_frames].astype(float)
        hand = pose[:, 30:, :2].mean(1)
        raised = hand[:, 1] < pose[:, 3:5, 1].mean(1) + 0.3
        seen = (hand[raised] - render.CENTRE) / render.VIEW + 0.5
        x0, y0, x1, y1 = row.box
        inside = (seen[:, 0] > x0) & (seen[:, 0] < x1) & (seen[:, 1] > y0) & (seen[:, 1] < y1)
        assert inside.mean() > 0.9


# ---- as the training of the quickstart reads it ----


def test_the_quickstarts_windows_hold_every_frame_once():
    config = OmegaConf.load(ROOT / "slt_plugin/config/finetune/experiment/fingerspelling_video.yaml").task
    assert video._parser().parse_args(["x", "--out", "y"]).fps == config.clip_target_fps
    options = clip_options(config)
    for frames in range(2, 150):
        indices = [
            i
            for window in options.windows(frames, config.clip_target_fps)
            for i in window.indices[: window.kept_frames]
        ]
        # an odd last frame fills its time step by being read twice
        assert [int(i) for i in indices] == [*range(frames), *([frames - 1] if frames % 2 else [])]


def test_the_task_reads_the_box_of_a_segment(corpus, poses):
    config = OmegaConf.load(ROOT / "slt_plugin/config/finetune/experiment/fingerspelling_video.yaml").task
    config.clip_target_fps = 5.0
    row, source = (read_manifest(folder / "train.tsv")[41] for folder in (corpus, poses))
    frames = VideoSource(corpus, clip_options(config)).load(row).frames
    start = round(source.start * 25)
    drawn = [render.draw(pose, 64) for pose in np.load(poses / source.path)[start : start + source.num_frames : 5]]
    box = [round(64 * side) for side in row.box]
    crops = [np.asarray(image.crop(box).resize((64, 64), Image.Resampling.BILINEAR)).astype(float) for image in drawn]
    read = frames.permute(0, 2, 3, 1).numpy().astype(float)[: len(crops)]
    assert np.abs(read - np.stack(crops)).mean() < 5
    assert np.abs(read[:-1] - np.stack(crops)[1:]).mean() > 1.5 * np.abs(read - np.stack(crops)).mean()


def clip_options(config) -> ClipOptions:
    return ClipOptions(
        num_frames=config.clip_frames,
        sampling_rate=config.clip_sampling_rate,
        target_fps=config.clip_target_fps,
        stride=config.clip_stride,
        size=config.clip_size,
    )


# ---- determinism, running again ----


def test_same_bytes_whatever_the_workers(corpus, poses, tmp_path):
    assert video.main([str(poses), "--out", str(tmp_path), *SIZES, *SMALL, "--workers", "2"]) == 0
    assert files(tmp_path) == files(corpus)


def test_running_again_is_free_and_repairs(corpus, poses, capsys):
    again = [str(poses), "--out", str(corpus), *SIZES, *SMALL, "--workers", "1"]
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*") if path.is_file()}
    hashes = files(corpus)
    assert video.main(again) == 0
    assert "complete" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in corpus.rglob("*") if path.is_file()}
    # as after an interruption: no manifest yet, and one video is missing
    (corpus / "train.tsv").unlink()
    (corpus / "videos/train-001.mp4").unlink()
    assert video.main(again) == 0
    assert files(corpus) == hashes
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"train.tsv", "train-001.mp4"}


def test_an_interrupted_video_leaves_nothing_behind(poses, tmp_path, monkeypatch):
    def interrupted(pose, size, draw=render.draw, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 50:
            raise KeyboardInterrupt
        return draw(pose, size)

    monkeypatch.setattr(render, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        video.main([str(poses), "--out", str(tmp_path), *SIZES, *SMALL, "--workers", "1"])
    assert set(files(tmp_path)) == {"corpus.json"}


def test_other_options_are_refused(corpus, poses, capsys):
    hashes = files(corpus)
    assert video.main([str(poses), "--out", str(corpus), *SIZES, "--fps", "6", "--size", "64"]) == 1
    error = capsys.readouterr().err
    assert "fps: 5.0 there, 6.0 now" in error and "--overwrite" in error
    assert files(corpus) == hashes


def test_another_corpus_is_refused(corpus, poses, tmp_path, capsys):
    for path in poses.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(poses)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    record = json.loads((tmp_path / "corpus.json").read_text())
    (tmp_path / "corpus.json").write_text(json.dumps({**record, "seed": 2}))
    assert video.main([str(tmp_path), "--out", str(corpus), *SIZES, *SMALL]) == 1
    assert "poses.seed: 1 there, 2 now" in capsys.readouterr().err


# ---- mistakes ----


def test_mistakes_are_named(poses, tmp_path, capsys):
    assert video.main([str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 1
    assert f"python manifests/fingerspelling.py --out {tmp_path / 'none'}" in capsys.readouterr().err
    assert video.main([str(poses), "--out", str(tmp_path / "out"), "--train", "46"]) == 1
    assert "--train 46" in (error := capsys.readouterr().err) and "has 45 sentences only" in error
    assert not (tmp_path / "out").exists()
    for option, value in [("--fps", "26"), ("--fps", "x"), ("--size", "65"), ("--size", "8"), ("--train", "0")]:
        with pytest.raises(SystemExit):
            video.main([str(poses), "--out", str(tmp_path / "out"), option, value])
        assert option in capsys.readouterr().err


# ---- drawing ----


@pytest.mark.parametrize(("count", "fps", "expected"), [
    (10, 25.0, list(range(10))),
    (10, 12.5, [0, 2, 4, 6, 8]),
    (11, 12.5, [0, 2, 4, 6, 8, 10]),
    (10, 10.0, [0, 3, 5, 8]),
    (1, 5.0, [0]),
    (6, 5.0, [0, 5]),
])  # fmt: skip
def test_frame_times(count, fps, expected):
    assert render.frame_times(count, 25.0, fps).tolist() == expected


def test_each_finger_has_its_colour():
    for finger, colour in render.FINGERS.items():
        hand = {f"right_hand__{finger}_{k}": (-0.8 + 0.1 * k, -0.2) for k in range(1, 5)}
        image = np.asarray(render.draw(landmarks(right_hand__wrist=(-0.8, -0.2), **hand), 128)).astype(int)
        x, y = ((np.array([-0.6, -0.2]) - render.CENTRE) / render.VIEW + 0.5) * 128
        assert np.abs(image[int(y), int(x)] - colour).max() < 12
        assert (image[int(y) + 10, int(x)] == render.BACKGROUND).all()


def test_what_is_missing_is_not_drawn():
    def empty(pose: np.ndarray) -> bool:
        return render.draw(pose, 64).getcolors() == [(64 * 64, render.BACKGROUND)]

    assert empty(landmarks())
    assert empty(landmarks(right_hand__index_1=(-0.5, 0), right_hand__index_2=(-0.5, 0.2)))  # a hand without its wrist
    assert not empty(landmarks(right_hand__wrist=(-0.5, 0.3), right_hand__index_2=(-0.5, 0)))
    half = landmarks(body__right_shoulder=(-0.5, 0), body__right_wrist=(-0.5, 0.8))  # the elbow is not seen
    assert not empty(half)
    points = landmarks(right_hand__wrist=(-0.5, 0.3), right_hand__index_2=(-0.5, 0), left_hand__index_2=(0.1, 0))
    points[render.NAMES.index("left_hand.index_2"), 2] = 0
    only_right = landmarks(right_hand__wrist=(-0.5, 0.3), right_hand__index_2=(-0.5, 0))
    assert render.draw(points, 64).tobytes() == render.draw(only_right, 64).tobytes()


def test_box_without_a_raised_hand_is_the_whole_picture():
    pose = landmarks(body__left_shoulder=(0.5, 0), body__right_shoulder=(-0.5, 0))
    assert render.signing_box(np.stack([pose, pose]), 64) == (0.0, 0.0, 1.0, 1.0)


def test_box_stays_in_the_picture():
    hand = {name.replace(".", "__"): (-1.7, -1.2) for name in render.NAMES if name.startswith("right_hand")}
    pose = landmarks(body__left_shoulder=(0.5, 0), body__right_shoulder=(-0.5, 0), **hand)
    x0, y0, x1, y1 = render.signing_box(np.stack([pose, pose]), 160)
    assert x0 == y0 == 0
    assert x1 == y1 == round(render.BOX / render.VIEW * 160) / 160


def test_pictures_have_soft_edges():
    arm = landmarks(body__right_shoulder=(-0.9, -0.4), body__right_elbow=(-0.2, 0.6))
    assert len(render.draw(arm, 64).getcolors()) > 2
    assert isinstance(render.draw(arm, 64), Image.Image)
