"""slt-import-checkpoint export-fp16: half the size, the same model, nothing of the training."""

import pytest
import torch
from fairseq import checkpoint_utils

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.checkpoints.export import export_fp16
from slt_plugin.cli.import_checkpoint import main
from slt_plugin.cli.translation_file import configuration, write_translation_model
from slt_plugin.models.sign_to_text import TinyConfig
from slt_plugin.tasks.sign_to_text import SignToTextTask, SignToTextTaskConfig


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, spm_model):
    """A checkpoint as a training on a GPU leaves it: tied weights twice, the optimizer's state, meters."""
    path = tmp_path_factory.mktemp("export") / "checkpoint_best.pt"
    options = SignToTextTaskConfig(data="", source="pose", pose_parts="body", codec_path=str(spm_model),
                                   eval_bleu=False, train_subset="train", seed=1, max_target_positions=64)  # fmt: skip
    task = SignToTextTask(options)
    cfg = configuration(options, TinyConfig(source_encoder="pose", max_target_positions=64), "sign_to_text_tiny")
    torch.manual_seed(0)
    state = {name: tensor.clone() for name, tensor in task.build_model(cfg.model).state_dict().items()}
    write_translation_model(path, cfg, task, state, {"weights": {"source": "here", "sha256": "0"}})
    content = torch.load(path, weights_only=True)
    content["last_optimizer_state"] = {"state": [torch.zeros_like(tensor) for _ in "12" for tensor in state.values()]}
    content["extra_state"]["metrics"] = {"secret": 1}
    torch.save(content, path)
    return path


def load(path):
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], arg_overrides={"data": ""})
    return model.eval(), task


def test_the_model_is_the_same_but_for_rounding(checkpoint, tmp_path):
    out = tmp_path / "new/small.pt"
    done = export_fp16(checkpoint, out)
    (before, task), (after, task_after) = load(checkpoint), load(out)
    assert {parameter.dtype for parameter in after.parameters()} == {torch.float32}  # a CPU computes in it
    assert task_after.target_dictionary.symbols == task.target_dictionary.symbols
    differences = [
        (a - b).abs().max().item() for a, b in zip(before.parameters(), after.parameters(), strict=True) if a.numel()
    ]
    assert max(differences) == done.largest_change > 0
    assert all(torch.equal(a.half(), b.half()) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    torch.manual_seed(1)
    inputs = {"src_tokens": torch.randn(2, 20, 27), "src_lengths": torch.tensor([20, 12]),
              "prev_output_tokens": torch.tensor([[2, 4, 5], [2, 6, 1]])}  # fmt: skip
    logits, rounded = before(**inputs)[0], after(**inputs)[0]
    assert not torch.equal(logits, rounded)
    torch.testing.assert_close(logits, rounded, rtol=0.02, atol=0.02)


def test_the_file_holds_each_weight_once_and_no_training(checkpoint, tmp_path):
    out = tmp_path / "small.pt"
    done = export_fp16(checkpoint, out)
    content = torch.load(out, weights_only=True)
    assert "last_optimizer_state" not in content and content["extra_state"] == {"train_iterator": {"epoch": 1}}
    assert content["provenance"] == {"weights": {"source": "here", "sha256": "0"}}
    tied = [content["model"][f"decoder.{name}.weight"] for name in ("embed_tokens", "output_projection")]
    assert tied[0].data_ptr() == tied[1].data_ptr()
    parameters = sum(parameter.numel() for parameter in load(checkpoint)[0].parameters())
    assert (done.bytes_before, done.bytes_after) == (checkpoint.stat().st_size, out.stat().st_size)
    assert done.bytes_after < 2 * parameters + 500_000 < done.bytes_before / 5


def test_the_command(checkpoint, tmp_path, capsys):
    out = tmp_path / "small.pt"
    assert main(["export-fp16", str(checkpoint), str(out)]) == 0
    assert f"{out}: fp16, 7.7 MB (checkpoint_best.pt: 4" in capsys.readouterr().out
    assert main(["export-fp16", str(checkpoint), str(out)]) == 1
    assert "exists already: remove it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "message"), [(1e5, "values up to 1e+05, which fp16 cannot hold"), (float("nan"), "NaN or infinite")]
)
def test_weights_that_fp16_cannot_hold(tmp_path, value, message):
    path = tmp_path / "a.pt"
    torch.save({"model": {"w": torch.tensor([1.0, value])}, "cfg": {}}, path)
    with pytest.raises(CheckpointError, match=rf"a\.pt: w has .*{message.split(',')[0].replace('+', '.')}"):
        export_fp16(path, tmp_path / "b.pt")
    assert not (tmp_path / "b.pt").exists()


@pytest.mark.parametrize("content", [{"model": {"w": torch.zeros(2)}}, {"cfg": {}}, {"model": 3, "cfg": {}}])
def test_other_files(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="is no checkpoint of our models"):
        export_fp16(tmp_path / "a.pt", tmp_path / "b.pt")
