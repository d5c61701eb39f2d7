"""What the four entry points share: their words ``launcher=``, ``launcher.<option>=``, ``dry_run=`` and ``wait=``."""

import difflib
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from slt_plugin.cli.errors import one_line
from slt_plugin.cli.overrides import parse
from slt_plugin.common import slurm
from slt_plugin.common.errors import SltError
from slt_plugin.launch.follow import Follower, follow
from slt_plugin.launch.profile import LOCAL, Profile, load_profile
from slt_plugin.launch.secrets import refuse_secrets
from slt_plugin.launch.submit import Submission, check_folder, check_sbatch, job_calls, sbatch_text, submit
from slt_plugin.models.errors import OptionError

HELP = """
Where it runs (slt_plugin/config/launcher/*.yaml are the profiles, and say what each option means):
  launcher=local|slurm|NAME|FILE.yaml   this machine (default), or a job of the cluster
  launcher.OPTION=VALUE                 over the profile's, e.g. launcher.partition=gpu launcher.time=24:00:00
  dry_run=true                          print the sbatch file, the configuration and an estimate; submit nothing
  wait=true                             follow the job; its exit status is the command's
"""
PLAIN_SECONDS = 60.0  # between lines of progress where there is no terminal
_OURS = re.compile(r"^\+{0,2}(launcher(\.[^=]*)?|dry_run|wait)=")
_SWITCH = re.compile(r"^--?(launcher(?:\.[^=]*)?|dry[-_]run|wait)(?:=(.*))?$")
_NEAR = 0.8  # of difflib: "laucher" and "dryrun" are, slt-extract's "what" is not near "wait"


@dataclass(frozen=True)
class Request:
    """A command line, taken apart.

    Attributes:
        words: those of the command itself.
        shown: the others, as they were typed.
    """

    profile: Profile
    words: list[str]
    dry_run: bool
    wait: bool
    shown: list[str] = field(default_factory=list)

    @property
    def runs_here(self) -> bool:
        """Whether the command is simply to be run."""
        return self.profile.is_local and not self.dry_run


@dataclass(frozen=True)
class Work:
    """What a command asks to have run.

    Attributes:
        command: "slt-finetune".
        module: of it, whose ``main`` the job calls.
        name: what its job is called after, e.g. the config.
        elements: one command line for each job of an array; one alone is a plain job.
        folder: where the logs of all its submissions go, where launcher.folder says nothing else.
        config: what is composed, as YAML.
        estimate: lines on what it does and costs.
        last: command line of a job that runs after all elements, without GPUs.
        submitted: is called when SLURM has taken the elements, and for each further job of a chain.
        resumes: an element that is started again goes on where it was; others are not queued again after a time-out.
    """

    command: str
    module: str
    name: str
    elements: list[list[str]]
    folder: Path
    config: str
    estimate: list[str]
    last: list[str] | None = None
    submitted: Callable[[Submission], None] | None = None
    resumes: bool = True


def read_request(arguments: Sequence[str], *, trains: bool = False, shares: bool = False) -> Request:
    """Takes our words out of a command line.

    Args:
        trains: the command may be several processes that train together, and a chain of jobs.
        shares: the command may be several processes that share its work.

    Raises:
        OptionError: unknown options or values; what has no effect; a secret.
    """
    shown = [word for word in arguments if _OURS.match(word)]
    words = [word for word in arguments if not _OURS.match(word)]
    _refuse_misspelt(words)
    values: dict[str, object] = {}
    for word in shown:
        if word.startswith("+"):
            raise OptionError(f"{word}: write it without the +")
        try:
            override = parse([word])[0]
        except OptionError:
            raise
        except Exception as error:  # Hydra's lexer has errors of its own
            raise OptionError(f"{word}: {_quoted(word)}") from error
        value = override.value()
        values[override.key_or_group] = value if isinstance(value, str | list | dict) or value is None else (
            override.get_value_string())  # fmt: skip
    flags = {name: _flag(name, values.pop(name, "false")) for name in ("dry_run", "wait")}
    name, folder = str(values.pop("launcher", LOCAL)), values.pop("launcher.dir", None)
    given = {key.removeprefix("launcher."): value for key, value in values.items()}
    profile = load_profile(name, None if folder is None else str(folder), given)
    if profile.is_local and folder is not None:
        raise OptionError("launcher.dir has no effect without launcher=NAME")
    if profile.is_local and "wait=false" in shown:
        raise OptionError("wait=false: a command without launcher=slurm always waits")
    if not trains and (profile.chain or (profile.world_size > 1 and not shares)):
        option = "chain" if profile.chain else "nodes" if profile.nodes > 1 else (
            "gpus_per_node" if profile.gpus > 1 else "local_ranks")  # fmt: skip
        raise OptionError(
            f"launcher.{option}={getattr(profile, option)} is for training: "
            + (
                "leave it at 0"
                if option == "chain"
                else "a job of this command is one process with at most one GPU; leave it at 1"
            )
        )
    if not profile.is_local:
        texts = [("launcher.comment", profile.comment or ""), ("launcher.python", profile.python or "")]
        texts += [("launcher.setup", line) for line in profile.setup]
        texts += [(f"launcher.extra.{key}", f"{key}={value}") for key, value in profile.extra.items()]
        texts += [("the command line", word) for word in words]
        refuse_secrets(texts, os.environ)
    return Request(profile, words, flags["dry_run"], flags["wait"], shown)


