"""Features of one extraction only: between manifests, in checkpoints, and across plain files and stores."""

import logging

import pytest
import torch
from test_task import setup

from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row, write_manifest
from slt_plugin.data.store import Fingerprint, StoreWriter
from slt_plugin.tasks.feature_origin import FeatureOrigin

CHANNELS = 4


def write_features(folder, split: str, **values) -> None:
    """``<split>.tsv`` over the store ``<split>.store``, whose fingerprint is ``values``."""
    with StoreWriter(folder / f"{split}.store", Fingerprint({"checkpoint": "x", "stride": 64, **values})) as writer:
        for i in range(3):
            writer.add(f"{split}-{i}", 0, torch.full((6 + i, CHANNELS), float(i)))
    write_manifest(
        folder / f"{split}.tsv", [Row(f"{split}-{i}", f"{split}.store/{split}-{i}", "ab cd") for i in range(3)]
    )


def features_task(folder, spm=None):
    return setup(folder, spm, source="features", feature_channels=CHANNELS)


def test_features_of_a_store_are_read_and_their_origin_travels_in_the_checkpoint(tmp_path, spm_model):
    write_features(tmp_path, "valid")
    task = features_task(tmp_path, spm_model)
    task.load_dataset("valid")
    assert task.dataset("valid").source_lengths.tolist() == [6, 7, 8]
    assert torch.equal(task.dataset("valid")[1]["source"], torch.ones(7, CHANNELS))
    state = task.state_dict()
    decoding = features_task(tmp_path)
    decoding.load_state_dict(state)
    decoding.load_dataset("valid", task_cfg=decoding.cfg)
    assert decoding.state_dict()["features"] == state["features"] == {"fingerprint": {"checkpoint": "x", "stride": 64}}


def test_another_extraction_is_refused(tmp_path, spm_model):
    write_features(tmp_path, "valid")
    write_features(tmp_path, "test", stride=32)
    task = features_task(tmp_path, spm_model)
    task.load_dataset("valid")
    with pytest.raises(DataError, match=r"test\.tsv: features made otherwise.*stride: 64 in .*valid\.tsv, 32 in"):
        task.load_dataset("test")
    decoding = features_task(tmp_path)
    decoding.load_state_dict(task.state_dict())
    with pytest.raises(DataError, match="stride: 64 in the checkpoint, 32 in"):
        decoding.load_dataset("test", task_cfg=decoding.cfg)


def test_plain_files_have_no_known_origin_and_that_is_said(caplog):
    origin = FeatureOrigin()
    assert origin.state_dict() is None
    origin.load_state_dict(None)  # of a model of poses
    origin.compare("train.tsv", None)
    origin.compare("valid.tsv", None)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        origin.compare("test.tsv", Fingerprint({"checkpoint": "x"}))
    assert "train.tsv and test.tsv" in caplog.text
    assert origin.state_dict() == {"fingerprint": None}
