"""The operator namespace ``torch.ops.haste``: schemas, fakes, and the choice of kernels.

Every operator is made by `define`, with a fake (shape) function for tracing and one PyTorch implementation that runs
on any device, in dtypes of its own: torch.autocast does not reach inside. ``HASTE_KERNELS`` overrides the choice:
``torch`` (chunked PyTorch), ``reference`` (slow, for checking). The choice is made once, at import, and reported by
`kernels_in_force` and one log line.
"""

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_CHOICES = ("reference", "torch")
_library = torch.library.Library("haste", "DEF")
_log = logging.getLogger("haste")


def _choose() -> tuple[str, str]:
    asked = os.environ.get("HASTE_KERNELS")
    if asked is None:
        return "torch", "chunked PyTorch, the only kernels for this device in this version"
    if asked not in _CHOICES:
        raise ValueError(f"HASTE_KERNELS ({asked}) must be one of {', '.join(_CHOICES)}; unset it for the default")
    return asked, f"HASTE_KERNELS={asked}"


_kernels, _reason = _choose()
_logged = False


def kernels_in_force() -> tuple[str, str]:
    """Return (kernels, reason): which kernels `haste.ops` runs, and why."""
    return _kernels, _reason


def log_choice() -> None:
    """Log once which kernels are in force."""
    global _logged
    if not _logged:
        _logged = True
        _log.info("kernels: %s (%s)", _kernels, _reason)


def define(schema: str, fake: Callable[..., Any], implementation: Callable[..., Any]) -> Any:
    """Define ``haste::<schema>``, register its fake and implementation, and return the callable operator."""
    name = schema.partition("(")[0]
    _library.define(schema)
    torch.library.register_fake(f"haste::{name}", fake, lib=_library)
    if _kernels == "reference":
        from haste.ops import reference

        implementation = getattr(reference, name, implementation)

    def run(first: Tensor, *args: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return implementation(first, *args)

    _library.impl(name, run, "CompositeExplicitAutograd")
    return getattr(torch.ops.haste, name).default
