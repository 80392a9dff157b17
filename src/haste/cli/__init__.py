"""The command `haste`: one short module a subcommand, imported only when it is asked for."""

import importlib
import os
import sys
from collections.abc import Sequence

_COMMANDS = {
    "data": "check data sets, or convert them to another format",
    "train": "train a model on data in any format, or from a YAML file of settings",
    "compare": "train several kinds of output layer on one data set, and report",
    "evaluate": "metrics of a finished run on a split of its data",
    "predict": "best labels of new documents",
    "estimate": "memory and least time of a configuration, before it runs",
    "info": "versions, device and kernels; summary of a run",
    "bench": "check the kernels, then time them",
    "demo": "train on the Python code of this machine and show what comes out",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `haste COMMAND ...`.

    Returns: the exit status: 0, 1 if a check failed, 2 after an error of use, 130 when interrupted.
    """
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader of our output is gone; keep the interpreter from complaining when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as stop:
        _say(str(stop) or "interrupted")
        return 130
    except (ValueError, TypeError, OSError) as error:
        if os.environ.get("HASTE_DEBUG"):
            raise
        _say(f"error: {error}")
        return 2
    return status


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        from haste import __version__

        print(f"haste {__version__}")
        return 0
    command, *rest = arguments
    if command not in _COMMANDS:
        import difflib

        close = difflib.get_close_matches(command, _COMMANDS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown command {command}; the nearest is {close}, and haste --help lists all")
    return importlib.import_module(f"haste.cli.{command}").run(rest) or 0


def _say(text: str) -> None:
    print(f"haste: {' '.join(text.split())}", file=sys.stderr)


def _usage() -> str:
    lines = [f"  {name:<10} {text}" for name, text in _COMMANDS.items()]
    return "\n".join(
        [
            "usage: haste COMMAND ...",
            "",
            "Sparse, dynamically trained output layers for models with very many labels.",
            "",
            *lines,
            "",
            "haste COMMAND --help explains one; haste --version says which version this is.",
            "HASTE_DEBUG=1 shows where an error came from.",
        ]
    )
