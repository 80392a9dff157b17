"""`haste info [RUN]`."""

import json
from pathlib import Path
from typing import Any

from haste.cli._arguments import Parser


def run(argv: list[str]) -> None:
    """Print versions, device and kernels, or the summary of a run."""
    parser = Parser(prog="haste info", description="Versions, device and kernels; with RUN, a run's summary.")
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="run folder")
    options = parser.parse_args(argv)
    if options.run is None:
        from haste.train.device import resolve_device
        from haste.train.record import environment

        _show(environment(resolve_device("auto")))
        return
    record = options.run / "run.json"
    if not record.is_file():
        raise ValueError(f"{options.run} must be a run folder; it has no run.json")
    _show(json.loads(record.read_text(encoding="utf-8")))
    metrics = options.run / "metrics.json"
    if metrics.is_file():
        from haste.cli.evaluate import table

        values = json.loads(metrics.read_text(encoding="utf-8"))
        propensity = values["propensity"]
        for split in ("dev", "test"):
            if split in values:
                print(f"\n{split}, in percent (PSP and PSnDCG with a {propensity['a']}, b {propensity['b']})")
                print(table(values[split]))


def _show(values: dict[str, Any], indent: str = "") -> None:
    width = max(map(len, values))
    for name, value in values.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            _show(value, indent + "  ")
        else:
            shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
            print(f"{indent}{name:<{width}}  {'-' if value is None else shown}")
