"""What a process holds, to set beside an estimate: of PyTorch's allocator on a GPU, else of the whole process."""

from pathlib import Path

import torch


def held(device: torch.device) -> int:
    """Return the bytes held now."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS:")


def peak(device: torch.device) -> int:
    """Return the most bytes held since `forget_peak`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM:")


def forget_peak(device: torch.device) -> None:
    """Start anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status does not tell {name}")
