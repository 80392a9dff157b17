"""`haste train CONFIG [--section.key value ...] [--resume]`."""

import argparse
import dataclasses
import os
import re
import typing
from pathlib import Path
from typing import Any

from haste.config import Config, check_keys, settings, unknown_key

_FLAGS = ("--print_config", "--help", "-h")


def run(argv: list[str]) -> None:
    """Train, or print the settings that a run would have."""
    resume = "--resume" in argv
    file, rest = _split([token for token in argv if token != "--resume"])
    if file is not None:
        from haste.train.run_folder import read_yaml

        values = read_yaml(Path(file))
        check_keys(values)
        rest = ["--config", file, *rest] if values else rest
    config = Config.from_dict(_parse(rest))

    # Gradients of an embedding are large and new in every step; huge pages spare most of their page faults. Read by
    # PyTorch when it first allocates.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from haste.train.trainer import train

    train(config, resume=resume)


def _split(argv: list[str]) -> tuple[str | None, list[str]]:
    """The settings file, wherever it stands, and the options; unknown options are refused."""
    known = {f"--{setting.key}" for setting in settings()}
    files, options, tokens = [], [], iter(argv)
    for token in tokens:
        name, equals, _ = token.partition("=")
        if token in _FLAGS or name == "--print_config":
            options.append(token)
        elif name == "--config":
            files.append(token.partition("=")[2] if equals else next(tokens, ""))
        elif not token.startswith("-"):
            files.append(token)
        elif name not in known:
            raise unknown_key(name.lstrip("-"))
        else:
            options.append(token)
            if not equals:
                options.append(next(tokens, ""))
    if len(files) > 1:
        raise ValueError(f"haste train takes one settings file, found {', '.join(files)}")
    return (files[0] if files else None), options


def _parse(argv: list[str]) -> dict[str, Any]:
    """Values of the file and the options as nested dictionaries."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="haste train",
        usage="haste train CONFIG [--section.key value ...] [--resume]",
        description="Train a model. CONFIG is a YAML file; every setting in it can be overridden here. "
        "--resume continues the run in run.dir from its last checkpoint.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="the YAML file, as an option")
    groups: dict[str, Any] = {}
    for setting in settings():
        section = setting.key.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        default = None if setting.default is dataclasses.MISSING else setting.default
        groups[section].add_argument(
            f"--{setting.key}", type=setting.type, default=default, help=setting.help.replace("%", "%%")
        )
    try:
        values = parser.parse_args(argv).as_dict()
    except argparse.ArgumentError as error:
        raise _clear(str(error)) from None
    values.pop("config")
    if values["data"]["path"] is None:
        del values["data"]["path"]
    return values


def _clear(message: str) -> Exception:
    """jsonargparse's complaint about a value in our own words, where it is one."""
    found = re.search(r'[Kk]ey "([\w.]+)":.*(?:Got|Given) value: (.*)', message, re.DOTALL)
    kinds = {setting.key: setting.type for setting in settings()}
    if found is None or found[1] not in kinds:
        return ValueError(" ".join(message.split()))
    key, value, kind = found[1], found[2].strip(), kinds[found[1]]
    if typing.get_origin(kind) is typing.Literal:
        return ValueError(f"{key} ({value}) must be one of {', '.join(typing.get_args(kind))}")
    name = kind.__name__ if isinstance(kind, type) else str(kind).replace("None", "null")
    return TypeError(f"{key} ({value}) must be of type {name}")
