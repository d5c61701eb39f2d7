"""slt-demo without its page: the command's options, the service behind the page, and the HTML that it shows."""

import os
import re
import signal
import socket
import sys
import tempfile
import time

import pytest
from demo_helpers import write_demo_files

from slt_plugin.cli import demo, demo_html, demo_page, demo_service
from slt_plugin.cli.demo_service import DemoError, Limits, Result, Service
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

    return {"video": Translator(ModelOptions(str(folder / "video" / "best.pt"), cpu=True))}


@pytest.fixture
def service(translators, tmp_path):
    (tmp_path / "uploads").mkdir()
    (tmp_path / "files").mkdir()
    return Service(translators, Limits(MAX_MB, MAX_SECONDS), tmp_path / "uploads", tmp_path / "files")


def given(service, source, session="s"):
    path = service.uploads / source.name
    path.write_bytes(source.read_bytes())
    return service.accept(session, path, "video")


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


def test_a_file_that_nobody_came_back_for_is_deleted(service, folder, monkeypatch):
    given(service, folder / "clip.mp4", "gone")
    monkeypatch.setattr(demo_service, "KEEP_SECONDS", -1)
    given(service, folder / "long.mp4", "here")
    assert [path.name for path in service.folder.rglob("*.mp4")] == ["long.mp4"]


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
