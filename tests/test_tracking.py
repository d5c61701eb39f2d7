"""TensorBoard and W&B in real trainings: losses, BLEU, chrF, rates, speed, sentences; and nothing on the network."""

import json
import os
import re
import socket
import sys
import threading
import time

import pytest
from fairseq.logging import progress_bar
from forked_training import Forked, finish, run_stock, start, train_words
from pretraining_helpers import pretraining_config
from tracker_helpers import events, history, texts

NUMBERS = ("loss", "nll_loss", "ctc_loss", "lr", "gnorm", "clips_per_second", "ups", "bsz")
SCORES = ("loss", "bleu", "chrf")


def logged(log: str) -> dict[str, dict[int, dict[str, float]]]:
    """kind of line -> update -> numbers, of a log in JSON."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for kind, text in re.findall(r"\[(train_inner|valid|other)\]\[INFO\] - (\{.*\})", log):
        prefix = "" if kind == "train_inner" else f"{kind}_"
        line = {name.removeprefix(prefix): float(value) for name, value in json.loads(text).items()}
        found.setdefault(kind, {})[int(line["num_updates"])] = line
    return found


def samples_of(log: str) -> dict[tuple[str, int], tuple[str, str]]:
    """(row, nth validation) -> reference and hypothesis, as the log shows them."""
    count: dict[str, int] = {}
    found = {}
    for row, ref, hyp in re.findall(r"sample (\S+)\n  reference:  (.*)\n  hypothesis: (.*)", log):
        found[row, count.setdefault(row, 0)] = (ref, hyp)
        count[row] += 1
    return found


@pytest.fixture(scope="module")
def tensorboard(pose_corpus, spm_model, tmp_path_factory):
    """A training with two validation subsets, and its log in JSON."""
    folder = tmp_path_factory.mktemp("tensorboard")
    words = train_words(
        pose_corpus, spm_model, folder / "run", f"common.tensorboard_logdir={folder / 'tb'}", "common.log_format=json",
        "common.log_interval=2", "task.eval_samples=2", 'dataset.valid_subset="valid,test"',
    )  # fmt: skip
    process = Forked(lambda: run_stock(words) or progress_bar._close_writers(), folder / "log")
    assert process.wait() == 0, process.text()[-3000:]
    return folder, process.text()


def test_tensorboard_has_the_numbers_of_the_log(tensorboard):
    folder, log = tensorboard
    found = events(folder / "tb" / "train_inner")
    lines = logged(log)["train_inner"]
    assert sorted(lines) == [2, 4, 6, 8, 10, 12]
    for name in NUMBERS:
        values = {event.step: event.value for event in found.Scalars(name)}
        assert sorted(values) == sorted(lines), name
        for update, line in lines.items():
            assert values[update] == pytest.approx(line[name], rel=0.02, abs=0.06), (name, update)  # the log rounds
    rates = [event.value for event in found.Scalars("clips_per_second")]
    assert all(rate > 0 for rate in rates[1:])


def test_clips_a_second_are_the_batch_times_updates_a_second(tensorboard):
    """fairseq's own two numbers; ups and wps leave the first update out, so that only the order can be compared."""
    folder, _ = tensorboard
    found = events(folder / "tb" / "train_inner")
    names = ("clips_per_second", "ups", "bsz", "wps", "wpb")
    series = {name: [event.value for event in found.Scalars(name)] for name in names}
    for clips, ups, bsz, wps, wpb in zip(*series.values(), strict=True):
        if clips:
            assert clips == pytest.approx(wps / wpb * bsz, rel=0.5) and clips == pytest.approx(ups * bsz, rel=0.5)


@pytest.mark.parametrize("subset", ["valid", "test"])
def test_tensorboard_has_bleu_and_chrf_of_each_validation(tensorboard, subset):
    folder, _ = tensorboard
    found = events(folder / "tb" / subset)
    for name in SCORES:
        assert [event.step for event in found.Scalars(name)] == [4, 8, 12], name


def test_tensorboard_has_sample_sentences(tensorboard):
    folder, log = tensorboard
    shown = samples_of(log)
    assert len(shown) == 2 * 2 * 3  # rows, subsets, validations
    for subset in ("valid", "test"):
        found = texts(events(folder / "tb" / subset))
        assert sorted(tag for tag in found if tag.startswith("sample/")) == [f"sample/{subset}-{i}" for i in range(2)]
        for row in (f"{subset}-0", f"{subset}-1"):
            for n, step in enumerate((4, 8, 12)):
                ref, hyp = shown[row, n]
                assert found[f"sample/{row}"][step] == f"    reference:  {ref}\n    hypothesis: {hyp}"


def test_pretraining_logs_its_numbers_too(video_corpus, tmp_path):
    from fairseq_cli import train

    def run():
        cfg = pretraining_config(
            video_corpus, tmp_path / "run", f"common.tensorboard_logdir={tmp_path / 'tb'}",
            "optimization.max_update=3", "dataset.validate_interval_updates=3", "common.log_interval=1",
            "task.picture_clips=1",
        )  # fmt: skip
        train.main(cfg)
        progress_bar._close_writers()

    process = Forked(run, tmp_path / "log")
    assert process.wait() == 0, process.text()[-3000:]
    found = events(tmp_path / "tb" / "train_inner")
    for name in ("loss", "lr", "gnorm", "clips_per_second"):
        assert [event.step for event in found.Scalars(name)] == [1, 2, 3], name
    assert found.Scalars("bsz")[0].value == 8  # clips, not rows of several
    assert events(tmp_path / "tb" / "valid").Tags()["images"] == ["reconstruction/valid-0"]


