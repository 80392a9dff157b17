"""`haste compare CONFIG_OR_DATA --systems dense,haste --output DIR`."""

import argparse
import dataclasses
import re
from pathlib import Path
from typing import Any

from haste.cli._arguments import Parser, positive

_EPILOG = """\
Every run is a process of its own, in OUTPUT/runs. Finished runs are not repeated; Ctrl-C keeps what is finished and a
checkpoint of the rest, and the same command goes on from there. More systems, seeds or sparsities may be added to an
OUTPUT later; its report shows all.
"""


def run(argv: list[str]) -> int:
    """Train the systems and write the report; returns 1 where a run ended without a result."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if options.list:
        return _list()
    if options.settings is not None:
        rest = [options.settings, *rest]
    if options.output is None or not rest:
        raise ValueError("haste compare needs CONFIG or DATA, and --output DIR; haste compare --help explains both")

    from haste.cli.train import given_settings
    from haste.config import Config
    from haste.train.auto import complete
    from haste.train.compare import as_started, first_seed, locked_comparison, open_comparison, train_all
    from haste.train.plan import Plan, planned_runs, prepare_sizes
    from haste.train.progress import print_line
    from haste.train.report import text_table, write_report
    from haste.train.report_results import read_comparison
    from haste.train.report_tables import tables

    output: Path = options.output
    systems, vary = _systems(options.systems), _variations(options.vary)
    own = _own_settings(options.set, systems)
    seeds = _numbers("--seeds", options.seeds, int) if options.seeds else []
    sparsities = _numbers("--sparsity", options.sparsity, float) if options.sparsity else (None,)
    values, incomplete = given_settings(rest)
    values.setdefault("run", {})["dir"] = str(output)
    if options.budget_epochs:
        values.setdefault("optim", {})["epochs"] = options.budget_epochs
    if incomplete:
        # Free memory may decide a setting: what is there already is taken before anything is chosen anew.
        values, reasons = complete(values, resume=True)
        for line in reasons:
            print_line(line)
    config = as_started(Config.from_dict(values), output)
    seeds = seeds or [config.run.seed]
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=first_seed(output, seeds)))
    plan = Plan(
        config=config,
        systems=systems,
        seeds=seeds,
        sparsities=sparsities,
        vary=vary,
        settings=own,
    )
    sizes = prepare_sizes(config, [config.run.seed, *seeds])
    runs = planned_runs(plan, sizes, output)
    if options.dry_run:
        _show(runs, config)
        return 0
    with locked_comparison(output):
        open_comparison(config, output)
        failed = train_all(runs, output, after=lambda: write_report(output), keep_checkpoints=options.keep_checkpoints)
        page = write_report(output)
        found = tables(read_comparison(output))
    print("\n\n".join(text_table(table) for table in found[:2]))
    for name, why in failed.items():
        print(f"\n{name} has no result: {why}")
    print(f"\n{page} and report.md beside it show the rest")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="haste compare",
        usage="haste compare CONFIG.yaml | DATA --output DIR [options] [--section.key value ...]",
        description="Train several kinds of output layer on one data set with the same encoder and seeds, and write "
        "tables and plots of accuracy, memory and time. CONFIG, DATA and --section.key as for haste train.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("settings", nargs="?", metavar="CONFIG | DATA", help="settings that all runs share, or data to choose them for")
    add("--systems", default="dense,haste", help="names separated by commas (default dense,haste; see --list)")
    add("--seeds", help="whole numbers separated by commas (default run.seed)")
    add("--output", type=Path, metavar="DIR", help="folder of the comparison")
    add("--budget-epochs", type=positive, metavar="N", help="epochs of every run, instead of the settings'")
    add(
        "--sparsity",
        help="of labels beyond the head, 1 - fan-in / inputs; several separated by commas (default as "
        "the settings say, else 0.83)",
    )
    add(
        "--vary",
        action="append",
        default=[],
        metavar="KEY=V1,V2",
        help="an ablation: one more run of every system for "
        "each value; rewire.regrow=none keeps links as they are; may be repeated",
    )
    add("--set", action="append", default=[], metavar="SYSTEM.KEY=VALUE", help="a setting of one system only")
    add("--keep-checkpoints", action="store_true", help="of finished runs; their models stay in any case")
    add("--dry-run", action="store_true", help="show the runs and what each changes, train nothing")
    add("--list", action="store_true", help="show the systems")
    return parser


def _list() -> int:
    from haste.train.systems import SYSTEMS

    size = max(map(len, SYSTEMS))
    for name, system in SYSTEMS.items():
        print(f"{name:<{size}}  {system.text}")
    return 0


def _systems(text: str) -> list[str]:
    import difflib

    from haste.train.systems import SYSTEMS

    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if not name:
            raise ValueError(f"--systems ({text}) must be names separated by commas; one of them is empty")
        if name not in SYSTEMS:
            close = difflib.get_close_matches(name, SYSTEMS, n=1, cutoff=0.0)[0]
            raise ValueError(f"--systems ({name}) must name systems; the nearest is {close}, --list shows all")
    return names


def _numbers(option: str, text: str, kind: type) -> list[Any]:
    try:
        return list(dict.fromkeys(kind(part) for part in text.split(",")))
    except ValueError:
        raise ValueError(f"{option} ({text}) must be numbers separated by commas") from None


def _variations(texts: list[str]) -> list[dict[str, Any]]:
    """Settings that change together, of every KEY=V1,V2; a value may bring others along, +KEY=VALUE."""
    found = []
    for text in texts:
        first, equals, values = text.partition("=")
        if not equals or not values:
            raise ValueError(f"--vary ({text}) must be KEY=V1,V2")
        for value in values.split(","):
            parts = re.split(r"\+(?=[\w.]+=)", f"{first}={value}")
            pairs = [part.partition("=") for part in parts]
            found.append(dict(_setting("--vary", text, key, value) for key, _, value in pairs))
    return found


def _own_settings(texts: list[str], systems: list[str]) -> dict[str, dict[str, Any]]:
    """System -> settings of every SYSTEM.KEY=VALUE."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, _, setting = text.partition(".")
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set ({text}) must be SYSTEM.KEY=VALUE")
        name = _systems(name)[0]
        if name not in systems:
            raise ValueError(
                f"--set ({text}) must be of a system that is compared ({', '.join(systems)}); add it to --systems"
            )
        key, parsed = _setting("--set", text, key, value)
        found.setdefault(name, {})[key] = parsed
    return found


def _setting(option: str, text: str, key: str, value: str) -> tuple[str, Any]:
    from haste.train.systems import parse_value

    key, parsed = parse_value(key, value)
    if key in ("run.dir", "run.seed"):
        raise ValueError(f"{option} ({text}) must not set {key}; --output and --seeds do")
    return key, parsed


def _show(runs: list[Any], config: Any) -> None:
    """Every run and the settings in which it differs from those that all share."""
    from haste.train.run_folder import differing_keys

    shared = dataclasses.asdict(config)
    for run in runs:
        changes = differing_keys(shared, run.config.to_dict())
        kept = {key: new for key, (_, new) in changes.items() if key not in ("run.dir", "run.diagnostics_every")}
        print(f"{run.name}\n    " + ("  ".join(f"{key} {value}" for key, value in kept.items()) or "as the settings"))
