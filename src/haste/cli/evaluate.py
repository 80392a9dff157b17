"""`haste evaluate RUN [RUN ...] [--split test]`."""

import json
from typing import Any

from haste.cli._arguments import Parser, add_runs


def run(argv: list[str]) -> None:
    """Print the metrics of a run's model, or of several as one."""
    parser = Parser(prog="haste evaluate", description="Metrics of a finished run on a split of its data.")
    add_runs(parser)
    parser.add_argument("--split", default="test", choices=("train", "dev", "test"))
    parser.add_argument("--data", metavar="PATH", help="use this data instead of the run's data.path")
    parser.add_argument(
        "--no-filter", action="store_true", help="rank pairs of document and label that filter files list too"
    )
    parser.add_argument(
        "--propensity",
        nargs=2,
        type=float,
        metavar=("A", "B"),
        help="constants of PSP and PSnDCG (default those of the run; Wikipedia 0.5 0.4, Amazon 0.6 2.6)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)

    from haste.train.evaluate import evaluate_run
    from haste.train.together import evaluate_together, load_together

    models = load_together(options.runs, device=options.device)
    constants = models[0].config.data.propensity
    a, b = options.propensity or (constants.a, constants.b)
    how: dict[str, Any] = {"path": options.data, "propensity": (a, b), "use_filter": not options.no_filter}
    if len(models) == 1:
        metrics = evaluate_run(models[0], options.split, **how)
    else:
        metrics = evaluate_together(models, options.split, **how)
    if options.json:
        print(json.dumps({options.split: metrics, "propensity": {"a": a, "b": b}}, indent=2))
    else:
        what = f"{' + '.join(map(str, options.runs))}, {options.split}"
        print(f"{what}, in percent{', without filter' if options.no_filter else ''}")
        print(table(metrics))
        print(f"PSP and PSnDCG with a {a}, b {b}")


def table(metrics: dict[str, float]) -> str:
    """Metrics named NAME@K as a table with a row for every name and a column for every k."""
    cutoffs = sorted({int(name.partition("@")[2]) for name in metrics})
    names = list(dict.fromkeys(name.partition("@")[0] for name in metrics))
    lines = [" " * 8 + "".join(f"{f'@{k}':>8}" for k in cutoffs)]
    lines += [f"{name:<8}" + "".join(f"{metrics[f'{name}@{k}']:>8.2f}" for k in cutoffs) for name in names]
    return "\n".join(lines)
