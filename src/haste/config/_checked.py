"""The base of the sections of a configuration: every field is checked against its annotation."""

import dataclasses
import types
import typing
from typing import Any, ClassVar, Literal


def require(ok: bool, name: str, value: object, must: str, remedy: str = "") -> None:
    if not ok:
        raise ValueError(f"{name} ({value}) must {must}" + (f"; {remedy}" if remedy else ""))


class Checked:
    """Base of the sections: checks every field against its annotation before the section's own checks."""

    _section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            object.__setattr__(self, name, _checked(self._key(name), getattr(self, name), hint))
        self._check()

    def _check(self) -> None:
        pass

    @classmethod
    def _key(cls, name: str) -> str:
        return f"{cls._section}.{name}" if cls._section else name

    def _at_least(self, low: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            require(value is None or value >= low, self._key(name), value, f"be at least {low}")


def hints(section: type[Checked]) -> dict[str, Any]:
    """Name -> annotation of every field of a section."""
    hints = typing.get_type_hints(section)
    return {spec.name: hints[spec.name] for spec in dataclasses.fields(section)}  # type: ignore[arg-type]


def is_section(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Checked)


def _checked(key: str, value: Any, hint: Any) -> Any:
    """`value` if it fits the annotation (an int fits a float); otherwise raises."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        require(value in choices, key, value, "be one of " + ", ".join(choices))
        return value
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        found = f"{type(value).__name__} {value!r}"
        raise TypeError(f"{key} ({found}) must be of type {hint.__name__}")
    if hint is float:
        require(value - value == 0.0, key, value, "be finite")
    return value
