"""Task sign_to_text: manifests, state, limits, languages, validation."""

import logging
import multiprocessing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.logging import metrics
from fairseq_cli import train
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import slt_plugin.tasks  # noqa: F401
from slt_plugin.cli.training import CONFIGS
from slt_plugin.common.errors import SltError
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import read_manifest, write_manifest
from slt_plugin.models.errors import OptionError
from slt_plugin.models.sign_to_text import TinyConfig
from slt_plugin.tasks.sign_to_text import SignToTextTask, SignToTextTaskConfig
from slt_plugin.tasks.validation import log_scores, score_counts
from slt_plugin.text.codec import CodecError


def setup(corpus, spm=None, **options) -> SignToTextTask:
    interpolated = {"train_subset": "train", "seed": 1, "skip_invalid_size_inputs": False,
                    "best_checkpoint_metric": "bleu", "maximize_best_checkpoint_metric": True,
                    "tensorboard_logdir": None, "wandb_project": None}  # fmt: skip
    values = {"data": str(corpus), "eval_max_len": 12, **interpolated, **options}
    cfg = OmegaConf.merge(OmegaConf.structured(SignToTextTaskConfig), values)
    if spm is not None:
        cfg.codec_path = str(spm)
    return SignToTextTask.setup_task(cfg)


def model_config(**options):
    small = {"source_encoder": "pose", "max_target_positions": 64, "encoder_layers": 1, "decoder_layers": 1}
    return OmegaConf.merge(OmegaConf.structured(TinyConfig), {"_name": "sign_to_text_tiny"}, small, options)


def run_training(corpus, spm, save_dir, *overrides):
    """fairseq's own training loop on the quickstart's configuration, in this process."""
    hydra_init("fingerspelling_pose")
    with initialize_config_dir(str(CONFIGS / "finetune"), version_base="1.1"):
        cfg = compose("fingerspelling_pose", overrides=[
            f"task.data={corpus}", f"task.codec_path={spm}", f"checkpoint.save_dir={save_dir}", "dataset.num_workers=0",
            "+model.encoder_layers=1", "+model.decoder_layers=1", "lr_scheduler.warmup_updates=1", *overrides,
        ])  # fmt: skip
    add_defaults(cfg)
    train.main(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)))


def test_training_and_validation_rows_differ_in_augmentation(pose_corpus, spm_model):
    task = setup(pose_corpus, spm_model, pose_parts="body,right_hand", augment_noise=0.1)
    task.load_dataset("train")
    task.load_dataset("valid")
    train, valid = task.dataset("train"), task.dataset("valid")
    assert len(train) == 40 and task.source_channels == 90 == train[0]["source"].size(1)
    train.set_epoch(1)
    first = train[0]["source"]
    train.set_epoch(2)
    assert not torch.equal(first, train[0]["source"])
    plain = setup(pose_corpus, spm_model, pose_parts="body,right_hand")
    plain.load_dataset("valid")
    torch.testing.assert_close(valid[0]["source"], plain.dataset("valid")[0]["source"], rtol=0, atol=0)


def test_loader_workers_end_with_their_epoch(pose_corpus, spm_model, tmp_path, monkeypatch):
    """fairseq keeps those of past epochs by default, each with its copy of the training process's memory."""
    counts = []
    monkeypatch.setattr(
        SignToTextTask, "begin_epoch", lambda self, epoch, model: counts.append(len(multiprocessing.active_children()))
    )
    run_training(
        pose_corpus, spm_model, tmp_path, "dataset.num_workers=1", "dataset.disable_validation=true",
        "checkpoint.no_save=true", "optimization.max_epoch=4",
    )  # fmt: skip
    assert len(counts) == 4
    assert max(counts) <= 1