def _refuse_misspelt(words: Iterable[str]) -> None:
    """Hydra would advise a leading "+", with which the command would run on this machine."""
    for word in words:
        switch = _SWITCH.match(word)
        if switch:
            name = switch[1].replace("-", "_")
            value = switch[2] or {"launcher": "slurm", "dry_run": "true", "wait": "true"}.get(name, "VALUE")
            raise OptionError(f"{word}: write {name}={value}")
        option = word.lstrip("+").partition("=")[0].partition(".")[0]
        near = difflib.get_close_matches(option, ("launcher", "dry_run", "wait"), n=1, cutoff=_NEAR)
        if "=" in word and near:
            raise OptionError(f"{word}: {option} is no option; did you mean {near[0]!r}?")


def _quoted(word: str) -> str:
    """What to write where Hydra cannot read a value."""
    key, _, value = word.partition("=")
    if not value.startswith("["):
        return f"quote the value twice: '{key}=\"{value}\"'"
    texts = (item.strip(" '\"") for item in value.strip("[]").split(","))
    items = ",".join(f'"{text}"' for text in texts)
    return f"quote each item, and all of it: '{key}=[{items}]'"


def _flag(name: str, value: object) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise OptionError(f"{name}={value}: give true or false")
    return str(value).lower() == "true"


def local_ranks(request: Request, module: str) -> int | None:
    """The exit status of ``launcher.local_ranks`` processes; None where one is asked for, which is this."""
    if request.profile.local_ranks == 1:
        return None
    from slt_plugin.launch.local import run_ranks

    return run_ranks([sys.executable, "-m", module, *request.words], request.profile.local_ranks)


def check_devices(request: Request, cfg) -> None:
    """Raises OptionError where the job would hold GPUs that it does not use."""
    profile = request.profile
    if profile.gpus and not profile.is_local and cfg.common.cpu:
        raise OptionError(
            f"common.cpu=true with launcher.gpus_per_node={profile.gpus_per_node}: the GPUs would be idle. Give "
            "launcher.gpus_per_node=0 (launcher=slurm_cpu), or common.cpu=false"
        )


def out_of_time(error: Exception) -> str | None:
    """What to say where submitit ends this job at its time limit without queueing it again; None: another error."""
    if not type(error).__module__.startswith("submitit.") or "timed-out" not in str(error):
        return None
    return (
        f"job {slurm.job_id(os.environ)}: the time limit was too short. It is not queued again, because it would start "
        "from the beginning: submit it with a longer launcher.time"
    )


def launch(request: Request, work: Work) -> int:
    """Submits the work, or shows it; the exit status.

    Raises:
        SltError: SLURM does not take it.
    """
    profile = request.profile
    base = Path(profile.folder) if profile.folder else work.folder
    folder = base / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    name = f"{work.command}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', work.name)}"
    check_folder(base)
    if request.dry_run:
        _show(profile, work, base / "DATE-TIME", name)
        return 0
    check_sbatch()
    submissions = _submit_all(profile, work, folder, name)
    if not request.wait:
        return 0
    return wait_for(submissions, chain=bool(profile.chain))


def _show(profile: Profile, work: Work, folder: Path, name: str) -> None:
    if not profile.is_local:
        print("# --- sbatch file")
        print(sbatch_text(profile, folder.absolute(), name=name, elements=len(work.elements)), end="")
        if profile.chain:
            print(f"# and {profile.chain} further jobs, each with --dependency=afternotok:JOB of the one before")
        for number, words in enumerate(work.elements):
            print(f"# {f'element {number}' if len(work.elements) > 1 else 'job'}: {work.command} {_line(words)}")
        if work.last is not None:
            print(f"# afterwards (--dependency=afterany): {work.command} {_line(work.last)}")
    print(f"# --- configuration\n{work.config.rstrip()}")
    print("# --- estimate")
    for line in work.estimate:
        print(f"# {line}")
    print("# dry_run=true: nothing was submitted or written" if not profile.is_local else "# dry_run=true: nothing ran")


