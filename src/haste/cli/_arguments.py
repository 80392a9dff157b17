"""Parsing shared by the subcommands."""

import argparse
from typing import NoReturn


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
