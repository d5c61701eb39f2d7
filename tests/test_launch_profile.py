"""Profiles of jobs, and our words of a command line."""

from dataclasses import fields

import pytest
import yaml

from slt_plugin.cli.launching import read_request
from slt_plugin.launch.profile import PROFILES, Profile, load_profile, parse_time, profile_names
from slt_plugin.models.errors import OptionError


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("30", 30), ("1:30", 2), ("24:00:00", 1440), ("0:0:30", 1), ("2-12", 3600), ("1-2:3", 1563), ("1-0:0:1", 1441)],
)
def test_time_as_slurm_reads_it(text, minutes):
    assert parse_time(text) == minutes


@pytest.mark.parametrize("text", ["", "a", "1:2:3:4", "0", "UNLIMITED", "1-", "-5"])
def test_time_that_is_none(text):
    with pytest.raises(OptionError, match=r"launcher\.time="):
        parse_time(text)


def test_every_option_is_explained_in_the_profile_of_slurm():
    listed = yaml.load((PROFILES / "slurm.yaml").read_text(), Loader=yaml.BaseLoader)
    assert list(listed) == [field.name for field in fields(Profile) if field.name != "name"]
    profile, default = load_profile("slurm", None, {}), Profile("slurm")
    changed = {f.name for f in fields(Profile) if getattr(profile, f.name) != getattr(default, f.name)}
    assert changed == {"gpus_per_node", "cpus_per_task"}  # the file says the defaults of all others


@pytest.mark.parametrize("name", profile_names())
def test_the_packages_profiles_load(name):
    profile = load_profile(name, None, {})
    assert profile.is_local == (name == "local") and profile.world_size == 1


def test_times_and_numbers_are_read_as_written(tmp_path):
    """YAML would read 24:00:00 as 86400, and 0123 as 83."""
    (tmp_path / "mine.yaml").write_text(
        "time: 24:00:00\naccount: 0123\nqos: null\nmem:\nnodes: 2\nrequeue: False\nsetup: [module load a, b]\n"
        "extra: {exclusive: true, mail-type: END, nice: 10}\nprice_per_gpu_hour: 2.5\n"
    )
    profile = load_profile("mine", str(tmp_path), {})
    assert (profile.time, profile.minutes, profile.account, profile.qos, profile.mem) == (
        "24:00:00", 1440, "0123", None, None)  # fmt: skip
    assert (profile.nodes, profile.requeue, profile.setup) == (2, False, ("module load a", "b"))
    assert profile.extra == {"exclusive": True, "mail-type": "END", "nice": "10"} and profile.price_per_gpu_hour == 2.5
    assert load_profile(str(tmp_path / "mine.yaml"), None, {}) == profile


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("On", True), ("no", False), ("off", False)])
def test_yamls_other_words_for_true_and_false(tmp_path, text, value):
    (tmp_path / "mine.yaml").write_text(f"requeue: {text}\n")
    assert load_profile("mine", str(tmp_path), {}).requeue is value


def test_words_over_the_profile_over_the_defaults():
    request = read_request(
        ["checkpoint=a", "launcher=slurm", "launcher.time=1-00:00:00", "launcher.account=0123", "launcher.mem=32G",
         "launcher.extra.exclusive=true", "launcher.constraint=a100|h100", "launcher.setup=['module load a']",
         "x=1", "wait=true"]
    )  # fmt: skip
    profile = request.profile
    assert request.words == ["checkpoint=a", "x=1"] and request.wait and not request.dry_run
    assert (profile.name, profile.minutes, profile.account, profile.mem) == ("slurm", 1440, "0123", "32G")
    assert profile.constraint == "a100|h100"
    assert profile.extra == {"exclusive": True} and profile.setup == ("module load a",) and profile.cpus_per_task == 8
    assert request.shown[0] == "launcher=slurm" and not request.runs_here


