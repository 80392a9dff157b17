"""Where a run computes, and the process-wide settings it needs while it does."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from haste.config import Run


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device that exists.

    Raises:
        ValueError: a CUDA device is asked for and is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"run.device ({name}) must exist; PyTorch sees {count} CUDA devices, use auto")
    return device


@contextmanager
def compute_settings(run: Run) -> Iterator[torch.device]:
    """Threads and determinism as the run wants them, as they were before afterwards."""
    device = resolve_device(run.device)
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        if run.threads is not None:
            torch.set_num_threads(run.threads)
        if run.deterministic:
            # cuBLAS needs it, and reads it when CUDA starts
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        yield device
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