class TestState:
    def test_checkpoint_brings_vocabulary_and_source(self, pose_corpus, spm_model):
        trained = setup(pose_corpus, spm_model, pose_parts="body", step_frames=2)
        task = setup(pose_corpus)
        dictionary = task.target_dictionary
        task.load_state_dict(trained.state_dict())
        assert task.target_dictionary is dictionary and len(dictionary) == len(trained.target_dictionary)
        assert task.cfg.step_frames == 2 and task.source_channels == 27

    def test_state_loads_with_weights_only(self, pose_corpus, spm_model, tmp_path):
        state = setup(pose_corpus, spm_model).state_dict()
        torch.save(state, tmp_path / "state.pt")
        assert torch.load(tmp_path / "state.pt", weights_only=True) == state

    def test_other_source_than_the_checkpoint_is_refused(self, pose_corpus, spm_model):
        state = setup(pose_corpus, spm_model, step_frames=2).state_dict()
        with pytest.raises(ValueError, match=r"task\.step_frames=1 \(checkpoint: 2\)"):
            setup(pose_corpus, spm_model).load_state_dict(state)

    def test_ensemble_of_models_with_other_sources_is_refused(self, pose_corpus, spm_model):
        task = setup(pose_corpus)
        task.load_state_dict(setup(pose_corpus, spm_model, step_frames=2).state_dict())
        task.load_state_dict(setup(pose_corpus, spm_model, step_frames=2).state_dict())
        with pytest.raises(ValueError, match=r"task\.step_frames=2 \(checkpoint: 1\)"):
            task.load_state_dict(setup(pose_corpus, spm_model).state_dict())

    def test_other_vocabulary_than_the_checkpoint_is_refused(self, pose_corpus, spm_model):
        state = setup(pose_corpus, spm_model, lowercase=True).state_dict()
        with pytest.raises(CodecError, match="lowercase"):
            setup(pose_corpus, spm_model).load_state_dict(state)

    def test_training_without_vocabulary_is_refused(self, pose_corpus):
        with pytest.raises(ValueError, match=r"task\.codec_path is not set"):
            setup(pose_corpus).build_model(model_config())


