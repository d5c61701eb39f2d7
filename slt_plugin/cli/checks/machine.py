"""Memory, /dev/shm and processor cores."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from slt_plugin.cli.checks.result import OK, Check, check_amount

GB = 1024**3


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_machine() -> list[Check]:
    """The whole section."""
    checks = [
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
    checks.append(Check(OK, "CPU cores", f"{usable_cores()} usable of {os.cpu_count()}"))
    return checks
