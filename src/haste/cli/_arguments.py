"""Parsing shared by the subcommands."""

import argparse
import typing
from pathlib import Path
from typing import NoReturn

from haste.config import Data, settings

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_LEAST_BYTES = 1e6  # fewer are a number whose unit was forgotten
READING = ("dev", "test", "format", "input", "text", "labels", "id", "separator")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are raised, so that every error of use looks the same."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; {self.prog} --help explains the options")


def add_runs(parser: Parser) -> None:
    """Add the positional arguments of commands that take trained models."""
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="run folder or model folder; of several, the mean of their log-probabilities is ranked",
    )


def positive(text: str) -> int:
    """An integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"({value}) must be at least 1")
    return value


def bytes_of(text: str) -> float:
    """A number of bytes such as 12GB, 900MiB or 4e9.

    Raises:
        argparse.ArgumentTypeError: anything else, none at all, or fewer than 10^6 without a unit.
    """
    number = text.strip().lower().removesuffix("b")
    unit = number.lstrip("0123456789.e+-")
    try:
        count = float(number[: len(number) - len(unit)]) * _UNITS[unit]
    except (ValueError, KeyError):
        count = 0.0
    if not 0 < count < float("inf"):
        raise argparse.ArgumentTypeError(f"({text}) must be a number of bytes, as 12GB or 900MiB")
    if not unit and count < _LEAST_BYTES:
        raise argparse.ArgumentTypeError(f"({text}) must have a unit, as 12GB or 900MiB")
    return count


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """The settings of section data that decide how files are read, as --data.NAME."""
    group = parser.add_argument_group("how files are read (as in the settings of a run)")
    for setting in settings(Data):
        name = setting.key.partition(".")[2]
        if name in READING:
            choices = typing.get_args(setting.type) if typing.get_origin(setting.type) is typing.Literal else None
            shown = None if choices else name.upper()
            group.add_argument(
                f"--{setting.key}",
                dest=f"data_{name}",
                default=argparse.SUPPRESS,
                choices=choices,
                metavar=shown,
                help=setting.help,
            )


def reading_options(options: argparse.Namespace) -> dict[str, typing.Any]:
    """The settings of section data that were given, without "data."."""
    return {name: getattr(options, f"data_{name}") for name in READING if hasattr(options, f"data_{name}")}
