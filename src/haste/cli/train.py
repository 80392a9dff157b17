"""`haste train DATA`, `haste train CONFIG`, both with `[--section.key value ...] [--resume]`."""

import argparse
import dataclasses
import os
import re
import typing
from pathlib import Path
from typing import Any

from haste.config import Config, check_keys, settings, unknown_key

_FLAGS = ("--print_config", "--help", "-h")
_PRESETS = ("auto", "none")
_SETTINGS_FILE = (".yaml", ".yml")


@dataclasses.dataclass
class _Arguments:
    """What the command line says, before the values of settings are looked at.

    config, data: file of settings, path of data; only one of them
    preset: auto or none
    memory_budget: bytes, or None
    options: --section.key and its value, and flags of the parser
    given: keys that the options name
    """

    config: str | None = None
    data: str | None = None
    preset: str = "none"
    memory_budget: float | None = None
    resume: bool = False
    options: list[str] = dataclasses.field(default_factory=list)
    given: list[str] = dataclasses.field(default_factory=list)


def run(argv: list[str]) -> None:
    """Train, or print the settings that a run would have."""
    arguments = _split(argv)
    options, given = _all_options(arguments)

    # Gradients of an embedding are large and new in every step; huge pages spare most of their page faults. Read by
    # PyTorch when it first allocates.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if arguments.preset == "none" and arguments.memory_budget is None:
        config = Config.from_dict(_parse(options))
        from haste.train.trainer import train

        train(config, resume=arguments.resume)
    else:
        _train_with_preset(options, given, arguments)


def given_settings(argv: list[str]) -> tuple[dict[str, Any], bool]:
    """Settings as `haste train` takes them: a file of settings or a path of data, and --section.key value.

    Returns:
        Nested dictionaries of what is given, for a preset to complete, or of every setting; and which of the two.

    Raises:
        ValueError, TypeError: an unknown option, or a value that does not fit.
    """
    arguments = _split(argv)
    if arguments.memory_budget is not None:
        raise ValueError("--memory-budget must be given to haste train or haste estimate; set what they choose instead")
    options, given = _all_options(arguments)
    if arguments.preset == "none":
        return _parse(options), False
    return _given(options, given), True


def _all_options(arguments: _Arguments) -> tuple[list[str], list[str]]:
    """Options for the parser, with those that stand for the file or the path, and the keys that are given."""
    options, given = arguments.options, arguments.given
    if arguments.config is not None:
        from haste.train.run_folder import read_yaml

        values = read_yaml(Path(arguments.config))
        check_keys(values)
        options = ["--config", arguments.config, *options] if values else options
        given = [*_keys(values), *given]
    elif arguments.data is not None:
        options, given = [f"--data.path={arguments.data}", *options], ["data.path", *given]
    return options, given


def _given(options: list[str], given: list[str]) -> dict[str, Any]:
    """Nested dictionaries of the values of the keys that are given."""
    parsed = _parse(options)
    values: dict[str, Any] = {}
    for key in given:
        *sections, name = key.split(".")
        source, target = parsed, values
        for section in sections:
            source, target = source[section], target.setdefault(section, {})
        target[name] = source[name]
    if "path" not in values.get("data", {}):
        raise ValueError("data.path must be given; haste train PATH, or set it in the settings file")
    return values


def _train_with_preset(options: list[str], given: list[str], arguments: _Arguments) -> None:
    """Train with what was given, and for the rest what fits the data and the memory budget."""
    shown = "--print_config" in options
    values = _given([option for option in options if option != "--print_config"], given)

    from haste.train.auto import complete, train_auto

    how: dict[str, Any] = {
        "resume": arguments.resume,
        "choose": arguments.preset == "auto",
        "memory_budget": arguments.memory_budget,
    }
    if shown:
        import yaml

        complete_values, reasons = complete(values, **how)
        config = Config.from_dict(complete_values)
        print("".join(f"# {line}\n" for line in reasons) + yaml.safe_dump(config.to_dict(), sort_keys=False), end="")
    else:
        train_auto(values, **how)


def _keys(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of the values in nested dictionaries."""
    keys = []
    for name, value in values.items():
        keys += _keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
    return keys


def _split(argv: list[str]) -> _Arguments:
    """Take the command line apart; unknown options are refused."""
    known = {f"--{setting.key}" for setting in settings()}
    found, paths, tokens = _Arguments(), [], iter(argv)
    preset = None
    for token in tokens:
        name, equals, value = token.partition("=")
        if token == "--resume":
            found.resume = True
        elif token in _FLAGS or name == "--print_config":
            found.options.append(token)
        elif name == "--preset":
            preset = value if equals else next(tokens, "")
            if preset not in _PRESETS:
                raise ValueError(f"--preset ({preset}) must be one of {', '.join(_PRESETS)}")
        elif name == "--memory-budget":
            found.memory_budget = _budget(value if equals else next(tokens, ""))
        elif name == "--config":
            paths.append(value if equals else next(tokens, ""))
            found.config = paths[-1]
        elif not token.startswith("-"):
            paths.append(token)
            if token.endswith(_SETTINGS_FILE):
                found.config = token
            else:
                found.data = token
        elif name not in known:
            raise unknown_key(name.lstrip("-"))
        else:
            found.given.append(name.removeprefix("--"))
            found.options.append(token)
            if not equals:
                found.options.append(next(tokens, ""))
    if len(paths) > 1:
        raise ValueError(f"haste train takes one settings file or path of data, found {', '.join(paths)}")
    if found.data is not None and "data.path" in found.given:
        raise ValueError(f"haste train takes one path of data, found {found.data} and --data.path")
    found.preset = preset or ("none" if found.data is None else "auto")
    return found


def _budget(text: str) -> float:
    from haste.cli._arguments import bytes_of

    try:
        return bytes_of(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--memory-budget {error}") from None


def _parse(argv: list[str]) -> dict[str, Any]:
    """Values of the file and the options as nested dictionaries."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="haste train",
        usage="haste train DATA | CONFIG.yaml [--section.key value ...] [--preset auto|none] [--memory-budget 12GB] "
        "[--resume]",
        description="Train a model. DATA is a file or folder of documents in any format; settings that fit it are "
        "chosen, each with its reason (--preset auto). CONFIG.yaml is a file of settings; what it does not hold has "
        "its default, or is chosen with --preset auto. Every setting can be given here too. "
        "--memory-budget lowers what was not given until training takes no more memory than that, and says why. "
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
