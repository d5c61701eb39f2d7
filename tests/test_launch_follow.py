"""Following jobs, with a SLURM that is made up."""

import pytest

from slt_plugin.cli import launching
from slt_plugin.common import slurm
from slt_plugin.launch import follow as following
from slt_plugin.launch.errors import LaunchError
from slt_plugin.launch.follow import Follower, exit_status, follow, last_line
from slt_plugin.launch.submit import Submission


class Slurm:
    """Answers with the next state of a job at each look; the last one stays."""

    def __init__(self, **states):
        self.states = {job.lstrip("j"): list(of_job) for job, of_job in states.items()}
        self.asked: list[str] = []

    def show_all(self, job: str) -> dict[str, dict[str, str]]:
        """None among the states: forgotten."""
        self.asked.append(job)
        found = {}
        for name in [name for name in self.states if name == job or name.startswith(f"{job}_")]:
            of_job = self.states[name]
            state = of_job.pop(0) if len(of_job) > 1 else of_job[0]
            if isinstance(state, BaseException):
                raise state
            if state is not None:
                state, _, code = state.partition(" ")
                found[name] = {"JobState": state, "ExitCode": code or "0:0"}
        return found


def run(cluster: Slurm, *submissions: Submission) -> tuple[Follower, list[str]]:
    follower, lines, now = Follower(submissions, cluster.show_all), [], [0.0]

    def sleep(seconds):
        assert seconds > 0
        now[0] += seconds

    follow(follower, lines.append, sleep=sleep, clock=lambda: now[0])
    return follower, lines


@pytest.fixture
def single(tmp_path):
    return Submission("7", 1, tmp_path, "n")


@pytest.fixture
def array(tmp_path):
    return Submission("7", 3, tmp_path, "n")


def test_a_job_that_completes(single):
    (single.folder / "7_0_log.out").write_text("begin\nepoch 1 | loss 2\n\n")
    follower, lines = run(Slurm(j7=["PENDING", "RUNNING", "COMPLETED"]), single)
    assert lines == ["job 7: PENDING", "job 7: RUNNING | epoch 1 | loss 2", "job 7: COMPLETED"]
    assert follower.status() == 0 and follower.failures() == []


def test_a_job_that_is_queued_again_has_not_ended(single):
    """On its way back into the queue it may look failed for a moment."""
    states = ["RUNNING", "FAILED 255:0", "PENDING", "PENDING", "RUNNING", "COMPLETED"]
    follower, lines = run(Slurm(j7=states), single)
    assert follower.status() == 0 and len(lines) == 6


def test_a_failure_is_named_with_the_last_line_of_its_log(array):
    (array.folder / "7_1_0_log.out").write_text("slt-finetune: no vocabulary\nsrun: error: task 0: Exited\n")
    cluster = Slurm(j7_0=["RUNNING", "COMPLETED"], j7_1=["RUNNING", "FAILED 2:0"], j7_2=["PENDING", "CANCELLED 0:15"])
    follower, lines = run(cluster, array)
    assert lines[0] == "job 7: RUNNING 2, PENDING 1, 0 of 3 done | slt-finetune: no vocabulary"
    assert lines[-1] == "job 7: 3 of 3 done"
    assert follower.failures() == [
        "job 7_1: FAILED, exit status 2: slt-finetune: no vocabulary", "job 7_2: CANCELLED, exit status 143",
    ]  # fmt: skip
    assert follower.status() == 143
    assert cluster.asked == ["7"] * len(lines)  # one question for the whole array


@pytest.mark.parametrize(
    ("state", "code", "status"),
    [
        ("COMPLETED", "0:0", 0),
        ("FAILED", "3:0", 3),
        ("FAILED", "0:9", 137),
        ("TIMEOUT", "0:0", 1),
        ("CANCELLED", "", 1),
    ],
)
def test_exit_status(state, code, status):
    assert exit_status(state, code) == status


def test_the_merge_counts_too(array, tmp_path):
    merge = Submission("8", 1, tmp_path, "merge")
    done = {f"j7_{n}": ["COMPLETED"] for n in range(3)}
    follower, lines = run(Slurm(**done, j8=["PENDING", "FAILED 1:0"]), array, merge)
    assert follower.status() == 1 and lines[0] == "job 7, 8: PENDING 1, 3 of 4 done"


@pytest.mark.parametrize(
    ("states", "status"),
    [
        ([["COMPLETED"], ["CANCELLED 0:0"]], 0),
        ([["FAILED 75:0"], ["COMPLETED"]], 0),
        ([["FAILED 75:0"], ["FAILED 75:0"]], 75),
        ([["FAILED 2:0"], ["CANCELLED 0:15"]], 2),
    ],
)
def test_a_chain_is_done_when_one_of_it_is(single, tmp_path, states, status):
    follower, _ = run(Slurm(j7=states[0], j8=states[1]), single, Submission("8", 1, tmp_path, "n"))
    assert follower.status(chain=True) == status


def test_a_controller_that_is_silent_for_a_while(single):
    silent = slurm.SlurmError("no answer")
    follower, _ = run(Slurm(j7=["RUNNING", *[silent] * 20, "COMPLETED"]), single)
    assert follower.status() == 0
    with pytest.raises(LaunchError, match="cannot be followed any more: no answer"):
        run(Slurm(j7=["RUNNING", silent]), single)


