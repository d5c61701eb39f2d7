"""Child processes with a time limit: what hangs or crashes (imports, drivers, SLURM) ends alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

PYTHON_TIMEOUT = 300.0  # seconds; the first import of torch from a cold network file system takes minutes


class Output(NamedTuple):
    """What a command left. ``problem``: why it did not succeed, in one line; None where it did."""

    stdout: str
    problem: str | None


def run(command: Sequence[str], timeout: float) -> Output:
    """Runs a command; never raises.

    Args:
        timeout: seconds, after which the command is killed.
    """
    try:
        done = subprocess.run(
            list(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        return Output(_text(error.stdout), f"no answer within {timeout:.0f} s")
    except OSError as error:
        return Output("", f"cannot be started: {error.strerror or error}")
    return Output(_text(done.stdout), None if done.returncode == 0 else _reason(done.returncode, _text(done.stderr)))


def run_python(*words: str, timeout: float = PYTHON_TIMEOUT) -> Output:
    """Runs this interpreter with ``words``."""
    return run([sys.executable, "-W", "ignore", *words], timeout)


def read_facts(output: Output) -> dict[str, dict]:
    """The lines {"fact": name, ...} that a probe printed before it ended, by name."""
    facts = {}
    for line in output.stdout.splitlines():
        try:
            fact = json.loads(line)
        except ValueError:
            continue  # a library that talks
        if isinstance(fact, dict) and "fact" in fact:
            facts[fact["fact"]] = fact
    return facts


def _text(content: bytes | None) -> str:
    return (content or b"").decode("utf-8", "replace")


def _reason(returncode: int, stderr: str) -> str:
    lines = [line.strip() for line in stderr.strip().splitlines() if line.strip()]
    if returncode < 0:
        number = -returncode
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return f"ended by {name}" + (f" ({lines[-1]})" if lines else "")
    return lines[-1] if lines else f"exit code {returncode}"
