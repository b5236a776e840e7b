"""What this machine is: processor, memory, system and the versions that numbers depend on."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from paperworks import __version__
from paperworks.lab.fingerprint import package_version
from paperworks.lab.records import Machine, digest

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "transformers")


def cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _accelerator() -> str:
    import torch

    return str(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else ""


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """The machine that this process runs on."""
    facts: dict[str, Any] = {
        "cpu": _processor(),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "accelerator": _accelerator(),
        "versions": {"paperworks": __version__, **{p: v for p in PACKAGES if (v := package_version(p))}},
    }
    return Machine(id=digest([facts, platform.node()])[:16], **facts)
