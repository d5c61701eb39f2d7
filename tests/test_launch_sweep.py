"""A sweep's elements, its list, and the callback that makes failed members visible."""

import json
import pickle

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf

from slt_plugin.cli.overrides import parse
from slt_plugin.cli.training import hydra_arguments
from slt_plugin.launch import callbacks
from slt_plugin.launch.errors import LaunchError
from slt_plugin.launch.sweep import check_sweep_folder, element_words, expand, write_sweep
from slt_plugin.models.errors import OptionError


def elements(*words):
    return expand(parse(words, sweep=True))


def test_elements_in_hydras_order():
    found = elements("optimization.lr=[1e-3],[5e-4]", "task.data=x", "common.seed=1,2,3")
    assert [element.overrides for element in found] == [
        (f"optimization.lr=[{lr}]", f"common.seed={seed}") for lr in ("0.001", "0.0005") for seed in (1, 2, 3)
    ]
    assert [element.folder for element in found][::5] == ["0_lr_0.001_seed_1", "5_lr_0.0005_seed_3"]
    assert [element.index for element in found] == list(range(6))


@pytest.mark.parametrize(
    ("words", "folders"),
    [
        (["+model.encoder_layers=choice(1,2)"], ["0_encoder_layers_1", "1_encoder_layers_2"]),
        (["common.seed=range(3,5)"], ["0_seed_3", "1_seed_4"]),
        (["task.codec_path=/a b/x.model,'y=z'"], ["0_codec_path_a-b-x.model", "1_codec_path_y-z"]),
        (["a.size=1,2", "b.size=3"], ["0_size_1", "1_size_2"]),
        (["a.size=1,2", "b.size=3,4"], ["0_a.size_1_b.size_3", "1_a.size_1_b.size_4", "2_a.size_2_b.size_3", None]),
        (["x=null,''"], ["0_x_null", "1_x_empty"]),
        ([f"x=1,{'y' * 300}"], ["0_x_1", "1_x_" + "y" * 96]),
    ],
)
def test_names_of_folders(words, folders):
    found = [element.folder for element in elements(*words)]
    assert [name if expected else None for name, expected in zip(found, folders, strict=True)] == folders


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["common.seed=1"], "-m without several values"),
        (["common.seed=interval(1,5)"], "give the values"),
        (["checkpoint.save_dir=a,b"], "a folder of its own"),
    ],
)
def test_refused(words, expected):
    with pytest.raises(OptionError, match=expected):
        elements(*words)


def test_words_of_an_element_are_read_as_meant():
    element = elements("common.seed=1,2")[1]
    words = element_words(["--config-name", "x", "~model.ctc", "task.data='a b'"], element, "runs/it's here=x")
    assert words[:4] == ["--config-name", "x", "~model.ctc", "task.data='a b'"] and words[4] == "common.seed=2"
    assert parse(words[-1:])[0].value() == "runs/it's here=x/1_seed_2"
    assert words[-1].startswith("checkpoint.save_dir=")


def test_list_of_a_sweep(tmp_path):
    found = elements("common.seed=1,2")
    words = ["--config-name", "x", "task.data=d"]
    check_sweep_folder(tmp_path, found, words)
    write_sweep(tmp_path, "slt-finetune", found, words, "12")
    assert json.loads((tmp_path / "sweep.json").read_text()) == {
        "command": "slt-finetune",
        "job": "12",
        "words": words,
        "elements": [
            {"index": 0, "overrides": ["common.seed=1"], "folder": "0_seed_1"},
            {"index": 1, "overrides": ["common.seed=2"], "folder": "1_seed_2"},
        ],
    }
    check_sweep_folder(tmp_path, found, [words[2], *words[:2]])  # the same again goes on
    with pytest.raises(LaunchError, match="of another sweep, with 2 elements"):
        check_sweep_folder(tmp_path, elements("common.seed=1,3"), words)
    with pytest.raises(
        LaunchError, match=r"had task\.data=d and did not have task\.data=e, common\.fp16=true, and its"
    ):
        check_sweep_folder(tmp_path, found, [*words[:2], "task.data=e", "common.fp16=true"])
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(LaunchError, match="cannot be read"):
        check_sweep_folder(tmp_path, found, words)


def test_multirun_may_stand_between_overrides(tmp_path):
    words = hydra_arguments(["--config-name", "x", "a=1", "-m", "b=1,2", "common.user_dir=x"], tmp_path)
    assert words == ["--config-dir", str(tmp_path), "-m", "--config-name", "x", "a=1", "b=1,2", "common.user_dir=x"]


def job_end(status, mode=RunMode.MULTIRUN, value=None):
    config = {"hydra": {"mode": mode, "job": {"num": 2}, "overrides": {"task": ["common.seed=3"]}}}
    ended = JobReturn(status=status)
    ended.return_value = value
    callbacks.FailedMember().on_job_end(config=OmegaConf.create(config), job_return=ended)


@pytest.fixture(autouse=True)
def _no_members():
    callbacks.failed_members()
    yield
    callbacks.failed_members()


def test_a_failed_member_is_noted_here(monkeypatch):
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    job_end(JobStatus.FAILED, value=ValueError("no"))
    job_end(JobStatus.FAILED, mode=RunMode.RUN, value=ValueError("no"))
    job_end(JobStatus.COMPLETED, value=0.5)
    assert callbacks.failed_members() == ["sweep member 2 (common.seed=3)"] and callbacks.failed_members() == []


def test_a_failed_member_ends_its_job(monkeypatch, tmp_path):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_PROCID", "0")
    with pytest.raises(SystemExit) as exit_:
        job_end(JobStatus.FAILED, value=ValueError("no vocabulary\nsecond line"))
    # Python prints a text and exits with 1
    message = "sweep member 2 (common.seed=3) failed: ValueError: no vocabulary"
    assert exit_.value.code == message
    # whoever waits for it through submitit would wait for ever without a result
    result = pickle.loads((tmp_path / "12_0_result.pkl").read_bytes())  # noqa: S301
    assert result == ("error", message)
    job_end(JobStatus.COMPLETED, value=0.5)
    job_end(JobStatus.FAILED, mode=RunMode.RUN, value=ValueError("no"))
