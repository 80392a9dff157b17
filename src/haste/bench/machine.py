"""What a measurement was made on: device, threads, versions, commit."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from haste import __version__, ops

_PACKAGES = ("torch", "numpy", "triton")


def describe(device: torch.device) -> dict[str, Any]:
    """Return device, versions and commit, for the record of a measurement."""
    return {
        "device": {
            "type": device.type,
            "name": device_name(device),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "kernels": ops.kernels_in_force(device)[0],
            **({"memory": torch.cuda.mem_get_info(device)[1], "driver": driver()} if device.type == "cuda" else {}),
        },
        "versions": {
            "haste": __version__,
            "python": platform.python_version(),
            **{name: found for name in _PACKAGES if (found := package_version(name))},
            **({"cuda": torch.version.cuda} if device.type == "cuda" else {}),
        },
        "commit": commit(),
    }


def driver() -> str | None:
    """Return the version of the NVIDIA driver; None where nvidia-smi does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.splitlines() or [""])[0].strip() or None


def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    """Return the name that the device is sold under."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine()


def commit() -> str | None:
    """Return the commit this package runs from, "-dirty" appended where changed; outside a checkout $HASTE_COMMIT."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return os.environ.get("HASTE_COMMIT")
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