def test_sentences_of_all_ranks_are_written_by_the_first(pose_corpus, spm_model, tmp_path):
    words = train_words(
        pose_corpus, spm_model, tmp_path / "run", f"common.tensorboard_logdir={tmp_path / 'tb'}",
        "task.eval_samples=11", "dataset.batch_size_valid=2", "optimization.max_update=4",
    )  # fmt: skip
    assert finish(start(words, tmp_path / "log", ranks=2)) == [0, 0], (tmp_path / "log").read_text()[-3000:]
    found = texts(events(tmp_path / "tb" / "valid"))
    assert sorted(tag for tag in found if tag.startswith("sample/")) == sorted(f"sample/valid-{i}" for i in range(11))
    shown = samples_of((tmp_path / "log").read_text())
    assert 0 < len(shown) < 11  # the log is the first rank's, with the rows that it has decoded
    for (row, _), (ref, hyp) in shown.items():
        assert found[f"sample/{row}"] == {4: f"    reference:  {ref}\n    hypothesis: {hyp}"}
    assert len(list((tmp_path / "tb" / "valid").iterdir())) == 1


# ---- W&B


class Listener:
    """A server of this machine that counts who connects."""

    def __init__(self):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.connections = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener():
    server = Listener()
    yield server
    server.close()


def note_connections(path) -> None:
    """Every address beyond this machine that the process asks for goes to a file."""

    def hook(event, arguments):
        if event in ("socket.connect", "socket.getaddrinfo"):
            address = arguments[1] if event == "socket.connect" else arguments[:1]
            local = isinstance(address, str | bytes) or str(address[0]) in ("127.0.0.1", "::1", "localhost")
            if not local:
                with open(path, "a") as file:
                    file.write(f"{event} {address}\n")

    sys.addaudithook(hook)


def train_with_wandb(words, folder, listener, **environ: str) -> Forked:
    """A training whose every request to W&B, by its server's name or through a proxy, would reach the listener."""
    address = f"http://127.0.0.1:{listener.port}"

    def run():
        note_connections(folder / "addresses")
        os.environ.pop("WANDB_MODE", None)
        os.environ.update(environ)
        run_stock(words)
        progress_bar.wandb.finish()

    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), address) | {"NO_PROXY": ""}
    places = {name: str(folder / name.lower()) for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")}
    options = {"WANDB_SILENT": "true", "WANDB_DISABLE_GIT": "true", "WANDB_API_KEY": "0" * 40}
    lower = {name.lower(): value for name, value in proxies.items()}
    return Forked(
        run,
        folder / "log",
        {**proxies, **lower, **places, **options, "WANDB_DIR": str(folder), "WANDB_BASE_URL": address},
    )


def test_wandb_stays_on_disk_and_has_everything(pose_corpus, spm_model, tmp_path, listener):
    pytest.importorskip("wandb")
    words = train_words(
        pose_corpus, spm_model, tmp_path / "run", "common.wandb_project=tests", "common.log_format=json",
        "common.log_interval=4", "task.eval_samples=2",
    )  # fmt: skip
    process = train_with_wandb(words, tmp_path, listener)
    assert process.wait() == 0, process.text()[-3000:]
    assert "W&B keeps this run on disk, nothing is sent" in process.text()
    assert listener.connections == 0 and not (tmp_path / "addresses").exists()
    (log,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")  # every later init() leaves an empty folder
    steps = {row["_step"]: row for row in history(log)}
    lines = logged(process.text())
    assert {step for step, row in steps.items() if "train_inner/loss" in row} == {4, 8, 12} == set(lines["train_inner"])
    for step, line in lines["train_inner"].items():
        for name in NUMBERS:
            assert steps[step][f"train_inner/{name}"] == pytest.approx(line[name], rel=0.02, abs=0.06), name
    for step, line in lines["valid"].items():
        for name in SCORES:
            assert steps[step][f"valid/{name}"] == pytest.approx(line[name], rel=0.02, abs=0.06), name
    shown = samples_of(process.text())
    for n, step in enumerate((4, 8, 12)):
        table = json.loads((log.parent / "files" / steps[step]["valid/samples/path"]).read_text())
        assert table["columns"] == ["id", "reference", "hypothesis"]
        assert table["data"] == [[f"valid-{i}", *shown[f"valid-{i}", n]] for i in range(2)]


def test_wandb_goes_online_where_it_is_asked_to(pose_corpus, spm_model, tmp_path, listener):
    """So that the test above would see it."""
    pytest.importorskip("wandb")
    words = train_words(pose_corpus, spm_model, tmp_path / "run", "common.wandb_project=tests")
    process = train_with_wandb(words, tmp_path, listener, WANDB_MODE="online")
    deadline = time.monotonic() + 60
    try:
        while not listener.connections and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.kill()
    assert listener.connections
    assert "nothing is sent" not in process.text()
