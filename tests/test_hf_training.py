"""Training, resuming and decoding sign_to_text_hf with every family, by fairseq's own loop."""

import shutil
from argparse import Namespace

import pytest
import torch
from fairseq import checkpoint_utils
from forked_training import load, updates
from hf_helpers import FAMILIES, UNTIED, tiny_model
from hf_training import hf_model, hf_task, train_hf, write_corpus

TWENTY = ("optimization.max_update=20",)


def trained(tmp_path, family, *overrides):
    corpus = write_corpus(tmp_path / "corpus", family)
    folder = tiny_model(family, tmp_path / "model")
    train_hf(corpus, folder, tmp_path / "run", *overrides)
    return corpus, folder, load(tmp_path / "run" / "checkpoint_last.pt")


@pytest.mark.parametrize("family", FAMILIES)
def test_train_save_resume_generate(family, tmp_path):
    corpus, folder, saved = trained(tmp_path, family, *TWENTY)
    assert updates(saved) == 20
    start = hf_model(hf_task(corpus, folder), folder).state_dict()
    changed = [name for name, value in saved["model"].items() if not torch.equal(value, start[name])]
    assert any(name.startswith("hf.") for name in changed) and "encoder.adapter.projection.weight" in changed
    assert saved["model"].keys() == start.keys()
    # each weight once, under Hugging Face's name
    pointers = [value.data_ptr() for value in saved["model"].values()]
    assert len(set(pointers)) == len(pointers)
    assert ("hf.lm_head.weight" in saved["model"]) == (family in UNTIED)

    train_hf(corpus, folder, tmp_path / "run", "optimization.max_update=22")
    assert updates(load(tmp_path / "run" / "checkpoint_last.pt")) == 22

    # decoded without the pretrained model's directory, and the same
    whole = hf_model(hf_task(corpus, folder), folder)
    whole.load_state_dict(load(tmp_path / "run" / "checkpoint_last.pt")["model"])
    shutil.rmtree(folder)
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(tmp_path / "run" / "checkpoint_last.pt")], arg_overrides={"data": str(corpus)}
    )
    task.load_dataset("test", task_cfg=task.cfg)
    dataset = task.dataset("test")
    rows = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=1000)[0]
    batch = dataset.collater([dataset[i] for i in rows])
    with torch.no_grad():
        logits = [m.eval()(**batch["net_input"])[0] for m in (model, whole)]
    assert torch.equal(*logits)
    found = task.inference_step(
        task.build_generator([model.eval()], Namespace(beam=2, max_len_a=0, max_len_b=8)), [model], batch
    )
    assert len(found) == len(rows)
    assert all(isinstance(task.codec.decode(best[0]["tokens"]), str) for best in found)
