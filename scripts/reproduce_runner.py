"""What the steps of reproduce.py share: running a command once, explaining its failure, comparing with the expected."""

import codecs
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from slt_plugin.common.download import fetch
from slt_plugin.common.errors import SltError
from slt_plugin.common.files import atomic_open

TAIL_LINES = 15  # of a failed command


class StepError(SltError):
    """A step that cannot go on: which command failed, with which last lines, and what to check."""


@dataclass(frozen=True)
class Check:
    """One measured value beside the expected one.

    tolerance: of a number; None where texts must be equal.
    source: where the expected value is from.
    note: what helps to read a difference.
    """

    name: str
    expected: str | float
    measured: str | float
    tolerance: float | None
    passed: bool
    source: str
    note: str = ""


def number_check(name: str, measured: float, expected: float, tolerance: float, source: str, note: str = "") -> Check:
    """Passed where ``measured`` is at most ``tolerance`` away from ``expected``, above it too."""
    return Check(name, expected, measured, tolerance, abs(measured - expected) <= tolerance, source, note)


def text_check(name: str, measured: str, expected: str, source: str) -> Check:
    """Passed where the texts are equal; else the note tells their chrF."""
    if measured == expected:
        return Check(name, expected, measured, None, True, source)
    from slt_plugin.scoring.report import score

    chrf = score([measured], [expected], ["chrf"])["chrf"]
    return Check(name, expected, measured, None, False, source, f"chrF {chrf:.1f}")


class Runner:
    """Runs the commands of a user in order, each only once for a working folder.

    Args:
        work: their results; ``work/done.json`` tells what was finished, ``work/logs`` what was printed.
    """

    def __init__(self, work: Path):
        self.work = work
        (work / "logs").mkdir(parents=True, exist_ok=True)
        self._record = work / "done.json"

    def command(
        self,
        name: str,
        words: Sequence[str | Path],
        *,
        needs: Sequence[Path] = (),
        makes: Sequence[Path] = (),
        check: str,
        replace: bool = False,
    ) -> str:
        """Runs a command, unless it was finished before with the same words and files; its standard output.

        Args:
            name: of the sub-step, unique in the working folder.
            words: the program (``python``, ``slt-score``, ...) and its arguments.
            needs: files that it reads: where one has changed since, it runs again.
            makes: files that are there when it is finished.
            check: what the user should look at where it fails.
            replace: remove what it ``makes`` before it runs: it refuses to overwrite.

        Raises:
            StepError: it is not installed, fails, or does not make what it should.
        """
        words = [str(word) for word in words]
        shown, log = shlex.join(words), self.work / "logs" / f"{name}.out"
        state = {"command": words, "needs": [_state(path) for path in needs]}
        done = self._done()
        if done.get(name) == state and log.is_file() and all(path.exists() for path in makes):
            print(f"= done before: {shown}", flush=True)
            return log.read_text(encoding="utf-8", errors="replace")
        if replace:
            for path in makes:
                path.unlink(missing_ok=True)
        print(f"+ {shown}", flush=True)
        begin = time.monotonic()
        status = _run([_program(words[0]), *words[1:]], log, log.with_suffix(".err"))
        if status:
            raise StepError(f"{shown}\n{_ending(status)}{_tail(log)}\nWhat to check: {check}")
        missing = [str(path) for path in makes if not path.exists()]
        if missing:
            raise StepError(f"{shown}\nended without an error, but did not make {', '.join(missing)}.{_tail(log)}")
        print(f"  {time.monotonic() - begin:.0f} s", flush=True)
        with atomic_open(self._record) as file:
            file.write(json.dumps(done | {name: state}, indent=1).encode("utf-8"))
        return log.read_text(encoding="utf-8", errors="replace")

    def download(self, url: str, target: Path, gone: str) -> Path:
        """``target``, fetched where it is not there yet; ``gone`` as in ``fetch``.

        Raises:
            DownloadError: it cannot be fetched.
        """
        print(f"{'= there already' if target.exists() else '+ download'}: {url} -> {target}", flush=True)
        fetch(url, target, gone=gone)
        return target

    def _done(self) -> dict[str, dict]:
        if not self._record.is_file():
            return {}
        try:
            return dict(json.loads(self._record.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            remedy = "remove it, and all commands run again"
            raise StepError(f"{self._record} cannot be read ({error}): {remedy}") from error


def read_score(path: Path, metric: str) -> float:
    """One metric of a file of ``slt-score --json``, in percent.

    Raises:
        StepError: it is not in it.
    """
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["metrics"][metric])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StepError(f"{path} has no {metric} ({error!r}): remove it and run this command again") from error


def _state(path: Path) -> list[str | int]:
    """By which a changed file is recognised: its name, size in bytes and time of the last change."""
    if not path.exists():
        return [str(path), -1, -1]
    stat = path.stat()
    return [str(path), stat.st_size, stat.st_mtime_ns]


def _program(name: str) -> str:
    """The program of this environment, also where the environment is not activated."""
    if name == "python":
        return sys.executable
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        remedy = "pip install -c constraints.txt -e ."
        raise StepError(f"{name} is not installed beside {sys.executable}, nor in PATH: {remedy}")
    return found


def _run(words: Sequence[str], out: Path, err: Path) -> int:
    """The exit status; what it prints goes to the files and is shown."""
    with open(out, "wb") as out_file, open(err, "wb") as err_file:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(words, env={**os.environ, "PYTHONIOENCODING": "utf-8"}, **pipes)
        threads = [
            threading.Thread(target=_tee, args=(process.stdout, out_file, sys.stdout)),
            threading.Thread(target=_tee, args=(process.stderr, err_file, sys.stderr)),
        ]
        for thread in threads:
            thread.start()
        try:
            return process.wait()
        finally:  # also after Ctrl-C, which the command gets too
            process.wait()
            for thread in threads:
                thread.join()


def _tee(pipe: BinaryIO, file: BinaryIO, stream: TextIO) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while block := pipe.read1(2**16):
        file.write(block)
        stream.write(decoder.decode(block))
        stream.flush()


def _ending(status: int) -> str:
    if status > 0:
        return f"exited with status {status}."
    name = signal.Signals(-status).name
    return f"was stopped by {name}" + (" (out of memory?)." if name == "SIGKILL" else ".")


def _tail(log: Path) -> str:
    """The last lines of its error output, or of its output where there are none, and where the rest is."""
    for path in (log.with_suffix(".err"), log):
        text = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
        lines = [line for line in text.splitlines() if line.strip()][-TAIL_LINES:]
        if lines:
            return f" Its last lines ({path}):\n" + "\n".join(f"    {line}" for line in lines)
    return " It printed nothing."
