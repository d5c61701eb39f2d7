"""Two ranks through torchrun on the CPU: a rank that has no batch of its own at some step gets a stand-in."""

import socket
import sys
from pathlib import Path

import pytest
from conftest import run_command, write_pose_corpus, write_video_corpus
from test_video_task import OVERRIDES

TRAIN = Path(sys.executable).parent / "fairseq-hydra-train"
DISTRIBUTED = (
    "distributed_training.distributed_init_method=env://", "distributed_training.distributed_world_size=2",
    "distributed_training.distributed_backend=gloo", "distributed_training.distributed_rank=${oc.env:RANK}",
    "distributed_training.distributed_no_spawn=true",
)  # fmt: skip


@pytest.mark.parametrize(
    ("write", "sizes", "options"),
    [
        # 41 rows are 3 batches: at the second update one rank has none
        (write_pose_corpus, {"train": 41, "valid": 5}, ("dataset.batch_size=14",)),
        # 1 row to validate: one rank has none
        (write_video_corpus, {"train": 12, "valid": 1}, (*OVERRIDES, "dataset.batch_size=3")),
    ],
    ids=["poses, training", "video, validation"],
)
def test_a_rank_without_a_batch(write, sizes, options, spm_model, tmp_path):
    corpus = write(tmp_path / "corpus", sizes)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    result = run_command(
        "torchrun", "--nproc-per-node", "2", "--master-port", port, TRAIN,
        "--config-dir", "slt_plugin/config/finetune", "--config-name", "fingerspelling_pose",
        "common.user_dir=slt_plugin", f"task.data={corpus}", f"task.codec_path={spm_model}",
        f"checkpoint.save_dir={tmp_path / 'run'}", *DISTRIBUTED, "dataset.num_workers=0", "dataset.validate_interval=1",
        "optimization.max_epoch=2", "lr_scheduler.warmup_updates=1", "task.eval_max_len=5",
        "+model.encoder_layers=1", "+model.decoder_layers=1", *options,
    )  # fmt: skip
    log = result.stdout + result.stderr
    assert "done training" in log and "valid on 'valid' subset" in log
    assert (tmp_path / "run" / "checkpoint_last.pt").is_file()