class TestManifests:
    def test_file_instead_of_directory(self, pose_corpus, spm_model):
        with pytest.raises(DataError, match="give its directory"):
            setup(pose_corpus / "test.tsv", spm_model).load_dataset("test")

    def test_missing_split_lists_what_is_there(self, pose_corpus, spm_model):
        with pytest.raises(DataError, match=r"manifests in .*: test, train, valid"):
            setup(pose_corpus, spm_model).load_dataset("dev")

    def test_text_is_required_in_training_only(self, pose_corpus, spm_model, tmp_path):
        rows = read_manifest(pose_corpus / "train.tsv")
        write_manifest(tmp_path / "train.tsv", [replace(row, text=None) for row in rows])
        task = setup(tmp_path, spm_model, media_root=str(pose_corpus))
        with pytest.raises(DataError, match="text"):
            task.load_dataset("train")
        task.load_dataset("train", task_cfg=task.cfg)
        assert task.dataset("train").collater([task.dataset("train")[0]])["target"] is None

    def test_rows_beyond_the_limit_are_named_or_skipped_on_request(self, pose_corpus, spm_model, caplog):
        task = setup(pose_corpus, spm_model)
        task.load_dataset("test", task_cfg=task.cfg)
        dataset = task.dataset("test")
        limit = int(np.sort(dataset.source_lengths)[-2])
        longest = dataset.rows[int(dataset.source_lengths.argmax())].id
        with pytest.raises(DataError, match=rf"1 row\(s\) exceed .*{longest} .*skip_invalid_size_inputs_valid_test"):
            task.filter_indices_by_size(np.arange(13), dataset, (limit, 64))
        with caplog.at_level(logging.WARNING):
            kept = task.filter_indices_by_size(np.arange(13), dataset, (limit, 64), ignore_invalid_inputs=True)
        assert len(kept) == 12 and longest in caplog.text

    def test_rows_too_short_for_ctc_are_counted(self, pose_corpus, spm_model, caplog):
        task = setup(pose_corpus, spm_model)
        task.build_model(model_config(ctc=True, pose_strides="6"))
        with caplog.at_level(logging.WARNING):
            task.load_dataset("train")
        assert "CTC ignores" in caplog.text
        assert "train-" in caplog.text
        task.build_model(model_config(ctc=True, pose_strides="16"))
        with pytest.raises(DataError, match="CTC ignores 40 of 40 rows"):
            task.load_dataset("train")

    def test_training_skips_long_rows_only_on_request(self, pose_corpus, spm_model):
        """fairseq's trainer always asks to ignore them."""
        task = setup(pose_corpus, spm_model)
        task.load_dataset("train")
        dataset = task.dataset("train")
        limits = (int(dataset.source_lengths.max()) - 1, 64)
        with pytest.raises(DataError, match="exceed the limit"):
            task.filter_indices_by_size(np.arange(40), dataset, limits, ignore_invalid_inputs=True)
        task.cfg.skip_invalid_size_inputs = True
        assert len(task.filter_indices_by_size(np.arange(40), dataset, limits, ignore_invalid_inputs=True)) < 40

    def test_length_of_the_reference_does_not_limit_decoding(self, pose_corpus, spm_model):
        task = setup(pose_corpus, spm_model)
        for decoding, kept in ((True, 13), (False, 0)):
            task.load_dataset("test", task_cfg=task.cfg if decoding else None)
            assert len(task.dataset("test").filter_indices_by_size(np.arange(13), (4096, 3))[0]) == kept

    def test_texts_in_some_rows_only_are_refused(self, pose_corpus, spm_model, tmp_path):
        rows = read_manifest(pose_corpus / "test.tsv")
        write_manifest(tmp_path / "test.tsv", [*rows[:-1], replace(rows[-1], text=None)])
        task = setup(tmp_path, spm_model, media_root=str(pose_corpus))
        with pytest.raises(DataError, match=r"1 of 13 rows have no text \(first: test-12\)"):
            task.load_dataset("test", task_cfg=task.cfg)

    def test_texts_that_the_vocabulary_cannot_spell(self, pose_corpus, spm_model, tmp_path, caplog):
        rows = read_manifest(pose_corpus / "test.tsv")
        write_manifest(tmp_path / "train.tsv", [replace(row, text=row.text.upper()) for row in rows])
        write_manifest(tmp_path / "valid.tsv", [replace(rows[0], text=rows[0].text + "z"), *rows[1:]])
        task = setup(tmp_path, spm_model, media_root=str(pose_corpus))
        with pytest.raises(DataError, match=r"cannot spell \d+\.\d% of the tokens, in 13 of 13 rows.*task\.lowercase"):
            task.load_dataset("train")
        with caplog.at_level(logging.WARNING):
            task.load_dataset("valid")
        assert "in 1 of 13 rows, for example test-0" in caplog.text


