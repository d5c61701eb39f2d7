"""What a dry run says of updates, epochs and cost; what is not known is called so."""

import pytest

from slt_plugin.data.manifest import Row, write_manifest
from slt_plugin.launch.estimate import Amount, cost_lines, training_estimate
from slt_plugin.launch.profile import Profile

PRETRAIN = {"_name": "sign_pretraining", "repeat_aug": 2, "clips_per_update": 256, "train_ratios": ""}


@pytest.fixture
def config(tmp_path):
    for name, size in (("train", 1000), ("more", 100)):
        write_manifest(tmp_path / f"{name}.tsv", [Row(f"{name}-{i}", "a.mp4") for i in range(size)])

    def make(task=None, dataset=None, optimization=None, checkpoint=None) -> dict:
        return {
            "task": {"_name": "sign_to_text", "data": str(tmp_path)} | (task or {}),
            "dataset": {"train_subset": "train", "batch_size": None, "max_tokens": None} | (dataset or {}),
            "optimization": {"update_freq": [1], "max_update": 0, "max_epoch": 0} | (optimization or {}),
            "checkpoint": {"patience": -1} | (checkpoint or {}),
        }

    return make


def estimate(cfg, ranks=4, elements=1, **options) -> dict[str, str]:
    profile = Profile("slurm", gpus_per_node="4", time="10:00:00", **options)
    lines = training_estimate(cfg, profile, ranks=ranks, elements=elements)
    return dict(line.split(": ", 1) if ": " in line else (line, "") for line in lines)


def test_pretraining_with_a_known_length(config):
    cfg = config(PRETRAIN, {"batch_size": 8}, {"max_epoch": 40, "update_freq": [4]})
    found = estimate(cfg, clips_per_second=100, price_per_gpu_hour=2)
    assert found["clips an update"] == "256 (task.clips_per_update)"
    assert found["rows an epoch"].startswith("1,000 (train of ")
    assert found["updates"] == "320 (optimization.max_epoch 40)"  # 2000 clips an epoch: 8 updates
    assert found["clips in all"] == "80,000"
    assert found["GPU-hours"] == "0.22 (clips / 100 a second), 0.44 at 2 an hour"
    assert "the time limit allows 40 GPU-hours (4 x 10 h), each time it is queued again, 80.00 at 2 an hour" in found


def test_pretraining_without_clips_per_update_and_with_ratios(config):
    task = PRETRAIN | {"clips_per_update": 0, "train_ratios": "1,2", "min_duration": 1.0}
    found = estimate(config(task, {"batch_size": 8, "train_subset": "train,more"}, {"max_update": 300}))
    assert found["clips an update"] == "64 (dataset.batch_size 8 x update_freq 1 x 4 ranks x task.repeat_aug 2)"
    assert found["rows an epoch"].startswith("at most 1,200 (train,more of ")
    assert "before task.min_duration" in found["rows an epoch"]
    assert found["updates"] == "300 (optimization.max_update)" and found["clips in all"] == "19,200"
    assert found["epochs"].startswith("8 (")
    assert found["GPU-hours"].startswith("unknown (launcher.clips_per_second")


def test_translation_by_sentences_ends_with_what_comes_first(config):
    cfg = config(dataset={"batch_size": 16}, optimization={"max_update": 50, "max_epoch": 10, "update_freq": [2]})
    found = estimate(cfg, clips_per_second=10)
    assert found["sentences an update"] == "128 (dataset.batch_size 16 x update_freq 2 x 4 ranks)"
    assert found["updates"] == "50 (optimization.max_update)"  # 10 epochs would be 80
    assert found["sentences in all"] == "6,400" and found["GPU-hours"].startswith("0.18 (")
    longer = estimate(config(dataset={"batch_size": 16}, optimization={"max_update": 500, "max_epoch": 10}))
    assert longer["updates"] == "160 (optimization.max_epoch 10)"


def test_batches_by_length_are_not_guessed(config):
    cfg = config(dataset={"max_tokens": 6000}, optimization={"max_update": 1200, "update_freq": [4]})
    found = estimate(cfg, clips_per_second=10)
    assert found["sentences an update"].startswith("unknown (dataset.max_tokens")
    assert found["source steps an update"] == (
        "at most 96,000 (dataset.max_tokens 6,000 x update_freq 4 x 4 ranks, with padding)"
    )
    assert found["updates"] == "1,200 (optimization.max_update)" and found["epochs"].startswith("unknown")
    assert found["GPU-hours"] == "unknown (sentences of the training are not known)"
    # with a number of epochs the sentences are known all the same
    known = estimate(config(dataset={"max_tokens": 6000}, optimization={"max_epoch": 36}), clips_per_second=10)
    assert known["updates"].startswith("unknown") and known["epochs"].startswith("36 (")
    assert known["sentences in all"] == "36,000" and known["GPU-hours"].startswith("1 (")


def test_both_limits_of_a_batch(config):
    cfg = config(dataset={"max_tokens": 6000, "batch_size": 8}, optimization={"max_epoch": 2})
    found = estimate(cfg)
    assert found["sentences an update"].startswith("at most 32 (") and found["updates"].startswith("unknown")


def test_an_end_that_may_come_earlier_or_never(config):
    found = estimate(config(dataset={"batch_size": 8}, checkpoint={"patience": 5}))
    assert found["updates"].startswith("unknown (neither")
    assert "it ends earlier after 5 validations without a better one (checkpoint.patience)" in found


def test_a_manifest_that_is_elsewhere(config):
    cfg = config({"data": "${oc.env:SLURM_TMPDIR}"}, {"batch_size": 8}, {"max_epoch": 3})
    found = estimate(cfg)
    assert found["rows an epoch"].startswith("unknown (") and found["updates"].startswith("unknown (")


def test_update_freq_that_changes(config):
    found = estimate(config(dataset={"batch_size": 8}, optimization={"max_epoch": 3, "update_freq": [1, 4]}))
    assert "of the first epoch" in found["sentences an update"] and found["updates"].startswith("unknown")


def test_elements_of_a_sweep_and_jobs_that_share():
    profile = Profile("slurm", time="2:00:00", requeue=False, clips_per_second=1, price_per_gpu_hour=3)
    lines = cost_lines(Amount(3600, ""), "clips", profile, elements=4)
    assert lines == [
        "clips in all for each of 4: 3,600",
        "process-hours: 4 (clips / 1 a second x 4 elements), 12.00 at 3 an hour",
        "the time limit allows 8 process-hours (4 jobs x 1 x 2 h), 24.00 at 3 an hour",
    ]
    shared = cost_lines(Amount(3600, ""), "clips", profile, jobs=4)
    assert shared[1].startswith("process-hours: 1 (") and "4 jobs x 1 x 2 h" in shared[2]
    here = cost_lines(Amount(None, "why"), "clips", Profile("local"))
    assert here == ["clips in all: unknown (why)", "GPU-hours: unknown (why)"]
