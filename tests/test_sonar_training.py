"""Distillation through fairseq's own training: loss and retrieval, resume, two ranks, the How2Sign recipe."""

import json
import logging
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_command
from distillation_helpers import (
    LANGUAGE,
    POSES,
    SMALL,
    SMALL_FEATURES,
    SMALL_VIDEO,
    batch,
    criterion_of,
    embed_texts,
    make_material,
    student,
    student_task,
    train_student,
)
from fairseq.logging import metrics
from sonar_helpers import DIM, FEATURES, SPM, as_fairseq2, make_fake_release, sonar_codec
from test_sonar import text_encoder
from test_sonar_translator import imported
from test_task import setup
from test_two_ranks import DISTRIBUTED, TRAIN

from slt_plugin.cli import extract, report
from slt_plugin.common.errors import SltError
from slt_plugin.criterions.sonar_distillation import SonarDistillation
from slt_plugin.data.features import choose_copy, open_features
from slt_plugin.data.manifest import Row, read_manifest, write_manifest
from slt_plugin.data.store import FeatureStore
from slt_plugin.data.teacher import teacher_key


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """release, corpus, teacher: see `make_material`."""
    return make_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def release(material):
    return material[0]


@pytest.fixture(scope="module")
def corpus(material):
    return material[1]


@pytest.fixture(scope="module")
def teacher(material):
    return material[2]


def other_teacher(release: Path, folder: Path) -> Path:
    """A release with another text encoder."""
    made = make_fake_release(folder)
    encoder = text_encoder(sonar_codec(release))
    with torch.no_grad():
        encoder.transformer.layers[0].fc1.weight.add_(0.1)
    torch.save(as_fairseq2(encoder.transformer, "encoder"), made / "sonar_text_encoder.pt")
    return made


def test_another_teacher_is_refused_on_resume(corpus, release, teacher, tmp_path):
    train_student(corpus, release, teacher, tmp_path / "run", "optimization.max_update=1")
    second = tmp_path / "second.store"
    for split in ("train", "valid"):
        assert embed_texts(other_teacher(release, tmp_path / "release"), corpus / f"{split}.tsv", second) == 0
    state = torch.load(tmp_path / "run" / "checkpoint_last.pt", weights_only=True)["task_state"]
    assert state["teacher"]["fingerprint"] == FeatureStore(teacher).fingerprint.values
    for save_dir, start in (
        ("run", ()),
        ("new", (f"checkpoint.finetune_from_model={tmp_path}/run/checkpoint_last.pt",)),
    ):
        with pytest.raises(SltError, match=r"teacher embeddings made otherwise.*checkpoint_sha256: "):
            train_student(corpus, release, second, tmp_path / save_dir, "optimization.max_update=2", *start)
    train_student(corpus, release, teacher, tmp_path / "run", "optimization.max_update=2")
    decoding = setup(corpus, **POSES | {"codec": "sentencepiece"})
    decoding.load_state_dict(state)  # decoding has no use for a teacher
    decoding.load_dataset("valid", task_cfg=decoding.cfg)
    assert decoding.dataset("valid").teacher is None