def test_a_forgotten_element_does_not_end_the_following(array):
    """MinJobAge has passed between two looks; the others go on."""
    cluster = Slurm(j7_0=["RUNNING", None], j7_1=["RUNNING", "FAILED 3:0", None], j7_2=["RUNNING"] * 9 + ["COMPLETED"])
    follower, lines = run(cluster, array)
    assert lines[2].startswith("job 7: RUNNING 1, 2 of 3 done") and len(lines) == 10
    assert follower.failures() == [
        "job 7_0: its end is not known: SLURM has forgotten it, and there is no accounting to ask",
        "job 7_1: FAILED, exit status 3",
    ]
    assert follower.status() == 3


def test_all_of_an_array_forgotten(array):
    cluster = Slurm(**{f"j7_{n}": ["RUNNING", None] for n in range(3)})
    follower, _ = run(cluster, array)
    assert follower.status() == 1 and len(follower.failures()) == 3 and cluster.asked == ["7", "7"]


def test_silence_about_one_submission_does_not_hide_the_other(array, tmp_path):
    silent = slurm.SlurmError("no answer")
    done = {f"j7_{n}": ["RUNNING"] * 200 + ["COMPLETED"] for n in range(3)}
    follower, lines = run(Slurm(j8=[silent] * 150 + ["COMPLETED"], **done), Submission("8", 1, tmp_path, "n"), array)
    assert follower.status() == 0 and "RUNNING 3" in lines[0]


SHOWN = """\
JobId=325 ArrayJobId=325 ArrayTaskId=2,5-6,8-12:2%2 ArrayTaskThrottle=2 JobName=a b JobState=PENDING ExitCode=0:0 \
Comment=x JobState=FAILED
JobId=327 ArrayJobId=325 ArrayTaskId=1 JobName=a b UserId=root(0) JobState=RUNNING Reason=None ExitCode=0:0

JobId=326 ArrayJobId=325 ArrayTaskId=0 JobName=a b UserId=root(0) JobState=FAILED Reason=None ExitCode=3:0
"""


def answers(monkeypatch, **texts):
    """The text that each command of SLURM prints; an error otherwise."""

    def run(*command, **variables):
        name = next(word for word in command if word in ("scontrol", "sacct"))
        if name not in texts or texts[name].startswith("error"):
            raise slurm.SlurmError(texts.get(name, f"{name} is not installed here"))
        return texts[name]

    monkeypatch.setattr(slurm, "_run", run)


def test_elements_of_an_array_in_one_answer(monkeypatch):
    answers(monkeypatch, scontrol=SHOWN)
    found = {job: (record["JobState"], record["ExitCode"]) for job, record in slurm.show_all("325").items()}
    waiting = {f"325_{number}": ("PENDING", "0:0") for number in (2, 5, 6, 8, 10, 12)}
    assert found == waiting | {"325_1": ("RUNNING", "0:0"), "325_0": ("FAILED", "3:0")}
    answers(monkeypatch, scontrol="JobId=7 JobName=x JobState=RUNNING ExitCode=0:0")
    assert slurm.show_all("7")["7"]["JobState"] == "RUNNING"


@pytest.mark.parametrize("said", ["error: Invalid job id specified", "error: Job 7_1 not found"])
def test_what_the_controller_has_forgotten_accounting_may_know(monkeypatch, said):
    answers(monkeypatch, scontrol=said, sacct="7_0|COMPLETED|0:0\n7_[2-3%1]|CANCELLED by 0|0:15\n")
    found = slurm.show_all("7")
    assert {job: record["JobState"] for job, record in found.items()} == {
        "7_0": "COMPLETED", "7_2": "CANCELLED", "7_3": "CANCELLED",
    }  # fmt: skip
    answers(monkeypatch, scontrol=said)
    assert slurm.show_all("7") == {}
    answers(monkeypatch, scontrol="error: Unable to contact slurm controller")
    with pytest.raises(slurm.SlurmError, match="Unable to contact"):
        slurm.show_all("7")


def test_ctrl_c_ends_the_following_only(single, monkeypatch, capsys):
    cluster = Slurm(j7=["RUNNING", KeyboardInterrupt()])
    monkeypatch.setattr(launching, "Follower", lambda submissions: Follower(submissions, cluster.show_all))
    monkeypatch.setattr(following, "POLL_SECONDS", (0.001, 0.001))
    monkeypatch.setattr(following, "SECONDS_A_JOB", 0.0)
    assert launching.wait_for([single]) == 130
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("job 7 goes on.") and "squeue -j 7" in last and "scancel 7" in last
    assert str(single.log("7")) in last


def test_progress_without_a_terminal_is_a_line_a_change(capsys):
    progress = launching.ProgressLine()
    for line in ("job 7: PENDING", "job 7: PENDING", "job 7: RUNNING | a", "job 7: RUNNING | b"):
        progress(line)
    progress.last -= launching.PLAIN_SECONDS
    progress("job 7: RUNNING | c")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["job 7: PENDING", "job 7: RUNNING | a", "job 7: RUNNING | c"]


def test_last_line_of_a_progress_bar(tmp_path):
    (tmp_path / "log").write_bytes(b"x" * 20_000 + b"\n 10%\r 20%\r\n  \n")
    assert last_line(tmp_path / "log") == "20%" and last_line(tmp_path / "none") == ""
    (tmp_path / "log").write_text("srun: error: task 0: Killed\n")
    assert last_line(tmp_path / "log") == "srun: error: task 0: Killed"
