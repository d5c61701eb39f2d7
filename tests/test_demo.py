"""slt-demo in headless Chromium and over HTTP: translations, limits, what it refuses, what stays behind."""

import json
import signal
import socket
import time

import pytest
from demo_helpers import running_demo, write_demo_files

from slt_plugin.cli import demo_page, translate

MAX_MB, MAX_SECONDS = 0.5, 2.0
LIMITS = ("--max-upload-mb", MAX_MB, "--max-seconds", MAX_SECONDS)
TIMEOUT = 20_000  # milliseconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory, spm_model):
    return write_demo_files(tmp_path_factory.mktemp("demo"), spm_model)


@pytest.fixture(scope="module")
def demo_server(folder, tmp_path_factory):
    checkpoints = [folder / name / "best.pt" for name in ("video", "pose", "languages")]
    with running_demo(tmp_path_factory.mktemp("server"), "--checkpoint", *checkpoints, *LIMITS) as running:
        yield running
    assert running.outside.read_text() == ""
    assert demo_page.FAILED not in running.log.read_text()


@pytest.fixture
def page(demo_server, browser_page):
    """The opened page, which must not have complained or asked for anything outside."""
    page = browser_page.page
    page.set_default_timeout(TIMEOUT)
    page.goto(demo_server.url)
    page.get_by_role("button", name="Translate").wait_for()
    yield page
    assert not browser_page.console_errors and not browser_page.outside_requests


def choose(page, label: str, value: str) -> None:
    page.get_by_role("combobox", name=label).click()
    page.get_by_role("option", name=value).click()


def drop(page, path, said: str) -> None:
    page.locator("input[type=file]").set_input_files(path)
    page.get_by_text(said).first.wait_for()


def press_translate(page) -> str:
    """The text, once all has been found."""
    page.get_by_role("button", name="Translate").click()
    page.wait_for_function(
        "!document.querySelector('#slt-status progress') && document.querySelector('#slt-details table')"
    )
    return page.locator("#slt-text textarea").input_value()


