"""Sparse, dynamically trained output layers for models with a thousand to a hundred million labels."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from haste.classifier import Classifier as Classifier

__version__ = "0.1.0"
__all__ = ["Classifier", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Classifier":  # it imports scikit-learn, which not everyone needs
        from haste.classifier import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