class TestOptions:
    def test_best_checkpoint_is_chosen_by_something_and_is_the_best(self, pose_corpus, spm_model):
        with pytest.raises(OptionError, match="eval_bleu=false leaves no bleu"):
            setup(pose_corpus, spm_model, eval_bleu=False).build_model(model_config())
        with pytest.raises(OptionError, match="maximize_best_checkpoint_metric=false"):
            setup(pose_corpus, spm_model, best_checkpoint_metric="loss").build_model(model_config())

    def test_features_have_no_use_for_pose_options(self, pose_corpus, spm_model):
        with pytest.raises(OptionError, match=r"no use for task\.augment_noise"):
            setup(pose_corpus, spm_model, source="features", feature_channels=4, augment_noise=0.1)
        with pytest.raises(OptionError, match=r"task\.feature_channels is not set"):
            _ = setup(pose_corpus, spm_model, source="features").source_channels

    def test_target_language_without_language_tokens(self, pose_corpus, spm_model):
        with pytest.raises(OptionError, match="no language tokens"):
            setup(pose_corpus, spm_model, target_lang="de_DE").load_dataset("train")

    def test_source_options_at_decoding_are_the_checkpoints(self, pose_corpus, spm_model):
        state = setup(pose_corpus, spm_model, step_frames=2).state_dict()
        with pytest.raises(OptionError, match=r"task\.step_frames=3 \(checkpoint: 2\)"):
            setup(pose_corpus, step_frames=3).load_state_dict(state)

    @pytest.mark.parametrize(("override", "message"), [
        ("task.lowercase=true", "lowercase"),
        ('task.pose_parts="right_hand,body"', "another source"),
    ])  # fmt: skip
    @pytest.mark.parametrize("resume", [True, False])
    def test_training_does_not_go_on_from_another_vocabulary_or_source(
        self, pose_corpus, spm_model, tmp_path, override, message, resume
    ):
        run_training(pose_corpus, spm_model, tmp_path / "a", "optimization.max_update=1")
        start = () if resume else (f"checkpoint.finetune_from_model={tmp_path}/a/checkpoint_last.pt",)
        with pytest.raises(SltError, match=message):
            run_training(pose_corpus, spm_model, tmp_path / ("a" if resume else "b"), "optimization.max_update=2",
                         override, *start)  # fmt: skip

    def test_frozen_weights_stay_when_ranks_turn_missing_gradients_into_zeros(self, pose_corpus, spm_model):
        task = setup(pose_corpus, spm_model)
        model = task.build_model(model_config(freeze="text_decoder", freeze_updates=1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
        before = model.decoder.layers[0].fc1.weight.clone()
        for update, moved in ((0, False), (1, True)):
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)  # as legacy_ddp leaves them
            task.optimizer_step(optimizer, model, update)
            assert torch.equal(model.decoder.layers[0].fc1.weight, before) is not moved


class TestLanguages:
    class Codec:
        """A vocabulary with language tokens; real ones are tested with the codec."""

        kind = "sentencepiece"
        languages = ("en_XX", "de_DE")
        language_is_prefix = False
        dictionary = SimpleNamespace(pad=lambda: 1, eos=lambda: 2, unk=lambda: 3)

        def language_id(self, language):
            return {"en": 50, "en_XX": 50, "de_DE": 51}[language]

        def encode(self, text):
            return torch.tensor([4, 2])

    def load(self, corpus, **options):
        task = setup(corpus, **options)
        task.codec = self.Codec()
        task.load_dataset("test")
        return task.dataset("test").start_tokens

    def test_of_the_row_or_fixed(self, pose_corpus):
        assert set(self.load(pose_corpus)) == {50}
        assert set(self.load(pose_corpus, target_lang="de_DE")) == {51}

    def test_of_models_that_place_the_language_elsewhere_are_refused(self, pose_corpus, monkeypatch):
        monkeypatch.setattr(self.Codec, "languages", ("en_XX", "af_ZA"))
        with pytest.raises(OptionError, match="mBART-cc25"):
            self.load(pose_corpus)

    def test_missing_is_named(self, pose_corpus, tmp_path):
        rows = read_manifest(pose_corpus / "test.tsv")
        write_manifest(tmp_path / "test.tsv", [replace(rows[0], text_lang=None), *rows[1:]])
        with pytest.raises(DataError, match=r"row test-0 has no text_lang.*task\.target_lang"):
            self.load(tmp_path, media_root=str(pose_corpus))


def test_validation_scores_are_of_the_whole_corpus():
    from sacrebleu.metrics import BLEU, CHRF

    hypotheses = ["the cat sat on the mat", "a dog", "", "hello world again and again"]
    references = ["the cat sat on a mat", "a dog barks", "x", "hello world again and again"]
    outputs = [score_counts(hypotheses[:1], references[:1]), score_counts(hypotheses[1:], references[1:])]
    assert all(type(v) is float for output in outputs for v in output.values())
    with metrics.aggregate() as aggregated:
        log_scores(outputs[:1])
        log_scores(outputs[1:])
    values = aggregated.get_smoothed_values()
    assert values["bleu"] == pytest.approx(BLEU().corpus_score(hypotheses, [references]).score, abs=0.01)
    assert values["chrf"] == pytest.approx(CHRF().corpus_score(hypotheses, [references]).score, abs=0.01)
