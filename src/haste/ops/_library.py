"""The operator namespace ``torch.ops.haste``: schemas, fakes, and the choice of kernels.

Every operator is made by `define`, with a fake (shape) function for tracing and implementations in dtypes of their own:
torch.autocast does not reach inside. On a CPU that is chunked PyTorch; on a GPU the Triton kernels of
`haste.ops.triton`, where they have one. ``HASTE_KERNELS`` overrides the choice: ``triton``, ``torch`` (chunked PyTorch,
on any device), ``reference`` (slow, for checking). It is made once for each type of device, and reported by
`kernels_in_force` and one log line; kernels that cannot run a shape raise, and never hand it to slower ones.
"""

import contextlib
import functools
import importlib
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_CHOICES = ("reference", "torch", "triton")
_CAPABILITY = (8, 0)  # tensor cores that know bfloat16
_library = torch.library.Library("haste", "DEF")
_log = logging.getLogger("haste")


def _asked() -> str | None:
    asked = os.environ.get("HASTE_KERNELS")
    if asked is not None and asked not in _CHOICES:
        raise ValueError(f"HASTE_KERNELS ({asked}) must be one of {', '.join(_CHOICES)}; unset it for the default")
    return asked


_kernels_asked = _asked()


def kernels_in_force(device: torch.device | str = "cpu") -> tuple[str, str]:
    """Return (kernels, reason): which kernels `haste.ops` runs on this type of device, and why.

    Raises:
        ValueError: HASTE_KERNELS asks for kernels that cannot run there.
    """
    return _choose(torch.device(device).type)


@functools.cache
def _choose(kind: str) -> tuple[str, str]:
    chosen, reason = _kernels_for(kind)
    _log.info("kernels on %s: %s (%s)", kind, chosen, reason)
    return chosen, reason


def _kernels_for(kind: str) -> tuple[str, str]:
    asked = _kernels_asked
    if asked == "triton" and kind == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                "HASTE_KERNELS (triton) must be torch or reference for tensors on a CPU; unset it, or set "
                "TRITON_INTERPRET=1 as well to interpret the kernels, slowly"
            )
        return asked, "HASTE_KERNELS=triton, interpreted on the CPU (TRITON_INTERPRET=1)"
    if asked is not None:
        return asked, f"HASTE_KERNELS={asked}"
    if kind == "cpu":
        return "torch", "chunked PyTorch is what a CPU runs"
    return _kernels_for_gpu(kind)


def _kernels_for_gpu(kind: str) -> tuple[str, str]:
    if kind != "cuda":
        return "torch", f"there are no Triton kernels for {kind}"
    try:
        version = importlib.import_module("triton").__version__
    except ImportError as error:
        return "torch", f"slow: triton cannot be imported ({error}); install it"
    capability = torch.cuda.get_device_capability()
    if not torch.version.hip and capability < _CAPABILITY:
        found = ".".join(map(str, capability))
        return "torch", f"slow: the GPU's compute capability ({found}) is below {'.'.join(map(str, _CAPABILITY))}"
    return "triton", f"Triton {version}, {torch.cuda.get_device_name()}"


def _implementation(name: str, kernels: str, default: Callable[..., Any]) -> Callable[..., Any]:
    if kernels == "reference":
        return getattr(importlib.import_module("haste.ops.reference"), name, default)
    if kernels == "triton":
        return importlib.import_module("haste.ops.triton").IMPLEMENTATIONS.get(name, default)
    return default


def define(schema: str, fake: Callable[..., Any], implementation: Callable[..., Any]) -> Any:
    """Define ``haste::<schema>``, register its fake and implementations, and return the callable operator.

    implementation is the chunked PyTorch one; the others are found by name.
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    torch.library.register_fake(f"haste::{name}", fake, lib=_library)

    def run(first: Tensor, *args: Any) -> Any:
        kind = first.device.type
        chosen = _implementation(name, _choose(kind)[0], implementation)
        device = torch.cuda.device(first.device) if kind == "cuda" else contextlib.nullcontext()
        with torch.autocast(kind, enabled=False), device:  # a kernel is launched on the current GPU, not its operands'
            return chosen(first, *args)

    _library.impl(name, run, "CompositeExplicitAutograd")
    return getattr(torch.ops.haste, name).default
