"""Where the numbers of a benchmark come from, for the line under its table."""

import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

from slt_plugin.extraction.options import available_cpus


def machine(device: str = "cpu") -> str:
    """Name of the GPU or CPU, CPUs, version of torch and its threads, date."""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(torch.device(device))
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.is_file() else []
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    threads = f"torch {torch.__version__} with {torch.get_num_threads()} threads"
    return f"{name}, {available_cpus()} CPUs, {threads}, {datetime.now(UTC):%Y-%m-%d}"