def _line(words: Sequence[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)


def _submit_all(profile: Profile, work: Work, folder: Path, name: str) -> list[Submission]:
    """Submits and prints each: what comes later may still be refused."""
    if not work.resumes:
        profile = replace(profile, max_num_timeout=0)
    submissions: list[Submission] = []
    try:
        _submit_each(profile, work, folder, name, submissions)
    finally:
        if submissions:
            print(f"  end it: scancel {' '.join(submission.job for submission in submissions)}", flush=True)
    return submissions


def _submit_each(profile: Profile, work: Work, folder: Path, name: str, submissions: list[Submission]) -> None:
    first = submit(profile, job_calls(profile, work.module, work.elements), folder, name=name)
    submissions.append(first)
    if work.submitted is not None:
        work.submitted(first)
    print_submission(first, profile)
    for _ in range(profile.chain):
        before = submissions[-1].job
        calls = job_calls(profile, work.module, work.elements, after=before)
        submissions.append(submit(profile, calls, folder, name=name, dependency=f"afternotok:{before}"))
        if work.submitted is not None:
            work.submitted(submissions[-1])
        print(f"job {submissions[-1].job} goes on where job {before} was ended; it is cancelled if that completes")
    if work.last is not None:
        # an array may have more parallel jobs than there are free CPUs: this one is small, and needs no special node
        small = replace(
            profile, gpus_per_node="0", cpus_per_task=1, mem=None, constraint=None, extra={}, max_num_timeout=0
        )
        calls = job_calls(small, work.module, [work.last])
        try:
            last = submit(small, calls, folder, name=f"{name}-merge", dependency=f"afterany:{first.job}")
        except SltError as error:
            raise type(error)(
                f"job {first.job} is queued, but the merge after it is not: {one_line(error)}. Call it yourself when "
                f"the job has ended: {work.command} {_line(work.last)}"
            ) from error
        submissions.append(last)
        print(f"job {last.job} merges when all of job {first.job} have ended; log: {_log(last, last.job)}")


def print_submission(submission: Submission, profile: Profile) -> None:
    """Job, logs, and how to follow it."""
    if submission.elements == 1:
        print(f"submitted job {submission.job} ({submission.name})")
    else:
        parallel = min(profile.array_parallelism, submission.elements)
        print(
            f"submitted job {submission.job} ({submission.name}): an array of {submission.elements}, {parallel} at once"
        )
    pattern = _log(submission, submission.job if submission.elements == 1 else f"{submission.job}_*")
    print(f"  logs:   {pattern}")
    if profile.world_size > 1:
        last = f" to _{profile.world_size - 1}_log.out" if profile.world_size > 2 else ""
        print(f"          of the other ranks: the same with _1_log.out{last}")
    print(f"  follow: tail -F {pattern}")
    print(f"  state:  squeue -j {submission.job}")


def _log(submission: Submission, job: str) -> str:
    """The path of a log, or of those of all elements (``job``: "12_*"), as a shell takes it."""
    path = submission.log(job)
    return f"{shlex.quote(str(path.parent))}/{path.name}"


def duration(seconds: float) -> str:
    """Hours (as many as there are), minutes and seconds, "26:00:05"."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"


class ProgressLine:
    """One line that changes in a terminal; elsewhere a new one when the jobs' states change, or a minute has passed."""

    def __init__(self):
        self.begin, self.last, self.shown = time.monotonic(), 0.0, ""
        self.terminal = sys.stderr.isatty()

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        elapsed = duration(now - self.begin)
        if self.terminal:
            # a line that wraps could not be taken back
            shown = f"{elapsed} {line}"[: shutil.get_terminal_size().columns - 1]
            print(f"\r\x1b[K{shown}", end="", file=sys.stderr, flush=True)
            return
        states = line.partition(" | ")[0]
        if states != self.shown or now - self.last >= PLAIN_SECONDS:
            self.shown, self.last = states, now
            print(f"{elapsed} {line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.terminal:
            print(file=sys.stderr)


def wait_for(submissions: Sequence[Submission], *, chain: bool = False) -> int:
    """Follows jobs to their end; their exit status. Ctrl-C ends the following only."""
    follower, progress = Follower(submissions), ProgressLine()
    names = ",".join(submission.job for submission in submissions)
    try:
        follow(follower, progress)
    except KeyboardInterrupt:
        progress.close()
        log = _log(submissions[0], submissions[0].ids[0])
        print(
            f"job {names} goes on. State: squeue -j {names}; log: tail -F {log}; end it: scancel "
            f"{names.replace(',', ' ')}",
            file=sys.stderr,
        )
        return 130
    progress.close()
    status = follower.status(chain=chain)
    if status:
        for line in follower.failures():
            print(line, file=sys.stderr)
    else:
        print(f"job {names}: COMPLETED", file=sys.stderr)
    return status
