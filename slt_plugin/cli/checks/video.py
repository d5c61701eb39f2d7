"""Whether videos can be decoded: a few frames are really written and read back."""

from __future__ import annotations

from collections.abc import Mapping

from slt_plugin.cli.checks.child import read_facts, run_python
from slt_plugin.cli.checks.result import FAIL, OK, WARN, Check

AGAIN = "pip install --force-reinstall --no-deps -c constraints.txt av (its wheel brings FFmpeg along)"


def check_decoding(facts: Mapping[str, Mapping], problem: str | None) -> list[Check]:
    """What ``probe_video`` found; ``problem``: why it ended early, if it did."""
    fact = facts.get("decode", {})
    problem = problem or fact.get("problem")
    if problem is None and not fact:
        problem = "the test said nothing"
    if problem is not None:
        if "No space left" in problem:
            return [Check(FAIL, "decoding", problem, "free some space in the temporary folder, or set TMPDIR")]
        return [Check(FAIL, "decoding", problem, f"poses and features work without; raw video: {AGAIN}")]
    checks = [Check(OK, "decoding", f"{fact['frames']} frames of H.264 written and read back, PyAV {fact['av']}")]
    if fact["missing"]:
        names = ", ".join(fact["missing"])
        checks.append(Check(WARN, "video formats", f"no decoder for {names}", f"such videos cannot be read: {AGAIN}"))
    return checks


def check_video() -> list[Check]:
    """The whole section."""
    output = run_python("-P", "-m", "slt_plugin.cli.checks.probe_video")
    return check_decoding(read_facts(output), output.problem)