def translated(capsys, *words) -> dict:
    assert translate.main([*map(str, words), "--json", "--cpu"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_video_is_translated_as_the_command_does(page, demo_server, folder, capsys):
    drop(page, folder / "clip.mp4", "1.60 s · 96 × 64 pixels · 25 frames/s")
    page.get_by_label("this one:").check()
    page.get_by_label("x0,y0,x1,y1").fill("0.25,0,0.75,0.75")
    page.get_by_label("End (s)").fill("1.4")
    text = press_translate(page)
    expected = translated(
        capsys, folder / "clip.mp4", "--checkpoint", folder / "video" / "best.pt", "--n-best", 3, "--end", 1.4, "--box",
        "0.25,0,0.75,0.75",
    )["hypotheses"]  # fmt: skip
    assert text == expected[0]["text"]
    rows = [row.split("\t") for row in page.locator("table.alternatives tbody").inner_text().splitlines()]
    assert [float(row[1]) for row in rows] == pytest.approx([h["score"] for h in expected], abs=6e-4)
    assert [row[2] for row in rows] == [h["text"] for h in expected]
    frame, box = page.locator(".frame").bounding_box(), page.locator(".frame .box").bounding_box()
    placed = [(box["x"] - frame["x"]) / frame["width"], (box["y"] - frame["y"]) / frame["height"]]
    sized = [box["width"] / frame["width"], box["height"] / frame["height"]]
    assert [*placed, *sized] == pytest.approx([0.25, 0, 0.5, 0.75], abs=0.01)
    assert page.locator(".pictures img").count() == 16
    assert page.locator(".pictures img").first.evaluate("image => image.naturalWidth") > 0
    words = page.locator(".word")
    assert words.all_inner_texts() == text.split()
    assert 0 <= float(words.first.get_attribute("data-start")) < float(words.first.get_attribute("data-end")) <= 1.41
    assert demo_server.files() == ["clip.mp4"]


def test_a_pose_file_needs_a_frame_rate_and_shows_a_skeleton(page, folder, capsys):
    choose(page, "Checkpoint", "pose/best.pt")
    page.get_by_text("Pose file").wait_for()
    assert not page.get_by_label("found by the face").is_visible()
    drop(page, folder / "pose.npy", "32 frames of unknown rate")
    page.get_by_role("button", name="Translate").click()
    page.get_by_text("pose.npy does not say its frame rate: fill it in").wait_for()
    page.get_by_label("Frames/s").fill("25")
    text = press_translate(page)
    words = (folder / "pose.npy", "--fps", 25, "--checkpoint", folder / "pose" / "best.pt")
    assert text == translated(capsys, *words)["hypotheses"][0]["text"]
    assert page.locator(".pictures svg").count() == 16 and page.locator(".pictures svg path").count() > 100
    assert not page.locator(".frame").count()


def test_a_language_is_chosen(page, folder, capsys):
    assert not page.get_by_role("combobox", name="Language").is_visible()
    choose(page, "Checkpoint", "languages/best.pt")
    page.get_by_role("combobox", name="Language").wait_for()
    assert page.get_by_role("combobox", name="Language").input_value() == "en_XX"
    choose(page, "Language", "de_DE")
    drop(page, folder / "clip.mp4", "1.60 s")
    page.get_by_label("centre of the frame").check()
    text = press_translate(page)
    words = (folder / "clip.mp4", "--checkpoint", folder / "languages" / "best.pt", "--target-lang")
    german, english = (translated(capsys, *words, code)["hypotheses"][0] for code in ("de_DE", "en_XX"))
    assert text == german["text"] and german["score"] != english["score"]
    assert page.locator("table.alternatives td:nth-child(2)").first.inner_text() == f"{german['score']:.3f}"


def test_too_long_a_part_is_refused_and_a_shorter_one_is_not(page, folder):
    drop(page, folder / "long.mp4", "2.40 s")
    page.get_by_role("button", name="Translate").click()
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert alert.inner_text() == (
        "2.4 s of signing are more than 2 s, the limit of this page: choose a part with start and end"
    )
    page.get_by_label("Start (s)").fill("later")
    page.get_by_role("button", name="Translate").click()
    page.get_by_text("start 'later': a number is needed").wait_for()
    page.get_by_label("Start (s)").fill("1")
    press_translate(page)
    assert not alert.count() and page.locator(".axis").inner_text().endswith("1.40 s")


def test_a_file_that_cannot_be_read_is_said_and_deleted(page, demo_server, folder):
    drop(page, folder / "broken.mp4", "broken.mp4")
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "/" not in alert.inner_text().replace("and/or", "")  # no folder of the server
    assert page.get_by_role("button", name="Translate").is_disabled()
    demo_server.wait_for_files([])


def test_too_large_a_file_is_refused_on_the_page(page, browser_page, demo_server, tmp_path):
    (tmp_path / "large.mp4").write_bytes(bytes(int(MAX_MB * 1e6) + 1))
    drop(page, tmp_path / "large.mp4", "exceed the maximum allowed size")
    assert demo_server.files() == []
    with page.expect_event("console"):  # Gradio asks how far an upload is that it did not begin
        pass
    browser_page.console_errors.clear()


def test_a_file_is_deleted_when_another_comes_and_when_the_page_is_left(page, demo_server, folder):
    drop(page, folder / "long.mp4", "2.40 s")
    assert demo_server.files() == ["long.mp4"]
    page.get_by_label("Clear").first.click()
    demo_server.wait_for_files([])
    drop(page, folder / "clip.mp4", "1.60 s")
    demo_server.wait_for_files(["clip.mp4"])
    page.goto("about:blank")
    demo_server.wait_for_files([])


@pytest.mark.parametrize("size", [(390, 800), (1280, 900)])
def test_the_page_is_as_wide_as_the_screen(page, folder, size):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    drop(page, folder / "clip.mp4", "1.60 s")
    press_translate(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/file=/work/../etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/file=http://127.0.0.1:1/",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/static/../../../../../../../../etc/passwd",
        "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/assets//etc/passwd",
        "/svelte/..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "/custom_component/1/client/x/..%2f..%2fetc%2fpasswd",
        "/gradio_api/custom_component/1/client/component/passwd",
        "/monitoring",
        "/gradio_api/vibe-code/",
        "/gradio_api/runs",
        "/docs",
        "/openapi.json",
    ],
)
def test_files_of_the_machine_are_not_served(demo_server, path):
    for method in ("GET", "HEAD", "POST"):
        status, text, _ = demo_server.request(method, path, b"{}" if method == "POST" else None)
        assert status in (403, 404, 405) and "root:" not in text


def test_not_even_an_upload_is_served(demo_server, folder):
    status, answer = demo_server.upload("clip.mp4", (folder / "clip.mp4").read_bytes())
    assert status == 200
    (path,) = json.loads(answer)
    assert path.startswith(str(demo_server.temporary))
    assert demo_server.request("GET", f"/gradio_api/file={path}")[0] == 403
    status, said = demo_server.call("change of Video", [file_at(path), "video/best.pt"])
    assert status == 200 and "1.60 s" in json.dumps(json.loads(said.split("data: ")[-2]))


def file_at(path) -> dict:
    return {"path": str(path), "orig_name": "a.mp4", "meta": {"_type": "gradio.FileData"}}


def test_a_path_that_was_not_uploaded_is_not_taken(demo_server, folder):
    status, said = demo_server.call("change of Video", [file_at(folder / "clip.mp4"), "video/best.pt"])
    assert status == 403 and "uploaded files only" in said
    assert (folder / "clip.mp4").is_file()


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/a.mp4", " HTTPS://example.com/a.mp4", "file:///etc/passwd"])
def test_an_address_in_the_place_of_a_file_is_refused(demo_server, address):
    for data in ([file_at(address), "video/best.pt"], [None, {"a": [file_at(address)]}]):
        status, said = demo_server.call("change of Video", data)
        assert status == 403 and "uploaded files only" in said


def test_limits_hold_for_requests_that_no_page_made(demo_server):
    status, said = demo_server.upload("large.mp4", bytes(int(MAX_MB * 1e6) + (1 << 17)))
    assert status == 413 and "0.5 MB" in said and "--max-upload-mb" in said
    assert demo_server.upload("large.mp4", bytes(int(MAX_MB * 1e6) + 1))[0] == 413
    assert "large.mp4" not in demo_server.files()
    status, _, _ = demo_server.request(
        "POST", "/gradio_api/queue/join", bytes(2 << 20), content_type="application/json"
    )
    assert status == 413
    # parts: checkpoint, language, start, end, frames/s, box, place, beam, alternatives, evidence
    for data, said in (
        (["video/best.pt", None, "", "", "", "none", "", 5, 3, False], "there is no file yet"),
        (["/etc/passwd", None, "", "", "", "none", "", 5, 3, False], "Value"),
    ):
        assert said in demo_server.call("click of Translate", data)[1]


def test_other_sites_cannot_use_it(demo_server):
    port = demo_server.port
    assert demo_server.request("GET", "/", Host=f"rebound.example:{port}")[0] == 403
    assert demo_server.request("GET", "/", Host=f"localhost:{port}")[0] == 200
    status, text, _ = demo_server.request("POST", "/gradio_api/upload", b"", Origin="https://evil.example")
    assert status == 403 and "evil.example" in text
    _, _, headers = demo_server.request("GET", "/")
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_it_listens_at_one_address_alone(demo_server):
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", demo_server.port))  # as 0.0.0.0 would take it


def test_stops_at_once_with_a_page_open_and_leaves_nothing(folder, tmp_path, browser_page):
    with running_demo(tmp_path, "--checkpoint", folder / "video" / "best.pt") as running:
        browser_page.page.goto(running.url)
        drop(browser_page.page, folder / "clip.mp4", "1.60 s")
        assert running.files() == ["clip.mp4"]
        running.process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        assert running.process.wait(30) == 0
        assert time.monotonic() - begun < 8
        assert list(running.temporary.glob("slt-demo-*")) == []
        log = running.log.read_text()
        assert "Traceback" not in log and log.splitlines()[-1] == "slt-demo: stopped"
