"""Criterion sonar_distillation: gradient, retrieval over a whole validation set, refusals."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from distillation_helpers import (
    LANGUAGE,
    batch,
    criterion_of,
    make_material,
    student,
    student_task,
)
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from omegaconf import OmegaConf
from sonar_helpers import DIM, SPM
from test_task import model_config as sign_to_text_config
from test_task import setup

from slt_plugin.cli import extract
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import read_manifest, write_manifest
from slt_plugin.data.store import FeatureStore, Fingerprint, StoreWriter
from slt_plugin.data.teacher import TeacherEmbeddings, teacher_key
from slt_plugin.models.errors import OptionError


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


@pytest.mark.parametrize("freeze", ["text_decoder", ""])
def test_gradient_is_that_of_a_plain_computation(corpus, release, teacher, freeze):
    """Sum of squares, and cross-entropy with label smoothing over all tokens but the language and padding."""
    task = student_task(corpus, release, teacher)
    task.load_dataset("train")
    model, sample = student(task, freeze=freeze).eval(), batch(task, "train", range(7))
    criterion = criterion_of(task, ce_weight=0.3, label_smoothing=0.1, report_accuracy=True).train()
    loss, sample_size, logged = criterion(model, sample)
    loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = {name: parameter.grad.clone() for name, parameter in trained.items()}
    model.zero_grad()

    store = FeatureStore(teacher)
    rows = task.dataset("train").rows[:7]
    wanted = torch.tensor(np.stack([store.read(teacher_key(row.text, LANGUAGE))[0] for row in rows]))
    embedding = model.embed(sample["net_input"])
    source = {"encoder_out": [embedding[None]], "encoder_padding_mask": []}
    logits, _ = model.decoder(sample["net_input"]["prev_output_tokens"], encoder_out=source)
    plain, correct, tokens = ((embedding - wanted) ** 2).sum(), 0, 0
    for i, row in enumerate(rows):
        target = torch.cat([torch.tensor([task.codec.language_id(LANGUAGE)]), task.codec.encode(row.text)])
        for position in range(1, len(target)):
            log = torch.log_softmax(logits[i, position], dim=0)
            others = 0.1 / (len(log) - 1)
            plain = plain - 0.3 * ((1 - 0.1 - others) * log[target[position]] + others * log.sum())
            correct += int(log.argmax() == target[position])
            tokens += 1
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)
    plain.backward()
    assert sample_size == 7 and (logged["tokens"], logged["total"], logged["n_correct"]) == (tokens, tokens, correct)
    for name, parameter in trained.items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert any(name.startswith("decoder.") for name in trained) is (freeze == "")
    assert found["encoder.source_encoder.blocks.0.conv.weight"].abs().max() > 0


def test_without_cross_entropy_nothing_is_decoded(corpus, release, teacher, monkeypatch):
    task = student_task(corpus, release, teacher)
    task.load_dataset("train")
    model, criterion = student(task), criterion_of(task).train()
    monkeypatch.setattr(model.decoder, "forward", lambda *a, **k: pytest.fail("decoded"))
    sample = batch(task, "train", range(5))
    loss, _, logged = criterion(model, sample)
    difference = model.embed(sample["net_input"]) - sample["teacher"]
    assert loss.item() == pytest.approx(difference.square().sum().item(), rel=1e-5)
    assert "prev_output_tokens" in sample["net_input"]  # the sample is as it was
    assert not {"nll", "tokens", "n_correct"} & set(logged)


def test_teacher_survives_training_in_half_precision(corpus, release, teacher):
    task = student_task(corpus, release, teacher)
    task.load_dataset("train")
    sample = batch(task, "train", range(3))
    stored = np.stack([FeatureStore(teacher).read(teacher_key(text, LANGUAGE))[0] for text in sample["texts"]])
    for kind in ("fp16", "bf16"):
        common = SimpleNamespace(fp16=kind == "fp16", bf16=kind == "bf16")
        converted = Trainer._fp_convert_sample(SimpleNamespace(cfg=SimpleNamespace(common=common)), sample)
        assert converted["net_input"]["src_tokens"].dtype != torch.float32
        assert np.array_equal(converted["teacher"].float().numpy(), stored)


# validation


class Placed(torch.nn.Module):
    """A model whose embedding of row i is ``vectors[i]``; ``numbers`` are the rows of the batch that comes."""

    embed, decoder = None, torch.nn.Identity()

    def __init__(self, vectors):
        super().__init__()
        self.vectors, self.numbers = vectors, []

    def forward(self, src_tokens, src_lengths):
        return None, {"embedding": self.vectors[list(self.numbers)]}


def validated(task, model, criterion, batches) -> dict[str, float]:
    """What a validation logs that is made of these batches."""
    with metrics.aggregate(new_root=True) as found, torch.no_grad():
        for model.numbers in batches:
            _, _, logged = task.valid_step(batch(task, "valid", model.numbers), model, criterion)
            task.reduce_metrics([logged], criterion)
    values = found.get_smoothed_values()
    return {name: float(values[name]) for name in ("r1", "mse", "cosine", "loss")}


def test_retrieval_and_means_are_of_all_rows_whatever_the_batches(corpus, release, teacher):
    task = student_task(corpus, release, teacher, eval_bleu=False)
    task.load_dataset("valid")
    truth = batch(task, "valid", range(40))["teacher"].float()
    model = Placed(truth + 0.1 * torch.randn(40, DIM, generator=torch.Generator().manual_seed(0)))
    criterion = criterion_of(task).eval()
    found = validated(task, model, criterion, [range(40)])

    texts = [row.text for row in task.dataset("valid").rows]
    unit = {text: vector / vector.norm() for text, vector in zip(texts, truth, strict=True)}
    assert 10 < len(unit) < 40  # texts that stand twice are one candidate
    hits = 0
    for text, vector in zip(texts, model.vectors, strict=True):
        cosines = {other: float(vector @ direction) for other, direction in unit.items()}
        hits += max(cosines, key=cosines.get) == text
    squares = (model.vectors - truth).square()
    assert 4 < hits < 36
    assert found["r1"] == pytest.approx(100 * hits / 40)
    assert found["loss"] == pytest.approx(float(squares.sum(1).mean()), rel=1e-5)
    assert found["mse"] == pytest.approx(float(squares.mean()), rel=1e-5)
    assert found["cosine"] == pytest.approx(float(torch.cosine_similarity(model.vectors, truth).mean()), rel=1e-5)
    thirds = [i for i in range(40) if i % 3]
    for batches in ([range(39), [39]], [[i] for i in range(40)], [range(0, 40, 3), thirds]):
        assert validated(task, model, criterion, batches) == pytest.approx(found, rel=1e-5)


def test_every_rank_logs_the_same_keys(corpus, release, teacher):
    """At validation a rank without a batch may get one of the training data as stand-in."""
    task = student_task(corpus, release, teacher, eval_bleu=False)
    for split in ("train", "valid"):
        task.load_dataset(split)
    model, criterion = Placed(torch.zeros(40, DIM)), criterion_of(task).eval()
    logged = []
    for split in ("train", "valid"):
        model.numbers = range(5)
        logged.append(task.valid_step(batch(task, split, range(5)), model, criterion)[2])
    assert logged[0].keys() == logged[1].keys()
    assert [output["r1_rows"] for output in logged] == [0, 5]


# what is refused


def test_rows_without_embedding_are_named_with_the_command(corpus, release, teacher, tmp_path):
    rows = read_manifest(corpus / "valid.tsv")
    changed = [replace(rows[0], text="abba"), replace(rows[1], text="dada"), *rows[2:]]
    write_manifest(tmp_path / "valid.tsv", changed)
    task = student_task(tmp_path, release, teacher, media_root=str(corpus))
    with pytest.raises(DataError) as error:
        task.load_dataset("valid")
    command = re.search(r"slt-extract (.+)", str(error.value))[1].split()
    assert "2 of 40 rows have no teacher embedding" in str(error.value) and "valid-0, valid-1." in str(error.value)
    names = {"checkpoint": release / "sonar_text_encoder.pt", "spm": release / SPM}
    command = [f"{word.split('=')[0]}={names.get(word.split('=')[0], word.split('=')[1])}" for word in command]
    assert f"lang={LANGUAGE}" in command
    copied = tmp_path / "copy.store"
    with StoreWriter(copied, FeatureStore(teacher).fingerprint) as writer:
        for key in FeatureStore(teacher).keys():  # noqa: SIM118
            writer.add(key, 0, torch.tensor(np.array(FeatureStore(teacher).read(key))))
    command = [word.replace(str(teacher), str(copied)) for word in command]
    assert extract.main([*command, "device=cpu"]) == 0  # the command that was advised, with the files' places
    fixed = student_task(tmp_path, release, copied, media_root=str(corpus))
    fixed.load_dataset("valid")
    assert len(fixed.dataset("valid").teacher.keys) > 2


def test_teacher_lang_wins_over_target_lang_and_rows_need_one(corpus, release, teacher):
    task = student_task(corpus, release, teacher, teacher_lang="fra_Latn")
    with pytest.raises(DataError, match=r"40 of 40 rows have no teacher embedding.*lang=fra_Latn"):
        task.load_dataset("valid")
    rows = read_manifest(corpus / "valid.tsv")
    nameless = student_task(corpus, release, teacher, target_lang=None)
    with pytest.raises(DataError, match=r"1 of 40 rows have no text_lang: valid-0.*task\.teacher_lang"):
        nameless.teacher.of([replace(rows[0], text_lang=None), *rows[1:]], "valid.tsv", training=False)


def test_teacher_and_criterion_go_together(corpus, release, teacher):
    with pytest.raises(OptionError, match=r"needs task\.teacher=PATH\.store"):
        criterion_of(student_task(corpus, release))
    task = student_task(corpus, release, teacher)
    other = OmegaConf.create({"_name": "cross_entropy", "sentence_avg": False})
    with pytest.raises(OptionError, match=r"no effect on criterion CrossEntropyCriterion"):
        task.build_criterion(other)
    with pytest.raises(OptionError, match=r"teacher_lang=eng_Latn has no effect without task\.teacher"):
        student_task(corpus, release, teacher_lang=LANGUAGE)
    with pytest.raises(OptionError, match=r"criterion\.ce_weight=-1"):
        criterion_of(task, ce_weight=-1.0)


@pytest.mark.parametrize("metric", ["r1", "cosine", "mse"])
def test_best_checkpoint_by_the_teachers_metrics(corpus, release, teacher, metric):
    higher = metric != "mse"
    options = {"best_checkpoint_metric": metric, "maximize_best_checkpoint_metric": higher}
    student(student_task(corpus, release, teacher, **options))
    with pytest.raises(OptionError, match=rf"{metric} is known of criterion sonar_distillation alone"):
        student(student_task(corpus, release, **options))
    with pytest.raises(OptionError, match="or the worst model is kept"):
        student(student_task(corpus, release, teacher, **options | {"maximize_best_checkpoint_metric": not higher}))


def test_models_that_do_not_fit(corpus, release, teacher, spm_model):
    task = student_task(corpus, release, teacher)
    task.load_dataset("train")
    sample, criterion = batch(task, "train", range(2)), criterion_of(task).train()
    with pytest.raises(OptionError, match=r"gives the text decoder no gradient.*model\.freeze=text_decoder"):
        criterion(student(task, freeze=""), sample)
    with pytest.raises(OptionError, match=r"model\._name=sonar_translator"):
        criterion(setup(corpus, spm_model).build_model(sign_to_text_config()), sample)
    narrow = {**sample, "teacher": sample["teacher"][:, :32]}
    with pytest.raises(OptionError, match=r"have 64 dimensions, those of task\.teacher 32"):
        criterion(student(task), narrow)


def test_a_store_of_something_else_is_no_teacher(corpus, release, tmp_path):
    with StoreWriter(tmp_path / "f.store", Fingerprint({"encoder": "sign_hiera"})) as writer:
        writer.add("a", 0, torch.ones(3, 4))
    task = student_task(corpus, release, tmp_path / "f.store")
    with pytest.raises(DataError, match=r"holds no teacher embeddings .*encoder=sign_hiera"):
        task.load_dataset("valid")


def test_options_of_a_cross_entropy_that_is_not_there(corpus, release, teacher):
    task = student_task(corpus, release, teacher)
    with pytest.raises(OptionError, match=r"criterion.label_smoothing=0.1 has no effect without cross-entropy"):
        criterion_of(task, label_smoothing=0.1)
    criterion_of(task, label_smoothing=0.1, ce_weight=0.5)


def test_a_missing_store_is_told_how_to_make_it(tmp_path):
    with pytest.raises(DataError, match=r"task.teacher=.*none.store does not exist: slt-extract what=sonar_teacher"):
        TeacherEmbeddings(tmp_path / "none.store", "train", [], [])