def test_without_our_words_a_command_runs_here():
    request = read_request(["a=1", "hydra/launcher=submitit_slurm", "task.wait=1", "+b=2"])
    assert request.runs_here and request.words == ["a=1", "hydra/launcher=submitit_slurm", "task.wait=1", "+b=2"]
    assert not read_request(["a=1", "dry_run=true"]).runs_here


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["launcher=slrum"], "did you mean 'slurm'"),
        (["launcher=nothing/there"], "launcher=nothing/there: no such file"),
        (["launcher=slurm", "launcher.dir=/nowhere"], "launcher.dir=/nowhere is no folder"),
        (["launcher=slurm", "launcher.partitio=gpu"], "did you mean 'partition'"),
        (["launcher=slurm", "launcher.gpus=4"], "launcher.gpus is no option"),
        (["launcher=slurm", "launcher.nodes=two"], "launcher.nodes=two: give a whole number"),
        (["launcher=slurm", "launcher.nodes=0"], "at least 1"),
        (["launcher=slurm", "launcher.requeue=maybe"], "give true or false"),
        (["launcher=slurm", "launcher.time=tomorrow"], "launcher.time=tomorrow"),
        (["launcher=slurm", "launcher.time=1", "launcher.signal_delay=60"], "is not shorter than launcher.time=1"),
        (["launcher=slurm", "launcher.gpus_per_node=:4"], "TYPE:NUMBER"),
        (["launcher=slurm", "launcher.local_ranks=2"], "local_ranks is for jobs without GPUs"),
        (["launcher=slurm", "launcher.extra.array=0-3"], "-m, or num_shards"),
        (["launcher=slurm", "launcher.extra.partition=gpu"], "launcher.partition"),
        (["launcher=slurm", "launcher.extra={job_name: x}"], "the launcher sets --job-name itself"),
        (["launcher=slurm", "launcher.extra={gres: 'gpu:a100:4'}"], "only knows --gres, give launcher.gres=true"),
        (["launcher=slurm", "launcher.extra.gpus=4"], "sets --gpus itself, from launcher.gpus_per_node"),
        (["launcher=slurm", "launcher.extra.gpus_per_task=4"], "sets --gpus-per-task itself"),
        (["launcher=slurm", "launcher.extra.gpus-per-node=4"], "sets --gpus-per-node itself"),
        (["launcher=slurm", "launcher.extra={G: 4}"], "sets --gpus itself"),
        (["launcher=slurm", "launcher.setup.x=1"], "launcher.setup.x is no option"),
        (["launcher=slurm", "launcher.partition=a,b"], "'launcher.partition=\"a,b\"'"),
        (["launcher=slurm", "launcher.comment=a=b"], "quote the value twice: 'launcher.comment=\"a=b\"'"),
        (["launcher.partition=gpu"], "launcher.partition has no effect on this machine"),
        (["launcher.dir=."], "launcher.dir has no effect"),
        (["wait=false"], "always waits"),
        (["wait=1.5"], "wait=1.5: give true or false"),
        (["+launcher=slurm"], "write it without the +"),
    ],
)
def test_refused(words, expected):
    with pytest.raises(OptionError) as error:
        read_request(words, trains=True)
    assert expected in str(error.value)


@pytest.mark.parametrize("word", ["launcher.nodes=2", "launcher.gpus_per_node=4", "launcher.chain=2"])
def test_only_training_takes_several_processes(word):
    with pytest.raises(OptionError, match="is for training"):
        read_request(["launcher=slurm", word])
    assert read_request(["launcher=slurm", word], trains=True).profile.name == "slurm"


@pytest.mark.parametrize(("gpus", "count"), [("0", 0), ("4", 4), ("a100:8", 8), ("h100", 1), ("nvidia_a100-80gb:2", 2)])
def test_gpus_with_their_type(gpus, count):
    profile = Profile("x", gpus_per_node=gpus, nodes=3)
    assert profile.gpus == count and profile.world_size == 3 * max(count, 1)


def test_a_chain_does_not_requeue():
    assert Profile("x").requeues and not Profile("x", chain=1).requeues and not Profile("x", requeue=False).requeues
