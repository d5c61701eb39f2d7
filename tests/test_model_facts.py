"""Facts of models: sizes, operations counted by hand, and the training that a checkpoint remembers."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from forked_training import finish, start, train_words
from torch import nn

from slt_plugin.checkpoints.keymaps import CheckpointError
from slt_plugin.data.manifest import Row
from slt_plugin.report.model_facts import _tensor_bytes, forward_flops, model_facts, training_facts


class Toy(nn.Module):
    """A projection, attention of the output's tokens to the input's steps, and tied embeddings."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(6, 8, bias=False)
        self.tokens = nn.Embedding(10, 8)
        self.out = nn.Linear(8, 10, bias=False)
        self.out.weight = self.tokens.weight
        self.project.weight.requires_grad_(False)

    def forward(self, src_tokens, src_lengths, prev_output_tokens):
        assert not self.training and not torch.is_grad_enabled()
        x = self.project(src_tokens)
        query = self.tokens(prev_output_tokens)
        return self.out(nn.functional.scaled_dot_product_attention(query[None], x[None], x[None])[0])


STEPS, TOKENS = 7, 3
PROJECTION, ATTENTION, OUTPUT = 2 * STEPS * 6 * 8, 2 * 2 * TOKENS * STEPS * 8, 2 * TOKENS * 8 * 10


def toy_sample() -> dict:
    net_input = {
        "src_tokens": torch.zeros(1, STEPS, 6),
        "src_lengths": torch.tensor([STEPS]),
        "prev_output_tokens": torch.zeros(1, TOKENS, dtype=torch.int64),
    }
    return {"row_ids": ["r1"], "start_tokens": torch.tensor([2]), "net_input": net_input}


def state(*, updates=40, seconds=1800.0, processes=4, cpu=False, meters=("loss", "gb_free"), seed=3, folder="run"):
    """What a training's checkpoint says of it."""
    return {
        "cfg": {
            "common": {"cpu": cpu, "seed": seed},
            "distributed_training": {"distributed_world_size": processes},
            "checkpoint": {"save_dir": folder},
        },
        "optimizer_history": [{"num_updates": 7}, {"num_updates": updates}],
        "extra_state": {
            "previous_training_time": seconds,
            "metrics": {"train": [(10, name, "AverageMeter", {}) for name in meters]},
        },
        "model": {"a": torch.zeros(1000)},
    }


def task_of(*rows: Row) -> SimpleNamespace:
    return SimpleNamespace(datasets={"valid": SimpleNamespace(rows=[]), "test": SimpleNamespace(rows=list(rows))})


def save(path, content):
    torch.save(content, path)
    return path


def test_operations_are_those_counted_by_hand():
    model = Toy().train()
    assert forward_flops([model], toy_sample(), []) == PROJECTION + ATTENTION + OUTPUT
    assert model.training
    assert forward_flops([model, Toy()], toy_sample(), []) == 2 * (PROJECTION + ATTENTION + OUTPUT)


def test_without_a_text_one_token_is_counted():
    sample, notes = toy_sample(), []
    del sample["net_input"]["prev_output_tokens"]
    assert forward_flops([Toy()], sample, notes) == PROJECTION + (ATTENTION + OUTPUT) / TOKENS
    assert "one output token" in notes[0]


def test_facts_of_one_model(tmp_path):
    path = save(tmp_path / "a.pt", state())
    row = Row("r1", "x.npy", "text", start=2.0, end=4.0)
    facts = model_facts([Toy()], task_of(Row("r0", "y.npy"), row), [path], toy_sample())
    assert facts["parameters"] == 6 * 8 + 8 * 10 and facts["trainable"] == 8 * 10
    assert facts["checkpoint_mb"] == round(path.stat().st_size / 1e6, 3) and facts["weights_mb"] == 0.004
    assert facts["gflops_per_second_of_signing"] == round((PROJECTION + ATTENTION + OUTPUT) / 2.0 / 1e9, 4)
    expected = {"updates": 40, "gpu_hours": 2.0, "cpu_hours": None, "processes": 4, "seed": 3}
    assert facts["training"] == expected
    given = model_facts([Toy()], None, [path], toy_sample(), seconds=1e-6)
    assert given["gflops_per_second_of_signing"] == pytest.approx((PROJECTION + ATTENTION + OUTPUT) / 1e3, rel=1e-6)


