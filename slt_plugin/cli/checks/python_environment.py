"""Versions of Python and of the packages, their known conflicts, and whether everything can be imported."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

from packaging.requirements import Requirement

import slt_plugin
from slt_plugin.cli.checks.child import PYTHON_TIMEOUT, run_python
from slt_plugin.cli.checks.result import FAIL, OK, WARN, Check

# In the order of who needs whom, so that the first failure is the cause and not a consequence.
IMPORTS = ("torch", "torchvision", "torchaudio", "transformers", "fairseq", "slt_plugin.tasks")
OPTIONAL_IMPORTS = {"transformers"}
IMPORT_IN_TURN = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    print("imported", name, flush=True)
"""
REINSTALL = "in the repository: pip install -c constraints.txt (or yours) -e '.[hf,prep,track,bleurt,demo,dev]'"
README_SECTION = "Which versions, and why ve-fairseq"
CUDA12 = f"use constraints-cuda12.txt (README, '{README_SECTION}')"


def installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_python(version: tuple[int, int, int] = sys.version_info[:3]) -> Check:
    found = f"{'.'.join(map(str, version))} ({sys.executable})"
    if (3, 11) <= version < (3, 13):
        return Check(OK, "Python", found)
    remedy = "use Python 3.11 or 3.12: PYTHON=/path/to/python3.11 VENV=/path/to/new bash scripts/quickstart.sh"
    return Check(FAIL, "Python", found, remedy)


def check_requirement(requirement: Requirement, version: str | None, *, extra: str = "") -> Check:
    """A package of setup.py against its range; one that only the extra named ``extra`` asks for may be missing."""
    wanted = f"{requirement.name}{requirement.specifier}"
    if version is None and extra:
        return Check(OK, requirement.name, f"not installed; only for the extra: pip install -e '.[{extra}]'")
    if version is None:
        return Check(FAIL, requirement.name, "not installed", REINSTALL)
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(FAIL, requirement.name, version, f"{wanted} is needed: {REINSTALL}")
    return Check(OK, requirement.name, version)


def check_packages() -> list[Check]:
    """Every requirement of the installed slt-plugin, in setup.py's order, each once."""
    checks: dict[str, Check] = {}
    for text in importlib.metadata.requires("slt-plugin") or []:
        requirement = Requirement(text)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", str(requirement.marker or ""))
        check = check_requirement(requirement, installed_version(requirement.name), extra=extra[1] if extra else "")
        checks.setdefault(requirement.name, check)
    return list(checks.values())


def check_fairseq(owners: list[str]) -> Check:
    """``owners``: the distributions that installed the module ``fairseq``."""
    if owners == ["ve-fairseq"]:
        return Check(OK, "fairseq", "from ve-fairseq")
    again = "pip uninstall -y fairseq ve-fairseq; pip install ve-fairseq==0.12.3"
    if not owners:
        return Check(FAIL, "fairseq", "not installed, or from a folder in PYTHONPATH", again)
    why = "fairseq's own releases do not run on Python 3.11 and write into the same folder"
    return Check(FAIL, "fairseq", f"from {', '.join(owners)}", f"{why}: {again}")


def build_cuda(version_file: str) -> str | None:
    """CUDA version that a torch, torchvision or torchaudio was built with, from the text of its ``version.py``.

    "13.0" for a version like 2.11.0+cu130, "cpu" for 2.11.0+cpu, None where the version has no such tag.
    """
    tag = re.search(r"__version__\s*=\s*['\"][^'\"+]*\+(cpu|cu(\d+)(\d))", version_file)
    if tag is None:
        return None
    return "cpu" if tag[1] == "cpu" else f"{tag[2]}.{tag[3]}"


def installed_cuda(package: str) -> str | None:
    """``build_cuda`` of an installed package, read without importing it; None where it is not installed."""
    for folder in sys.path:
        path = Path(folder, package, "version.py")
        if path.is_file():
            return build_cuda(path.read_text(encoding="utf-8"))
    return None


def check_cuda_builds(torch: str | None, others: dict[str, str | None]) -> list[Check]:
    """torchvision and torchaudio must be built with torch's CUDA version (as ``build_cuda`` gives it)."""
    checks = []
    for name, cuda in others.items():
        found = f"torch {torch or 'unknown'}, {name} {cuda or 'unknown'}"
        label = f"CUDA of {name}"
        if None in (torch, cuda) or torch == cuda:
            checks.append(Check(OK, label, found))
        elif torch == "cpu":
            why = f"{name} needs the CUDA libraries that a CPU-only torch lacks (the CUDA build of torch needs no GPU)"
            checks.append(Check(FAIL, label, found, f"{why}: pip uninstall -y torch; {REINSTALL}"))
        else:
            why = f"torch and {name} are of different CUDA versions, importing them (or transformers) fails"
            checks.append(Check(FAIL, label, found, f"{why}: {REINSTALL}"))
    return checks


def failed_imports(names: tuple[str, ...], timeout: float = PYTHON_TIMEOUT) -> dict[str, str]:
    """Imports the modules in a child process; module -> why, for those that failed, crashed or hang."""
    failed: dict[str, str] = {}
    rest = list(names)
    while rest:
        output = run_python("-c", IMPORT_IN_TURN, *rest, timeout=timeout)
        if output.problem is None:
            break
        done = [name for name in rest if f"imported {name}" in output.stdout.splitlines()]
        failed[rest[min(len(done), len(rest) - 1)]] = output.problem  # all imported: it crashed at its end
        rest = rest[len(done) + 1 :]
    return failed


def check_imports() -> list[Check]:
    wanted = tuple(n for n in IMPORTS if n not in OPTIONAL_IMPORTS or installed_version(n))
    failed = failed_imports(wanted)
    checks = []
    for name in wanted:
        if name in failed:
            checks.append(Check(FAIL, f"import {name}", failed[name], f"if no line above says why: {REINSTALL}"))
        else:
            checks.append(Check(OK, f"import {name}", "works"))
    return checks


def user_dir() -> Path:
    """The folder that ``--user-dir`` and ``common.user_dir`` need."""
    return Path(slt_plugin.__file__).resolve().parent


def check_user_dir(cwd: Path) -> Check:
    """fairseq takes ``--user-dir slt_plugin`` from the working directory first: another folder there would win."""
    here = cwd / "slt_plugin"
    if here.is_dir() and here.resolve() != user_dir():
        why = f"{here} is not the installed package, and --user-dir slt_plugin would take it from here"
        return Check(WARN, "user dir", str(user_dir()), f'{why}: give --user-dir "$(slt-doctor --user-dir)"')
    return Check(OK, "user dir", str(user_dir()))


def check_environment() -> list[Check]:
    """The whole section."""
    torch = installed_cuda("torch")
    others = {name: installed_cuda(name) for name in ("torchvision", "torchaudio") if installed_version(name)}
    owners = importlib.metadata.packages_distributions().get("fairseq", [])
    return [
        check_python(),
        Check(OK, "slt-plugin", slt_plugin.__version__),
        *check_packages(),
        check_fairseq(sorted(set(owners))),
        *check_cuda_builds(torch, others),
        *check_imports(),
        check_user_dir(Path.cwd()),
    ]
