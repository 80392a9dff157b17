"""Parsing shared by the subcommands."""

import argparse
import typing
from typing import NoReturn

from haste.config import Data, settings

READING = ("dev", "test", "format", "input", "text", "labels", "id", "separator")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are raised, so that every error of use looks the same."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; {self.prog} --help explains the options")


def positive(text: str) -> int:
    """An integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"({value}) must be at least 1")
    return value


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
