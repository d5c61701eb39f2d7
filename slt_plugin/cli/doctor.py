"""``slt-doctor``: is this machine and this environment fit to train? Every problem comes with its remedy.

It imports nothing but the standard library (and ``packaging``) itself, because it has to run where torch or fairseq
cannot be imported; those are imported in a child process.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

import slt_plugin

OK, WARN, FAIL = "OK", "WARN", "FAIL"
GB = 1024**3
# In the order of who needs whom, so that the first failure is the cause and not a consequence.
IMPORTS = ("torch", "torchvision", "torchaudio", "transformers", "fairseq", "slt_plugin.tasks")
OPTIONAL_IMPORTS = {"transformers"}
IMPORT_IN_TURN = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    print("imported", name, flush=True)
"""
REINSTALL = "in the repository: pip install -c constraints.txt (or your own choice) -e '.[hf,prep,track,dev]'"
README_SECTION = "Which versions, and why ve-fairseq"
CUDA12 = f"use constraints-cuda12.txt (README, '{README_SECTION}')"
# CUDA major version of the torch build: lowest driver (NVIDIA's CUDA compatibility guide, minor version compatibility).
LOWEST_DRIVER = {12: 525, 13: 580}


@dataclass(frozen=True)
class Check:
    """One line of the report: ``status`` is OK, WARN or FAIL; ``remedy`` is empty for OK."""

    status: str
    name: str
    found: str
    remedy: str = ""


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


def failed_imports(names: tuple[str, ...]) -> dict[str, str]:
    """Imports the modules in a child process; module -> last line of the error for those that failed or crashed."""
    failed: dict[str, str] = {}
    rest = list(names)
    while rest:
        command = [sys.executable, "-W", "ignore", "-c", IMPORT_IN_TURN, *rest]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode == 0:
            break
        done = [name for name in rest if f"imported {name}" in run.stdout.splitlines()]
        culprit = rest[len(done)]
        lines = run.stderr.strip().splitlines()
        failed[culprit] = lines[-1] if lines else f"exit code {run.returncode}"
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


def check_gpus(report: str | None, cuda: str | None) -> list[Check]:
    """GPUs and driver against the torch build.

    ``report``: nvidia-smi's lines "name, driver, memory", None where there is no working nvidia-smi; ``cuda``: the CUDA
    version of torch as ``build_cuda`` gives it.
    """
    if not report:
        remedy = "the quickstart runs on the CPU; on a cluster run it inside a job: srun --gres=gpu:1 slt-doctor"
        return [Check(WARN, "GPU", "no NVIDIA GPU or driver found", remedy)]
    lowest = LOWEST_DRIVER.get(int(cuda.split(".")[0]), 0) if cuda and cuda != "cpu" else 0
    checks = []
    for line in report.splitlines():
        name, driver, memory = (cell.strip() for cell in line.split(","))
        found = f"{name}, {memory}, driver {driver}"
        if cuda == "cpu":
            checks.append(Check(FAIL, "GPU", found, f"torch is a CPU-only build: pip uninstall -y torch; {REINSTALL}"))
        elif int(driver.split(".")[0]) < lowest:
            why = f"torch is built with CUDA {cuda}, which needs driver {lowest} or newer"
            checks.append(Check(FAIL, "GPU", found, f"{why}: update the driver" + f", or {CUDA12}" * (lowest > 525)))
        else:
            checks.append(Check(OK, "GPU", found))
    return checks


def nvidia_smi() -> str | None:
    """The lines that ``check_gpus`` reads; None where nvidia-smi is missing, hangs or finds no driver."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def check_kernel() -> Check:
    """Runs one operation on the first GPU, in a child process."""
    code = "import torch; torch.zeros(1, device='cuda').add_(1); print(torch.cuda.get_device_capability())"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    if run.returncode == 0:
        return Check(OK, "GPU works", f"compute capability {run.stdout.strip()}")
    lines = run.stderr.strip().splitlines()
    remedy = f"check CUDA_VISIBLE_DEVICES and the driver; a GPU older than Turing (compute capability 7.5): {CUDA12}"
    return Check(FAIL, "GPU works", lines[-1] if lines else f"exit code {run.returncode}", remedy)


def check_amount(name: str, amount: float, *, warn: float, fail: float, remedy: str) -> Check:
    """``amount``, ``warn`` and ``fail`` in GB; below ``warn`` and ``fail`` are the bounds of the two."""
    status = FAIL if amount < fail else WARN if amount < warn else OK
    return Check(status, name, f"{amount:.1f} GB", "" if status == OK else remedy)


def check_machine() -> list[Check]:
    checks = [
        check_amount(
            f"free disk in {Path.cwd()}",
            shutil.disk_usage(Path.cwd()).free / GB,
            warn=10,
            fail=1,
            remedy="checkpoints and corpora need more; give checkpoint.save_dir (or RUN=, DATA=) on a larger disk",
        ),
        check_amount(
            "memory",
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB,
            warn=4,
            fail=2,
            remedy="the quickstart needs 4 GB; use fewer loader workers (dataset.num_workers=0)",
        ),
    ]
    if Path("/dev/shm").is_dir():
        remedy = "loader workers share batches there: docker run --shm-size=8g, or dataset.num_workers=0"
        checks.append(check_amount("/dev/shm", shutil.disk_usage("/dev/shm").total / GB, warn=1, fail=0, remedy=remedy))
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    checks.append(Check(OK, "CPU cores", f"{allowed} usable of {os.cpu_count()}"))
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


def run_checks() -> list[Check]:
    torch = installed_cuda("torch")
    others = {name: installed_cuda(name) for name in ("torchvision", "torchaudio") if installed_version(name)}
    owners = importlib.metadata.packages_distributions().get("fairseq", [])
    gpus = check_gpus(nvidia_smi(), torch)
    return [
        check_python(),
        Check(OK, "slt-plugin", slt_plugin.__version__),
        *check_packages(),
        check_fairseq(sorted(set(owners))),
        *check_cuda_builds(torch, others),
        *check_imports(),
        *gpus,
        *([check_kernel()] if gpus[0].status == OK else []),
        *check_machine(),
        check_user_dir(Path.cwd()),
    ]


def format_report(checks: list[Check]) -> str:
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:4}  {check.name:{width}}  {check.found}")
        if check.remedy:
            lines.append(f"{'':4}  {'':{width}}  -> {check.remedy}")
    count = {status: sum(check.status == status for check in checks) for status in (OK, WARN, FAIL)}
    lines.append(f"{count[OK]} OK, {count[WARN]} warnings, {count[FAIL]} failures")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 where a check fails, 0 otherwise (warnings included)."""
    parser = argparse.ArgumentParser(prog="slt-doctor", description="Checks this machine and environment.")
    parser.add_argument(
        "--user-dir",
        action="store_true",
        help="print only the installed folder of slt_plugin, for fairseq-generate --user-dir and common.user_dir=",
    )
    args = parser.parse_args(argv)
    if args.user_dir:
        print(user_dir())
        return 0
    checks = run_checks()
    print(format_report(checks))
    return int(any(check.status == FAIL for check in checks))


if __name__ == "__main__":
    sys.exit(main())
