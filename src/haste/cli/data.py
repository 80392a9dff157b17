"""`haste data check PATH...` and `haste data convert PATH FOLDER --format F`."""

import json
import sys
import time
import typing
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from haste.cli._arguments import Parser, add_reading_options, reading_options
from haste.config import Data

_SAY_EVERY = 10.0  # seconds
_FORMATS = [name for name in typing.get_args(typing.get_type_hints(Data)["format"]) if name != "auto"]
_USAGE = """usage: haste data check PATH... [--json]
       haste data convert PATH FOLDER --format FORMAT

check says what data sets are taken for, what is in them, and everything that is wrong with them.
convert writes a data set in another format.

haste data check --help and haste data convert --help explain the options."""


def run(argv: list[str]) -> int:
    """Check or convert data sets; 1 where a check finds a problem."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    commands = {"check": _check, "convert": _convert}
    if argv[0] not in commands:
        raise ValueError(f"haste data {argv[0]} must be haste data check or haste data convert")
    return commands[argv[0]](argv[1:])


def _check(argv: list[str]) -> int:
    parser = Parser(
        prog="haste data check",
        description="What data sets are taken for, what is in them, and everything that is wrong with them. "
        "The exit status is 1 if anything is.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="folder, file, or what names of files begin with")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_reading_options(parser)
    options = parser.parse_args(argv)

    from haste.cli._report import as_json, as_text, problems_text
    from haste.data.check import Problems, check
    from haste.data.formats import DataError, detect

    found: list[dict[str, Any]] = []
    problems = 0
    for path in options.paths:
        try:
            report = check(detect(Data(path=path, **reading_options(options))), tick=_progress())
        except DataError as error:
            wrong = Problems()
            wrong(error)
            found.append({"path": path, "problems": asdict(wrong)})
            text = f"{path}\n{problems_text(wrong)}"
        else:
            wrong = report.problems
            found.append(as_json(report))
            text = as_text(report)
        problems += wrong.total
        if not options.json:
            print(text if len(found) == 1 else f"\n{text}", flush=True)
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    return 1 if problems else 0


def _convert(argv: list[str]) -> int:
    parser = Parser(prog="haste data convert", description="Write a data set in another format.")
    parser.add_argument("path", metavar="PATH", help="folder, file, or what names of files begin with")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder, or an empty one")
    parser.add_argument("--format", required=True, choices=_FORMATS, metavar="FORMAT", help=", ".join(_FORMATS))
    add_reading_options(parser)
    options = parser.parse_args(argv)

    from haste.data.convert import convert
    from haste.train.progress import print_line

    config = Data(path=options.path, **reading_options(options))
    for path in convert(config, options.folder, options.format, log=print_line):
        print(path)
    return 0


def _progress() -> Callable[[str, int], None]:
    """Says now and then how far a long reading has come."""
    last = time.monotonic()

    def tick(split: str, documents: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _SAY_EVERY:
            last = time.monotonic()
            print(f"{split}: {documents:,} documents read", file=sys.stderr, flush=True)

    return tick
