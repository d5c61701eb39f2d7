"""slt-finetune: what is refused before a training, and how errors read."""

import logging
import sys

import pytest
import torch
from omegaconf.errors import ConfigKeyError

from slt_plugin.cli import finetune
from slt_plugin.cli.errors import EXPECTED_ERRORS, one_line
from slt_plugin.cli.overrides import parse
from slt_plugin.common.errors import SltError
from slt_plugin.data.errors import DataError
from slt_plugin.data.pose import PoseError


@pytest.fixture
def failing(capfd, monkeypatch, tmp_path):
    """Runs slt-finetune in this process; returns the one line of its error. Hydra changes much that is put back."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    loggers = {name: logging.getLogger(name).disabled for name in list(root.manager.loggerDict)}

    def run(*words, config="fingerspelling_pose"):
        code = finetune.main(["--config-name", config, "task.data=nowhere", "checkpoint.save_dir=run", *words])
        error = capfd.readouterr().err
        assert code == 1 and "Traceback" not in error, error
        line = error.strip().splitlines()[-1]
        assert line.startswith("slt-finetune: ") and error.count("slt-finetune: ") == 1
        return line

    yield run
    root.handlers[:], root.level = handlers, level
    for name, disabled in loggers.items():
        logging.getLogger(name).disabled = disabled


def test_unknown_experiment_lists_the_others(failing):
    line = failing(config="fingerspeling_pose")
    assert "did you mean 'fingerspelling_pose'?" in line and "how2sign_i3d" in line
    assert " _base" not in line and " _hf" not in line


def test_own_config_folder(failing, tmp_path):
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    assert "experiments: mine" in failing("--config-dir", str(tmp_path), config="nothing")
    assert "--config-dir /nowhere does not exist" in failing("--config-dir", "/nowhere")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("model._name=sign_to_text_tyn", ["did you mean 'sign_to_text_tiny'", "sign_to_text_mbart_large"]),
        ("model._name=wav2vec3", ["did you mean 'wav2vec"]),
        ("task._name=sign_to_txt", ["did you mean 'sign_to_text'", "translation"]),
        ("criterion._name=cross_entropi", ["did you mean 'cross_entropy'", "ctc"]),
        ("optimizer._name=adamm", ["did you mean 'adam'", "sgd"]),
        ("lr_scheduler._name=foo", ["is not registered", "inverse_sqrt"]),
        ("optimization.lr=0.002", ["write optimization.lr=[0.002]"]),
        ("optimization.update_freq=2", ["write optimization.update_freq=[2]"]),
        ("task.pose_parts=body,right_hand", ["'task.pose_parts=\"body,right_hand\"'"]),
    ],
)
def test_refused_before_training(failing, word, expected):
    line = failing(word)
    for text in expected:
        assert text in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["task.pose_parts=[body,right_hand]"], "'task.pose_parts=\"body,right_hand\"'"),
        (["criterion._name=label_smoothed_cross_entropy"], "Remove it with ~criterion.ctc_weight"),
        (["+model.encoder_layer=1"], "did you mean 'encoder_layers'?"),
        (["dataset.max_tokenss=3"], "dataset.max_tokenss is no option; did you mean 'dataset.max_tokens'?"),
        (["model.encoder_layers=3"], "use +model.encoder_layers=3"),
        (["criterion=cross_entropy"], "Write criterion._name=..."),
        (["optimization.max_update=abc"], "'abc' of type 'str' could not be converted to Integer"),
        (["task.step_frames=x"], "task.step_frames: Value 'x'"),
        (["task.codec_path=nothing.model"], "nothing.model"),
        (["common.seed=[1"], "[1"),
    ],
)
def test_errors_of_the_configuration_say_what_to_write(failing, words, expected):
    assert expected in failing(*words)


@pytest.mark.parametrize("folder", ["file/run", "/proc/nothing"])
def test_save_dir_that_cannot_be_written(failing, tmp_path, folder):
    (tmp_path / "file").write_text("")
    assert f"checkpoint.save_dir={folder} cannot be written" in failing(f"checkpoint.save_dir={folder}")


def test_the_advised_criterion_switch_composes(failing):
    """With ~criterion.ctc_weight the configuration is complete: only the missing vocabulary is left to complain of."""
    line = failing("criterion._name=label_smoothed_cross_entropy", "~criterion.ctc_weight")
    assert "ctc_weight" not in line and "task.codec_path" in line


def test_unknown_exceptions_keep_their_traceback(failing, monkeypatch):
    import fairseq_cli.hydra_train

    def broken():
        raise KeyError("something else")

    monkeypatch.setattr(fairseq_cli.hydra_train, "cli_main", broken)
    with pytest.raises(KeyError, match="something else"):
        failing()


def test_what_fairseq_hides_of_a_checkpoint_is_said(failing, monkeypatch):
    """It puts an exception of its own in the place of whatever a model says of the checkpoint."""
    import fairseq_cli.hydra_train

    def broken():
        try:
            raise SltError("fc1.weight is (16, 8) in the checkpoint, (24, 8) here")
        except SltError:
            raise Exception("Cannot load model parameters from checkpoint a.pt; please")  # noqa: B904  as fairseq does

    monkeypatch.setattr(fairseq_cli.hydra_train, "cli_main", broken)
    assert failing() == (
        "slt-finetune: Cannot load model parameters from checkpoint a.pt; please: fc1.weight is (16, 8) in the "
        "checkpoint, (24, 8) here"
    )


def test_help_names_the_vocabulary_that_the_quickstart_makes(capsys):
    assert finetune.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "fingerspelling/char.model" in out and "spm_char" not in out


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            raise DataError("inner")
        except DataError as error:
            raise PoseError("row a: poses/a.npy:\n  is empty. Remove the row") from error


def test_error_of_a_loader_worker_is_its_message_alone():
    with pytest.raises(PoseError) as caught:
        next(iter(torch.utils.data.DataLoader(Broken(), num_workers=1)))
    assert "Original Traceback" in str(caught.value)
    assert one_line(caught.value) == "row a: poses/a.npy: is empty. Remove the row"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (SltError("x: 2 problems:\n  line 2: a\n  line 3: b"), "x: 2 problems: line 2: a; line 3: b"),
        (ConfigKeyError("Key 'a' not in 'C'\n    full_key: a\n    object_type=C"), "Key 'a' not in 'C'"),
    ],
)
def test_one_line(error, expected):
    assert isinstance(error, EXPECTED_ERRORS)
    assert one_line(error) == expected


def test_sweeps_are_for_multirun():
    assert parse(["common.seed=1,2"], sweep=True)[0].is_sweep_override()
    with pytest.raises(SltError, match=r"common\.seed=\[1,2\]"):
        parse(["common.seed=1,2"])
