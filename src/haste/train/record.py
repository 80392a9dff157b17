"""What a run leaves on record about itself: versions, device, kernels, memory, commit."""

import platform
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import haste
from haste import ops
from haste.bench.machine import commit, device_name, package_version
from haste.nn import HeadTail
from haste.train.timing import StepTimes

_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "safetensors", "transformers", "tokenizers")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, commit, device, threads and the kernels in force."""
    kernels, reason = ops.kernels_in_force(device)
    return {
        "haste": haste.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "kernels": kernels,
        "kernels_reason": reason,
    }


def peak_memory() -> int:
    """Most main memory this process ever held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_peaks(times: StepTimes) -> dict[str, int]:
    """Most bytes of a run so far: of the process, and of PyTorch's allocator where the device is a GPU."""
    device = times.device
    if device.type != "cuda":
        return {"peak_memory_bytes": max(peak_memory(), times.peak)}
    of_device = max(torch.cuda.max_memory_allocated(device), times.peak)
    return {"peak_memory_bytes": peak_memory(), "peak_device_memory_bytes": of_device}


def model_size(model: nn.Module) -> dict[str, dict[str, float]]:
    """Of every part of a model: numbers in its parameters, bytes of parameters and buffers.

    Of an output layer also its labels in the head and, of the tail as it was built, inputs, fan_in and sparsity.
    """
    sizes: dict[str, dict[str, float]] = {}
    for name, part in model.named_children():
        parameters = list(part.parameters())
        sizes[name] = {
            "parameters": sum(tensor.numel() for tensor in parameters),
            "bytes": sum(tensor.nbytes for tensor in (*parameters, *part.buffers())),
        }
        if isinstance(part, HeadTail):
            sizes[name]["head_labels"] = part.num_head_labels
            if part.tail is not None:
                tail = part.tail
                sizes[name] |= {"inputs": tail.in_features, "fan_in": tail.fan_in, "sparsity": round(tail.sparsity, 6)}
    return sizes
