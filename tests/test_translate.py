"""slt-translate on untrained models of video, poses and features: output, boxes, bad files, exit codes."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import write_pose_corpus
from video_helpers import write_video

import slt_plugin.tasks  # noqa: F401
from slt_plugin.checkpoints.provenance import sha256_of
from slt_plugin.cli import translate
from slt_plugin.cli.translation_file import configuration, write_translation_model
from slt_plugin.data.clips import ClipOptions, VideoSource
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row
from slt_plugin.data.store import Fingerprint
from slt_plugin.data.transforms import normalise
from slt_plugin.extraction.encoded_video import EncodedVideo
from slt_plugin.models.sign_to_text import SignToTextConfig
from slt_plugin.modules.hiera import VARIANTS
from slt_plugin.tasks.sign_to_text import SignToTextTask, SignToTextTaskConfig

CLIPS = {"clip_frames": 32, "clip_sampling_rate": 1, "clip_stride": 16, "clip_size": 64}


def write_checkpoint(path, spm, fingerprint=None, encoder="signhiera", **task_options):
    task = SignToTextTask(
        SignToTextTaskConfig(
            data="", codec_path=str(spm), train_subset="train", seed=1, eval_bleu=False, **task_options
        )
    )
    if fingerprint is not None:
        task.feature_origin.compare("train.tsv", Fingerprint(fingerprint))
    sizes = {f"{part}_{name}": 16 for part in ("encoder", "decoder") for name in ("embed_dim", "ffn_embed_dim")}
    if encoder == "signhiera":
        sizes |= {"signhiera_variant": "tiny_32x64", "signhiera_trainable_blocks": -1}
    config = SignToTextConfig(source_encoder=encoder, pose_dim=16, encoder_layers=1, decoder_layers=1,
                              max_encoder_positions=60, **sizes)  # fmt: skip
    cfg = configuration(task.cfg, config, "sign_to_text")
    torch.manual_seed(0)
    model = task.build_model(cfg.model)
    write_translation_model(path, cfg, task, model.state_dict())
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory, spm_model):
    """Checkpoints of the three kinds of source, and videos of 40 numbered frames."""
    root = tmp_path_factory.mktemp("translate")
    model = write_checkpoint(root / "video.pt", spm_model, source="video", **CLIPS)
    write_checkpoint(root / "pose.pt", spm_model, encoder="pose", pose_parts="body,right_hand")
    hiera = model.encoder.source_encoder.hiera
    torch.save({"model": hiera.state_dict()}, root / "hiera.pt")
    made = {"checkpoint_sha256": sha256_of(root / "hiera.pt"), "variant": "tiny_32x64", "num_frames": 32,
            "sampling_rate": 1, "target_fps": 25, "stride": 16, "size": 64, "dtype": "fp32"}  # fmt: skip
    write_checkpoint(root / "features.pt", spm_model, made, encoder="none", source="features",
                     feature_channels=hiera.feature_dim)  # fmt: skip
    (root / "videos").mkdir()
    for name in ("a", "b"):
        write_video(root / "videos" / f"{name}.mp4", 40 + 8 * (name == "b"))
    (root / "videos" / "notes.txt").write_text("no video")
    return root


@pytest.fixture
def run(folder, capsys):
    def call(*words, checkpoint="video.pt"):
        code = translate.main([*map(str, words), "--checkpoint", str(folder / checkpoint), "--cpu", "--max-len", "6"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_folder_gives_one_line_a_video(run, folder):
    code, out, err = run(folder / "videos")
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and [line[0] for line in lines] == [str(folder / "videos" / f"{n}.mp4") for n in "ab"], err
    assert all(len(line) == 2 for line in lines)


def test_json_holds_segment_box_and_hypotheses(run, folder):
    video = folder / "videos" / "a.mp4"
    code, out, _ = run(video, "--json", "--n-best", 2, "--start", 0.4, "--end", 1.2, "--box", "0.1,0,0.9,1")
    result = json.loads(out)
    assert code == 0 and result["path"] == str(video) and (result["start"], result["end"]) == (0.4, 1.2)
    assert result["box"] == [0.1, 0, 0.9, 1] and len(result["hypotheses"]) == 2
    assert result["hypotheses"][0]["score"] >= result["hypotheses"][1]["score"]
    code, out, _ = run(video, "--n-best", 2)
    assert [line.split("\t")[1] for line in out.splitlines()] == ["1", "2"]


def test_segment_and_box_reach_the_model(run, folder):
    video = folder / "videos" / "b.mp4"
    scores = [
        json.loads(run(video, "--json", *words)[1])["hypotheses"][0]["score"]
        for words in ((), ("--start", "1"), ("--box", "0,0,0.5,0.5"))
    ]
    assert len(set(scores)) == 3


def test_a_bad_file_is_reported_and_the_others_are_done(run, folder, tmp_path):
    for name in ("1.mp4", "3.mp4"):
        shutil.copy(folder / "videos" / "a.mp4", tmp_path / name)
    (tmp_path / "2.mp4").write_bytes(b"")
    code, out, err = run(tmp_path, tmp_path / "4.mp4", "--json")
    assert code == 1
    results = [json.loads(line) for line in out.splitlines()]
    assert ["error" in result for result in results] == [False, True, False, True]
    assert "2.mp4" in err and "0 bytes" in err and "4.mp4: does not exist" in err and "2 of 4 files" in err
    assert "Traceback" not in err


def test_too_long_a_video_is_named_with_what_to_do(run, tmp_path):
    write_video(tmp_path / "long.mp4", 150)
    code, _, err = run(tmp_path / "long.mp4")
    assert code == 1 and "long.mp4" in err and "--start and --end" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--box", "auto"), "reads pose, which have no box"),
        (("--encoder", "hiera.pt"), "reads pose, not features"),
    ],
)
def test_options_without_a_use_are_refused(run, folder, words, message):
    code, out, err = run(folder / "videos" / "a.mp4", *words, checkpoint="pose.pt")
    assert code == 1 and not out and len(err.splitlines()) == 1
    assert re.search(message, err)


def test_poses_are_translated_too(run, tmp_path):
    corpus = write_pose_corpus(tmp_path / "poses", {"test": 1})
    code, out, err = run(corpus / "poses", "--fps", "25", checkpoint="pose.pt")
    assert code == 0 and out.startswith(str(corpus / "poses" / "test.npy")), err
    code, _, err = run(tmp_path / "poses" / "test.tsv", checkpoint="pose.pt")
    assert code == 1 and "give poses (" in err


def test_features_from_their_encoder_or_from_files(run, folder, tmp_path):
    video = folder / "videos" / "a.mp4"
    code, out, err = run(video, "--json", "--encoder", folder / "hiera.pt", checkpoint="features.pt")
    assert code == 0, err
    clips = VideoSource(folder, ClipOptions(32, 1, 25, 16, 64)).load(Row("a", "videos/a.mp4"))
    hiera = VARIANTS["tiny_32x64"]()
    hiera.load_state_dict(torch.load(folder / "hiera.pt", weights_only=True)["model"])
    with torch.no_grad():
        features = hiera.eval().encode_clips([normalise(c).transpose(0, 1) for c in clips.frames.split(clips.lengths)])
    np.save(tmp_path / "a.npy", torch.cat(features).numpy())
    stored = json.loads(run(tmp_path / "a.npy", "--json", checkpoint="features.pt")[1])
    assert json.loads(out)["hypotheses"] == stored["hypotheses"]


def test_encoded_video_takes_every_nth_step_as_the_model_was_trained(folder):
    made = {"num_frames": 32, "sampling_rate": 1, "target_fps": 25, "stride": 16, "size": 64}
    row = Row("a", "videos/a.mp4")
    whole, half = (
        EncodedVideo(folder, folder / "hiera.pt", fingerprint=Fingerprint({**made, "variant": "tiny_32x64"}),
                     channels=256, step=step, device="cpu")
        for step in (1, 3)
    )  # fmt: skip
    assert torch.equal(half.load(row), whole.load(row)[::3])
    assert half.num_steps(row) == len(half.load(row))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_frames": "32"}, "num_frames='32'; expected a number"),
        ({"dtype": "float16"}, "dtype='float16'; expected one of fp32"),
        ({"num_frames": 64}, "made of 64 frames of 64 pixels"),
    ],
)
def test_a_fingerprint_of_no_meaning_is_named(folder, values, message):
    with pytest.raises(DataError, match=message):
        EncodedVideo(folder, folder / "hiera.pt", fingerprint=Fingerprint({"variant": "tiny_32x64", **values}),
                     channels=256, step=1, device="cpu")  # fmt: skip


def test_another_encoder_than_the_features_is_refused(run, folder, tmp_path):
    torch.save({"model": VARIANTS["tiny_32x64"]().state_dict()}, tmp_path / "other.pt")
    code, _, err = run(folder / "videos", "--encoder", tmp_path / "other.pt", checkpoint="features.pt")
    assert code == 1 and "is not the encoder of the features" in err
    code, _, err = run(folder / "videos" / "a.mp4", checkpoint="features.pt")
    assert code == 1 and "together with --encoder" in err


def test_a_large_frame_without_box_is_warned_of(run, tmp_path, caplog):
    write_video(tmp_path / "large.mp4", 8, size=(320, 240))
    code, _, _ = run(tmp_path / "large.mp4")
    assert code == 0 and "signer_boxes.py" in caplog.text and "--box auto" in caplog.text


@pytest.mark.parametrize(
    "words", [("--start", "2", "--end", "1"), ("--box", "1,2"), ("--start", "-1"), ("--beam", "0"), ("--n-best", "9")]
)
def test_wrong_usage_is_refused(run, folder, words):
    with pytest.raises(SystemExit) as exit:
        run(folder / "videos" / "a.mp4", *words)
    assert exit.value.code == 2


def test_an_empty_folder_and_a_missing_checkpoint(run, folder, tmp_path):
    code, _, err = run(tmp_path)
    assert code == 1 and "folder without videos" in err
    code, _, err = run(folder / "videos", checkpoint="none.pt")
    assert code == 1 and "none.pt" in err
