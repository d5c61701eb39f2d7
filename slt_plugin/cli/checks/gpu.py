"""GPUs, driver and memory from nvidia-smi; kernels, bf16, fused attention and NCCL as they really run in torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from slt_plugin.cli.checks.child import read_facts, run, run_python
from slt_plugin.cli.checks.python_environment import CUDA12, REINSTALL, installed_cuda
from slt_plugin.cli.checks.result import FAIL, OK, WARN, Check

NVIDIA_SMI_TIMEOUT = 60.0  # seconds; a driver without persistence takes its time at the first call
QUERIES = (  # the second one: drivers that do not know all fields of the first
    ("name", "driver_version", "memory.total", "memory.used", "compute_cap", "mig.mode.current"),
    ("name", "driver_version", "memory.total"),
)
# CUDA major version of the torch build: lowest driver (NVIDIA's CUDA compatibility guide, minor version compatibility).
LOWEST_DRIVER = {12: 525, 13: 580}
LOWEST_CAPABILITY = {12: (5, 0), 13: (7, 5)}  # GPU generations that a CUDA major version still compiles for
BLACKWELL, CUDA_OF_BLACKWELL = (10, 0), (12, 8)
USED_MB = 1024  # of a GPU's memory before anything of ours runs: somebody else is on it
NEW_TORCH = "use constraints.txt"


def nvidia_smi() -> str | None:
    """The lines that ``check_gpus`` reads; None where nvidia-smi is missing, hangs or finds no driver."""
    for fields in QUERIES:
        output = run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"], NVIDIA_SMI_TIMEOUT)
        lines = [line for line in output.stdout.splitlines() if line.count(",") == len(fields) - 1]
        if output.problem is None and lines:  # "No devices were found" is none
            return "\n".join(lines)
    return None


def nvidia_smi_list() -> str:
    """``nvidia-smi -L``: names the parts that a GPU is cut into (MIG)."""
    return run(["nvidia-smi", "-L"], NVIDIA_SMI_TIMEOUT).stdout


def mig_devices(listing: str) -> list[str]:
    """Profiles ("1g.10gb") of the MIG devices in the output of ``nvidia-smi -L``."""
    return re.findall(r"^\s+MIG (\S+)\s+Device", listing, flags=re.MULTILINE)


def check_gpus(report: str | None, cuda: str | None, listing: str = "", environ: Mapping[str, str] = {}) -> list[Check]:
    """GPUs and driver against the torch build.

    Args:
        report: nvidia-smi's lines of the fields of ``QUERIES``, None where there is no working nvidia-smi.
        cuda: the CUDA version of torch as ``build_cuda`` gives it.
        listing: what ``nvidia-smi -L`` printed.
        environ: of this process; inside a job SLURM says there how many GPUs it has.
    """
    given = environ.get("SLURM_GPUS_ON_NODE", "0")
    if not report and given not in ("", "0"):
        remedy = (
            "in a container: apptainer run --nv; else the node's driver is broken: --exclude it and tell the admins"
        )
        return [Check(FAIL, "GPU", f"SLURM gave this job {given}, but no GPU or driver is visible", remedy)]
    if not report:
        remedy = "the quickstart runs on the CPU; on a cluster run it inside a job: srun --gres=gpu:1 slt-doctor"
        return [Check(WARN, "GPU", "no NVIDIA GPU or driver found", remedy)]
    checks = [_check_gpu([cell.strip() for cell in line.split(",")], cuda) for line in report.splitlines()]
    if parts := mig_devices(listing):
        what = f"{len(parts)} MIG parts visible: {', '.join(parts)} (memory and cores of the part, not of the GPU)"
        checks.append(Check(OK, "MIG", what))
    if "CUDA_VISIBLE_DEVICES" in environ:
        checks.append(_check_visible(environ["CUDA_VISIBLE_DEVICES"]))
    return checks


def _check_gpu(cells: list[str], cuda: str | None) -> Check:
    name, driver, memory = cells[:3]
    used, capability, mig = cells[3:] if len(cells) == 6 else ("", "", "")
    found = f"{name}, {memory}, driver {driver}"
    if re.match(r"\d", used):
        found += f", {used} in use"
    if re.fullmatch(r"\d+\.\d+", capability):
        found += f", compute capability {capability}"
    if mig == "Enabled":
        found += ", cut into MIG parts"
    return Check(*_judge_gpu(found, driver, used, capability, cuda))


def _judge_gpu(found: str, driver: str, used: str, capability: str, cuda: str | None) -> tuple[str, str, str, str]:
    if cuda == "cpu":
        return FAIL, "GPU", found, f"torch is a CPU-only build: pip uninstall -y torch; {REINSTALL}"
    version = tuple(map(int, cuda.split("."))) if cuda else None
    generation = tuple(map(int, capability.split("."))) if re.fullmatch(r"\d+\.\d+", capability) else None
    if version and generation and generation < LOWEST_CAPABILITY.get(version[0], (0, 0)):
        lowest = ".".join(map(str, LOWEST_CAPABILITY[version[0]]))
        why = f"torch is built with CUDA {cuda}, which needs compute capability {lowest} or newer"
        usable = generation >= LOWEST_CAPABILITY[12]
        return FAIL, "GPU", found, f"{why}: {CUDA12}" if usable else f"{why}: this GPU is too old, use another"
    lowest_driver = LOWEST_DRIVER.get(version[0], 0) if version else 0
    if re.match(r"\d", driver) and int(driver.split(".")[0]) < lowest_driver:
        why = f"torch is built with CUDA {cuda}, which needs driver {lowest_driver} or newer"
        return FAIL, "GPU", found, f"{why}: update the driver" + f", or {CUDA12}" * (lowest_driver > 525)
    if version and generation and generation >= BLACKWELL and version < CUDA_OF_BLACKWELL:
        why = f"torch is built with CUDA {cuda}, this generation (Blackwell) needs 12.8 or newer"
        return FAIL, "GPU", found, f"{why}: {NEW_TORCH}"
    if re.match(r"\d", used) and int(used.split()[0]) > USED_MB:
        remedy = "somebody's process is on this GPU (nvidia-smi names it): ask SLURM for one of your own, --gres=gpu:1"
        return WARN, "GPU", found, remedy
    return OK, "GPU", found, ""


def _check_visible(devices: str) -> Check:
    if devices.strip() in ("", "-1", "NoDevFiles"):
        remedy = "unset CUDA_VISIBLE_DEVICES; inside a job ask for a GPU: --gres=gpu:1"
        return Check(WARN, "CUDA_VISIBLE_DEVICES", f"{devices!r} hides all GPUs", remedy)
    return Check(OK, "CUDA_VISIBLE_DEVICES", devices)


def check_torch(facts: Mapping[str, Mapping], problem: str | None, *, gpus: bool) -> list[Check]:
    """What ``probe_torch`` found.

    Args:
        facts: its lines by name; incomplete where it crashed.
        problem: why the probe ended early, if it did.
        gpus: whether nvidia-smi shows a GPU that fits, so that one is expected to work.
    """
    if "build" not in facts:
        return [Check(FAIL, "torch", problem or "said nothing", f"see the imports above: {REINSTALL}")]
    checks = [_nccl(facts["nccl"])] if "nccl" in facts else []
    if gpus:
        checks += _first_gpu(facts)
    if "attention" in facts:
        checks.append(_attention(facts["attention"], cpu="kernel" not in facts))
    if problem is not None:
        checks.append(Check(FAIL, "torch", f"crashed: {problem}", f"check the driver (dmesg, nvidia-smi): {REINSTALL}"))
    return checks


def _nccl(fact: Mapping) -> Check:
    if fact.get("version"):
        return Check(OK, "NCCL", fact["version"])
    remedy = f"training on several GPUs needs it (gloo works on CPUs): {REINSTALL}"
    return Check(WARN, "NCCL", fact.get("problem", "not in this torch"), remedy)


def _first_gpu(facts: Mapping[str, Mapping]) -> list[Check]:
    kernel = facts.get("kernel", {"problem": "torch sees no GPU"})
    if "problem" in kernel:
        remedy = f"check CUDA_VISIBLE_DEVICES and the driver; before Turing (compute capability 7.5): {CUDA12}"
        return [Check(FAIL, "GPU works", kernel["problem"], remedy)]
    capability = ".".join(map(str, kernel["capability"]))
    free, total = (kernel[name] / 1024**3 for name in ("free", "total"))
    found = f"compute capability {capability}, {free:.1f} of {total:.1f} GB free, torch sees {kernel['count']}"
    checks = [Check(OK, "GPU works", found)]
    bfloat16 = facts.get("bfloat16", {"problem": "not tried"})
    if "problem" in bfloat16:
        checks.append(Check(FAIL, "bf16", bfloat16["problem"], "use common.fp16=true or float32 (common.bf16=false)"))
    elif not bfloat16["native"]:
        remedy = "only from Ampere (compute capability 8.0) on, emulated here: common.bf16=false common.fp16=true"
        checks.append(Check(WARN, "bf16", "not supported by this GPU", remedy))
    else:
        checks.append(Check(OK, "bf16", "works"))
    return checks


def _attention(fact: Mapping, *, cpu: bool) -> Check:
    name = "fused attention"
    if "problem" in fact:
        return Check(FAIL, name, fact["problem"], f"scaled_dot_product_attention does not run: {REINSTALL}")
    works = [kernel for kernel, problem in fact["kernels"].items() if problem is None]
    failed = {kernel: problem for kernel, problem in fact["kernels"].items() if problem is not None}
    if wrong := [f"{kernel} {problem}" for kernel, problem in failed.items() if problem.startswith("wrong")]:
        return Check(FAIL, name, f"wrong results: {', '.join(wrong)}", f"update the driver, or {REINSTALL}")
    if cpu:
        return Check(OK, name, "none on the CPU; the plain one works")
    if not {"flash", "memory-efficient"} & set(works):
        why = "; ".join(f"{kernel}: {problem}" for kernel, problem in failed.items())
        remedy = "attention is slower and takes more memory: shorter batches, model.checkpoint_activations=true"
        return Check(WARN, name, f"none works ({why})", remedy)
    return Check(OK, name, f"works: {', '.join(works)}" + (f" (not {', '.join(failed)})" if failed else ""))


def check_gpu_section() -> list[Check]:
    """The whole section."""
    report = nvidia_smi()
    gpus = check_gpus(report, installed_cuda("torch"), nvidia_smi_list() if report else "", os.environ)
    output = run_python("-P", "-m", "slt_plugin.cli.checks.probe_torch")
    return [*gpus, *check_torch(read_facts(output), output.problem, gpus=bool(report) and gpus[0].status != FAIL)]
