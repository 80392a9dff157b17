"""Numbers that are not finite: a run that has diverged ends with a message, and JSON, which has none, says null."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from haste.config import Optim

_CHUNK = 1 << 22  # numbers looked at together


def require_finite(what: str, value: float, optim: Optim) -> None:
    """Raise ValueError, which says what to lower, for a number of a run that has diverged."""
    if not math.isfinite(value):
        raise ValueError(
            f"{what} ({value}) must stay finite; "
            f"lower optim.encoder.lr ({optim.encoder.lr}) or optim.output.lr ({optim.output.lr})"
        )


def require_finite_numbers(found: Mapping[str, Any], optim: Optim) -> None:
    """The same for every number and list of numbers that was measured."""
    for name, value in found.items():
        for number in value if isinstance(value, list) else [value]:
            require_finite(name, number, optim)


def require_finite_weights(named: Iterable[tuple[str, Tensor]], optim: Optim) -> None:
    """The same for the weights of a model, by name; takes memory for a few of them at a time."""
    for name, tensor in named:
        for part in tensor.detach().flatten().split(_CHUNK):
            finite = part.isfinite()
            if not finite.all():
                require_finite(f"a weight of {name}", float(part[~finite][0]), optim)


def jsonable(value: Any) -> Any:
    """The value with null for every number that is not finite, which JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    return [jsonable(item) for item in value] if isinstance(value, list | tuple) else value
