"""slt-demo without its page: the command's options, the service behind the page, and the HTML that it shows."""

import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time

import numpy as np
import pytest
from demo_helpers import write_demo_files

from slt_plugin.cli import demo, demo_html, demo_page, demo_service
from slt_plugin.cli.demo_service import KEEP_SECONDS, DemoError, Limits, Result, Service
from slt_plugin.cli.translator import Hypothesis, ModelOptions, Request, Translator
from slt_plugin.report.evidence import WordEvidence

MAX_MB, MAX_SECONDS = 0.5, 2.0


@pytest.fixture(autouse=True)
def _environment():
    """What the command tells Gradio by variables is not told to the tests that follow."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, spm_model):
    return write_demo_files(tmp_path_factory.mktemp("demo"), spm_model)


# the command


@pytest.fixture
def command(folder, capsys, monkeypatch):
    """Runs slt-demo without its page: (status, stderr, what would be served)."""

    def run(*words, checkpoint="video", serve=None):
        served = []

        def note(service, folder, address, started):
            served.append((service, address))

        monkeypatch.setattr(demo, "serve", serve or note)
        code = demo.main(["--checkpoint", str(folder / checkpoint / "best.pt"), "--cpu", *map(str, words)])
        return code, capsys.readouterr().err, served

    return run


def test_a_termination_is_a_stop_like_any_other(command, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = signal.getsignal(signal.SIGTERM)

    def serve(service, folder, address, started):
        (service.folder / "upload.mp4").touch()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    code, err, _ = command("--port", 0, serve=serve)
    assert code == 0 and err.splitlines()[-1] == "slt-demo: stopped"
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) is before


def sweepers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "slt-demo-sweep"]


def test_files_are_swept_while_the_page_is_served(command, monkeypatch):
    seen = []
    code, _, _ = command("--port", 0, serve=lambda *_: seen.extend(thread.daemon for thread in sweepers()))
    assert code == 0 and seen == [True] and not sweepers()


def test_the_help_tells_how_features_are_limited(capsys):
    with pytest.raises(SystemExit):
        demo.main(["--help"])
    assert "features, which tell no rate: 50 steps for each" in " ".join(capsys.readouterr().out.split())


def test_a_port_that_is_taken_is_said(command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, err, served = command("--port", port)
    assert code == 1 and not served and len(err.splitlines()) == 1
    assert f"port {port} of 127.0.0.1 is taken" in err and "--port" in err


def test_a_host_of_another_machine_is_said(command):
    code, err, served = command("--port", 0, "--host", "192.0.2.7")
    assert code == 1 and not served and "--host 192.0.2.7" in err


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_other_machines_are_let_in_with_a_warning_only(command, host, local):
    code, err, [(_, address)] = command("--port", 0, "--host", host)
    assert code == 0 and ("WARNING" in err) is not local
    assert address.hosts == (("127.0.0.1", "localhost", "[::1]") if local else ())


def test_a_checkpoint_that_cannot_be_used_is_said(command):
    code, err, served = command("--port", 0, checkpoint="none")
    assert code == 1 and not served and "none/best.pt" in err and "Traceback" not in err


def test_without_gradio_the_extra_is_named(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, err, served = command("--port", 0)
    assert code == 1 and not served and "slt-plugin[demo]" in err and "loading" not in err


@pytest.mark.parametrize("words", [("--port", "70000"), ("--max-seconds", "0"), ("--max-upload-mb", "nan")])
def test_wrong_usage_is_refused(command, words):
    with pytest.raises(SystemExit) as exit:
        command(*words)
    assert exit.value.code == 2


def test_checkpoints_are_named_by_what_tells_them_apart():
    named = demo._named(["/r/a/x/best.pt", "/r/b/x/best.pt", "/r/c/1.pt:/r/c/2.pt"])
    assert list(named) == ["a/x/best.pt", "b/x/best.pt", "r/c/1.pt + r/c/2.pt"]
    assert list(demo._named(["/r/a/best.pt"])) == ["a/best.pt"]
    with pytest.raises(DemoError, match="given twice"):
        demo._named(["/r/a.pt", "/r/../r/a.pt"])


# the service, without a page


@pytest.fixture(scope="module")
def translators(folder):

    names = ("video", "pose", "features")
    return {name: Translator(ModelOptions(str(folder / name / "best.pt"), cpu=True)) for name in names}


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def service(translators, tmp_path, clock):
    (tmp_path / "uploads").mkdir()
    (tmp_path / "files").mkdir()
    return Service(translators, Limits(MAX_MB, MAX_SECONDS), tmp_path / "uploads", tmp_path / "files", clock)


def given(service, source, session="s", name="video"):
    path = service.uploads / source.name
    path.write_bytes(source.read_bytes())
    return service.accept(session, path, name)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"start": 1.0, "end": 0.5}, "end 0.5 is not after start 1"),
        ({"start": 5.0}, "start 5 is after the end of the file, 1.60 s"),
        ({"start": -1.0}, "start -1: a time in seconds"),
        ({"end": float("nan")}, "end nan"),
        ({"beam": 1000}, "beam 1000: a whole number from 1 to 20"),
        ({"beam": 2, "n_best": 3}, "a beam of 2 has no more than 2"),
        ({"target_lang": ("de_DE",)}, "no language tokens"),
    ],
)
def test_requests_that_make_no_sense_are_refused(service, folder, asked, message):

    given(service, folder / "clip.mp4")
    with pytest.raises(DemoError, match=message):
        list(service.translate("s", "video", Request(**asked), evidence=False))


def test_each_visitor_has_a_file_of_their_own(service, folder):

    given(service, folder / "clip.mp4", "one")
    given(service, folder / "clip.mp4", "two")
    service.forget("one")
    with pytest.raises(DemoError, match="no file yet"):
        list(service.translate("one", "video", Request(), evidence=False))
    last = list(service.translate("two", "video", Request(), evidence=False))[-1]
    assert (
        last.done == 1
        and last.result.words is None
        and last.result.box == pytest.approx((0.1667, 0, 0.8333, 1), abs=1e-3)
    )


def test_features_are_made_of_the_video_where_their_encoder_is_given(folder, tmp_path):
    words = ["--checkpoint", folder / "features" / "best.pt", "--encoder", folder / "features" / "hiera.pt", "--cpu"]
    args = demo._parser().parse_args(list(map(str, words)))
    (tmp_path / "uploads").mkdir()
    (tmp_path / "files").mkdir()
    translators = {"video": demo._load(args.checkpoint[0], args)}
    service = Service(translators, Limits(MAX_MB, MAX_SECONDS), tmp_path / "uploads", tmp_path / "files")
    given(service, folder / "clip.mp4")
    last = list(service.translate("s", "video", Request(start=0.4), evidence=True))[-1].result
    assert last.hypotheses[0].text and last.strip["kind"] == "frames"
    assert last.seconds == pytest.approx(1.2) and all(0 <= w.start < w.end <= 1.2001 for w in last.words)
    assert len(last.words) == len(last.hypotheses[0].text.split())


def test_a_file_beyond_the_upload_folder_is_neither_taken_nor_touched(service, folder, tmp_path):
    (service.uploads / "link.mp4").symlink_to(folder / "clip.mp4")
    for path in (folder / "clip.mp4", service.uploads / "link.mp4", service.uploads / "gone.mp4"):
        with pytest.raises(DemoError, match="not there any more"):
            service.accept("s", path, "video")
    assert (folder / "clip.mp4").is_file()


def uploaded(service) -> list[str]:
    return sorted(path.name for path in service.folder.rglob("*.mp4"))


def test_a_file_that_nobody_used_for_an_hour_is_deleted(service, folder, clock):
    given(service, folder / "clip.mp4", "gone")
    clock.now = 1000.0
    given(service, folder / "long.mp4", "here")
    clock.now = KEEP_SECONDS
    service.sweep()
    assert uploaded(service) == ["clip.mp4", "long.mp4"]
    clock.now += 1
    service.sweep()
    assert uploaded(service) == ["long.mp4"]
    with pytest.raises(DemoError, match="or it was deleted"):
        list(service.translate("gone", "video", Request(), evidence=False))
    list(service.translate("here", "video", Request(end=1.0), evidence=False))
    clock.now += KEEP_SECONDS
    service.sweep()
    assert uploaded(service) == ["long.mp4"]
    clock.now += 1
    service.sweep()
    assert uploaded(service) == [] and list(service.folder.iterdir()) == []


def test_old_files_go_without_another_upload(service, folder, clock):
    given(service, folder / "clip.mp4")
    with service.sweeping(0.01):
        clock.now = KEEP_SECONDS + 1
        until = time.monotonic() + 10
        while uploaded(service) and time.monotonic() < until:
            time.sleep(0.01)
        assert uploaded(service) == []
    assert not sweepers()


@pytest.mark.parametrize("fps", [1e6, 240.1, 0.5, 0.0, -25.0, float("nan"), float("inf")])
def test_a_frame_rate_that_makes_any_file_short_is_refused(service, folder, fps):
    service.limits = Limits(MAX_MB, 0.1)
    given(service, folder / "pose.npy", name="pose")  # 32 frames
    with pytest.raises(DemoError, match=re.escape(f"frame rate {fps:g}: frames a second are needed, from 1 to 240")):
        list(service.translate("s", "pose", Request(fps=fps), evidence=False))
    with pytest.raises(DemoError, match=r"0\.1 s of signing are more than 0\.1 s"):
        list(service.translate("s", "pose", Request(fps=240.0), evidence=False))


def test_a_file_that_says_such_a_frame_rate_is_refused(service, folder, monkeypatch):
    from slt_plugin.data import pose_files

    def says(fps: float):
        monkeypatch.setattr(pose_files, "open_pose", lambda path: type("File", (), {"shape": (9, 5, 3), "fps": fps}))

    says(1e6)
    with pytest.raises(DemoError, match=r"pose\.npy says 1e\+06 frames a second: at most 240"):
        given(service, folder / "pose.npy", name="pose")
    assert list(service.folder.iterdir()) == []
    says(240.0)
    assert given(service, folder / "pose.npy", name="pose").fps == 240.0


def test_words_of_a_file_of_few_steps_have_no_stretches(service, folder):
    given(service, folder / "pose.npy", name="pose")
    for frames, found in ((2, False), (16, True)):
        asked = Request(fps=25.0, end=frames / 25)
        last = list(service.translate("s", "pose", asked, evidence=True))[-1]
        assert last.done == 1 and (last.result.words is not None) is found
        assert last.result.note == ("" if found else "the file is too short to look for what each word rests on")


def test_features_are_limited_by_their_steps(service, translators, tmp_path):
    service.limits = Limits(MAX_MB, 1.0)
    channels = translators["features"].task.cfg.feature_channels
    for steps in (50, 51, 61):  # the model takes 60
        features = np.random.default_rng(0).normal(size=(steps, channels)).astype(np.float32)
        np.save(tmp_path / f"{steps}.npy", features)
    assert given(service, tmp_path / "50.npy", name="features").steps == 50
    last = list(service.translate("s", "features", Request(beam=1), evidence=False))[-1]
    assert last.done == 1 and last.result.strip is None
    medium = given(service, tmp_path / "51.npy", name="features")
    with pytest.raises(DemoError, match=r"51 steps are more than 50, .* 50 steps count as a second, of which 1 are"):
        list(service.translate("s", "features", Request(), evidence=False))
    assert "51 steps" in demo_html.medium(medium)
    service.limits = Limits(MAX_MB, 2.0)
    given(service, tmp_path / "61.npy", name="features")
    with pytest.raises(DemoError, match=r"exceed the limit of 60 source steps.*: drop a part of it"):
        list(service.translate("s", "features", Request(), evidence=False))


def test_pictures_are_encoded_in_one_place():
    assert not hasattr(demo_service, "base64")


def test_text_from_files_and_models_is_escaped():

    bad = "<img src=x onerror=alert(1)>"
    result = Result([Hypothesis(bad, -1.0, None)], note=bad, box_source=bad, frame=f'"{bad}', box=(0, 0, 1, 1),
                    seconds=2.0, words=[WordEvidence(bad, 0.0, 1.0, 0.5)])  # fmt: skip
    for html in (demo_html.result(result), demo_html.error(bad), demo_html.status(0, bad)):
        assert "<img src=x" not in html and "&lt;img" in html


def test_words_that_overlap_stand_on_lines_of_their_own():

    words = [WordEvidence(name, start, start + 1.0, 0.0) for name, start in (("a", 0.0), ("b", 0.5), ("c", 1.0))]
    assert [[word.word for word in lane] for lane in demo_html._lanes(words)] == [["a", "c"], ["b"]]


@pytest.mark.parametrize("seconds", [0.04, 1.0, 8.25, 60.0, 3600.0])
def test_the_axis_has_a_few_round_times_and_the_end(seconds):

    marks = re.findall(r">([^<]+)</span>", demo_html._axis(seconds))
    assert 3 <= len(marks) <= 10 and marks[0] == "0" and marks[-1] == f"{seconds:.2f} s"


def test_import_keeps_gradio_off_the_network(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_SHARE", "true")
    demo_page.import_gradio(tmp_path)
    assert "GRADIO_SHARE" not in os.environ and os.environ["GRADIO_TEMP_DIR"] == str(tmp_path)