def test_operations_are_said_to_be_of_one_row_without_a_beam(tmp_path):
    path = save(tmp_path / "a.pt", state())
    facts = model_facts([Toy()], None, [path], toy_sample(), seconds=1.0)
    assert "GFLOPs are of one row, its reference written once, without a beam" in facts["notes"]


def test_tensors_of_one_memory_count_once_and_others_all():
    floats = torch.arange(1000.0)
    parts = {"first": floats[:4], "fifth": floats[4:16], "tied": floats[:4].view(2, 2)}
    assert _tensor_bytes(parts) == 4 * 16
    # two storages: the second's address in bytes is the first's plus the offset of its slice in elements
    buffer = np.zeros(64, dtype=np.uint8)
    whole, shifted = (torch.from_numpy(buffer[at : at + 32].view(np.float32)) for at in (0, 4))
    assert shifted.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr() + 4
    assert _tensor_bytes({"a": whole[4:], "b": shifted[:2]}) == 16 + 8


def test_unknown_length_and_unknown_training_are_said(tmp_path):
    path = save(tmp_path / "a.pt", {"model": {}, "cfg": None})
    facts = model_facts([Toy()], task_of(Row("r1", "x.npy", "text")), [path], toy_sample())
    assert (facts["gflops_per_second_of_signing"], facts["training"], facts["trainable"]) == (None, None, None)
    assert any("how long the row is" in note for note in facts["notes"])
    assert any("imported weights" in note for note in facts["notes"])
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"broken\.pt"):
        model_facts([Toy()], None, [tmp_path / "broken.pt"], toy_sample(), seconds=1.0)


def test_ensembles_are_added_up_and_averages_are_not(tmp_path):
    paths = [save(tmp_path / f"{i}.pt", state(folder=f"run{i}", seed=i)) for i in range(2)]
    size = paths[0].stat().st_size / 1e6
    both = model_facts([Toy(), Toy()], None, paths, toy_sample(), seconds=1.0)
    assert both["parameters"] == 2 * (6 * 8 + 8 * 10) and both["checkpoint_mb"] == pytest.approx(2 * size, abs=1e-3)
    assert both["training"]["gpu_hours"] == 4.0 and both["training"]["seed"] is None
    assert any("2 trainings" in note for note in both["notes"])
    average = model_facts([Toy()], None, paths, toy_sample(), seconds=1.0)
    assert average["checkpoint_mb"] == pytest.approx(size, abs=1e-3)
    assert any("averaged" in note for note in average["notes"])


def test_checkpoints_of_one_training_count_once():
    facts = training_facts([state(updates=80, seconds=3600.0), state(updates=40, seconds=1800.0)], [])
    assert facts == {"updates": 80, "gpu_hours": 4.0, "cpu_hours": None, "processes": 4, "seed": 3}


@pytest.mark.parametrize("options", [{"cpu": True}, {"meters": ("loss",)}])
def test_hours_on_a_cpu_are_no_gpu_hours(options):
    notes = []
    facts = training_facts([state(processes=1, **options)], notes)
    assert facts["gpu_hours"] is None and facts["cpu_hours"] == 0.5
    assert any("CPU hours" in note for note in notes)


def test_a_real_training_agrees_with_its_log(pose_corpus, spm_model, tmp_path):
    words = train_words(pose_corpus, spm_model, tmp_path / "run", "model.freeze=text_decoder.layers.0", "common.seed=5")
    assert finish(start([*words, "optimization.max_update=4"], tmp_path / "log")) == [0], (tmp_path / "log").read_text()
    (total, trained), *_ = re.findall(
        r"num\. shared model params: ([\d,]+) \(num\. trained: ([\d,]+)\)", (tmp_path / "log").read_text()
    )
    path = tmp_path / "run" / "checkpoint_last.pt"
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)])
    task.load_dataset("test", task_cfg=task.cfg)
    dataset = task.dataset("test")
    facts = model_facts(models, task, [path], dataset.collater([dataset[3]]))
    assert (facts["parameters"], facts["trainable"]) == tuple(int(n.replace(",", "")) for n in (total, trained))
    assert facts["trainable"] < facts["parameters"]
    training = facts["training"]
    assert (training["updates"], training["seed"], training["gpu_hours"]) == (4, 5, None) and training["cpu_hours"] > 0
    assert facts["gflops_per_second_of_signing"] > 0 and 0 < facts["weights_mb"] < facts["checkpoint_mb"]