class Records(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def parsed(line: str) -> dict[str, float]:
    """'... | mse 0.01 | r1 40 | ...' -> numbers by name."""
    words = (part.split() for part in line.split(" | "))
    return {pair[0]: float(pair[1]) for pair in words if len(pair) == 2 and pair[0] in ("loss", "mse", "cosine", "r1")}


@pytest.fixture(scope="module")
def trained(corpus, release, teacher, tmp_path_factory):
    """250 updates of a small student, about 6 CPU-seconds; the run and what its validations logged."""
    run, records = tmp_path_factory.mktemp("run"), Records()
    logger = logging.getLogger("fairseq.logging.progress_bar")
    logger.addHandler(records)
    logger.setLevel(logging.INFO)
    train_student(
        corpus, release, teacher, run, "optimization.max_update=250", "optimization.lr=[0.0015]",
        "dataset.validate_interval=1000000", "dataset.validate_interval_updates=50", "checkpoint.patience=-1",
        "checkpoint.save_interval=1000000", "checkpoint.save_interval_updates=50",
        "checkpoint.best_checkpoint_metric=r1",
    )  # fmt: skip
    logger.removeHandler(records)
    return run, [parsed(line) for line in records.lines if "valid on 'valid' subset" in line]


def test_the_loss_falls_and_retrieval_beats_chance_by_far(trained, corpus, release, teacher, tmp_path, capsys):
    run, logged = trained
    first, last = logged[0], logged[-1]
    assert len(logged) == 5 and last["mse"] < first["mse"] / 5
    assert last["loss"] == pytest.approx(last["mse"] * DIM, rel=1e-3)
    distinct = len({row.text for row in read_manifest(corpus / "valid.tsv")})
    assert last["r1"] > 10 * 100 / distinct

    # the same once more from the outside: embeddings of the saved model against the teacher's of the split
    checkpoint = run / "checkpoint_last.pt"
    words = [f"checkpoint={checkpoint}", f"manifest={corpus}/valid.tsv", f"out={tmp_path}/valid.store", "device=cpu"]
    assert extract.main(["what=sonar", *words, "num_workers=0"]) == 0
    rows = read_manifest(tmp_path / "valid.tsv")
    mine = np.stack([open_features(choose_copy(tmp_path / row.path, None))[0] for row in rows])
    store = FeatureStore(teacher)
    theirs = {row.text: np.array(store.read(teacher_key(row.text, LANGUAGE))[0]) for row in rows}
    units = {text: vector / np.linalg.norm(vector) for text, vector in theirs.items()}
    hits = [
        max(units, key=lambda text, v=vector: v @ units[text]) == row.text
        for vector, row in zip(mine, rows, strict=True)
    ]
    squared = np.mean([np.square(vector - theirs[row.text]).mean() for vector, row in zip(mine, rows, strict=True)])
    assert last["r1"] == pytest.approx(100 * np.mean(hits))
    assert embed_texts(release, corpus / "valid.tsv", tmp_path / "t.store", f"out_manifest={tmp_path}/texts.tsv") == 0
    capsys.readouterr()
    words = ["--query", f"{tmp_path}/valid.tsv", "--corpus", f"{tmp_path}/texts.tsv", "-k", "1", "--json"]
    assert report.main(["neighbours", *words]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["neighbours"][0]["text"] == row["text"] for row in found] == hits
    assert last["mse"] == pytest.approx(squared, rel=1e-3)


def test_two_ranks_count_every_row_once(corpus, release, teacher, tmp_path):
    """40 rows in 5 batches of 8: at the last step one rank has none, and gets a stand-in that must not count."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    result = run_command(
        "torchrun", "--nproc-per-node", "2", "--master-port", port, TRAIN,
        "--config-dir", "slt_plugin/config/finetune", "--config-name", "sonar_how2sign", "common.user_dir=slt_plugin",
        f"task.data={corpus}", f"task.codec_path={release / SPM}", f"task.teacher={teacher}",
        f"checkpoint.save_dir={tmp_path / 'run'}", *SMALL, *DISTRIBUTED, "optimization.max_update=20",
        "dataset.batch_size=16", "dataset.batch_size_valid=8", "checkpoint.patience=-1", "task.eval_bleu=false",
        "checkpoint.best_checkpoint_metric=r1", "dataset.validate_interval=1000", "checkpoint.save_interval=1000",
    )  # fmt: skip
    log = result.stdout + result.stderr
    logged = parsed(re.findall(r"valid on 'valid' subset .*", log)[-1])
    task = student_task(corpus, release, teacher)
    task.load_dataset("valid")
    state = torch.load(tmp_path / "run" / "checkpoint_last.pt", weights_only=True)
    model = student(task).eval()
    task.cfg.eval_bleu = False
    model.load_state_dict(state["model"])
    with metrics.aggregate(new_root=True) as found, torch.no_grad():
        _, _, output = task.valid_step(batch(task, "valid", range(40)), model, criterion_of(task).eval())
        SonarDistillation.reduce_metrics([output])
    assert {name: float(found[name].smoothed_value) for name in logged} == pytest.approx(logged, rel=1e-3)


def test_the_recipe_starts_from_the_release_and_moves_what_it_says(release, video_corpus, tmp_path):
    """Two updates on videos: early SignHiera blocks and text decoder stay, the parts move at rates of their own."""
    teacher, start = tmp_path / "teacher.store", imported(release, tmp_path / "sonar_asl.pt")
    for split in ("train", "valid"):
        assert embed_texts(release, video_corpus / f"{split}.tsv", teacher) == 0
    train_student(
        video_corpus, release, teacher, tmp_path / "run", f"checkpoint.finetune_from_model={start}",
        "optimization.max_update=2", "task.clip_sampling_rate=2", small=SMALL_VIDEO,
    )  # fmt: skip
    saved = torch.load(tmp_path / "run" / "checkpoint_last.pt", weights_only=True)
    before, after = torch.load(start, weights_only=True)["model"], saved["model"]
    blocks = {int(name.split(".")[4]) for name in before if "hiera.blocks." in name}
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    hiera = "encoder.source_encoder.hiera.blocks."
    assert moved and not any(name.startswith("decoder.") for name in moved)
    assert {int(name.split(".")[4]) for name in moved if name.startswith(hiera)} == {max(blocks)}
    assert {name for name in after if name.startswith("encoder.sonar.") and name.endswith("weight")} <= moved
    scales = sorted(group["lr_scale"] for group in saved["last_optimizer_state"]["param_groups"])
    assert scales == [0.1, 1.0]


def test_the_recipe_on_features_starts_from_the_release(release, tmp_path):
    """Two updates (the first of warm-up) without a video: the whole SONAR encoder moves, the text decoder stays."""
    corpus, teacher = tmp_path / "features", tmp_path / "teacher.store"
    corpus.mkdir()
    start = imported(release, tmp_path / "sonar_features.pt", "--source", "features")
    rng = np.random.default_rng(0)
    for split in ("train", "valid"):
        rows = [Row(f"{split}-{i}", f"{split}-{i}.npy", "hello world", text_lang="en", num_frames=6) for i in range(4)]
        for row in rows:
            np.save(corpus / row.path, rng.normal(size=(6, FEATURES)).astype(np.float32))
        write_manifest(corpus / f"{split}.tsv", rows)
        assert embed_texts(release, corpus / f"{split}.tsv", teacher) == 0
    train_student(
        corpus, release, teacher, tmp_path / "run", f"checkpoint.finetune_from_model={start}",
        "optimization.max_update=2", small=SMALL_FEATURES, config="sonar_how2sign_features",
    )  # fmt: skip
    before = torch.load(start, weights_only=True)["model"]
    after = torch.load(tmp_path / "run" / "checkpoint_last.pt", weights_only=True)["model"]
    assert before.keys() == after.keys()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("decoder.") for name in moved)
    assert {name for name in after if name.startswith("encoder.sonar.") and name.endswith("weight")} <= moved
