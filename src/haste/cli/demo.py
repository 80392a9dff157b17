"""`haste demo [--compare]`: a whole run on data that every machine with Python has."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haste.cli._arguments import Parser

SETTINGS: dict[str, Any] = {
    "data": {"min_df": 2, "ngrams": 2},
    "encoder": {"features": 512, "dropout": 0.3},
    "output": {"fan_in": 64, "group_size": 16, "head_ratio": 0.1},
    "rewire": {"interval": 150, "fraction": 0.25, "end": 0.66},
    "optim": {"epochs": 12, "batch_size": 128, "encoder": {"lr": 5.0e-3}, "output": {"lr": 0.05, "rarity": 0.5}},
    "run": {"seed": 0},
}
DENSE: dict[str, Any] = {"output": {"fan_in": SETTINGS["encoder"]["features"]}, "rewire": {"interval": 0}}
TEXTS = (
    "read a json file and return the parsed object",
    "check whether the path exists and is a directory",
    "compile a regular expression and replace every match",
    "raise an error unless the array has two dimensions",
    "start a thread that waits for the queue",
)
_COLUMNS = ("P@1", "P@3", "P@5", "nDCG@5", "PSP@5")


@dataclass(frozen=True)
class _Row:
    """One line of the result: metrics in percent, and what they cost."""

    name: str
    metrics: dict[str, float]
    output_bytes: int | None = None
    memory_bytes: int | None = None
    seconds: float | None = None


def run(argv: list[str]) -> None:
    """Make the data, train, and show metrics and answers."""
    parser = Parser(
        prog="haste demo",
        description="Train on the Python code of this machine: from what functions say they do to what they call.",
    )
    parser.add_argument("--compare", action="store_true", help="train the dense layer too")
    parser.add_argument("--folder", type=Path, help="where data and runs go (default: ~/.cache/haste/demo)")
    options = parser.parse_args(argv)
    folder = options.folder or _cache() / "demo"

    from haste.data.demo import write_demo_data
    from haste.train.progress import print_line

    data = write_demo_data(folder / "data", log=print_line)
    print(
        f"Data: {data}\nA document is the name and docstring of a function, its labels are the names it calls.",
        flush=True,
    )
    sparse = _train(folder / "haste", data, {})
    rows = [_frequent(sparse, data), _row("HASTE", sparse)]
    if options.compare:
        rows.append(_row("dense", _train(folder / "dense", data, DENSE)))
    print(f"\nTest documents, in percent\n{_table(rows)}\n")
    _answer(sparse)
    print(f'Ask it yourself:  haste predict {sparse} --text "open a socket and send the request"')


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "haste"


def _train(run: Path, data: Path, changes: dict[str, Any]) -> Path:
    """Train in a process of its own, so that its peak memory is its own; replaces the demo's earlier run."""
    from haste.config import Config
    from haste.train.files import write_json

    values = {name: {**section, **changes.get(name, {})} for name, section in SETTINGS.items()}
    values["data"]["path"], values["run"]["dir"] = str(data), str(run)
    Config.from_dict(values)
    if (run / "config.yaml").is_file():
        shutil.rmtree(run)
    run.parent.mkdir(parents=True, exist_ok=True)
    settings = run.with_name(run.name + ".yaml")
    write_json(settings, values)  # JSON is YAML
    done = subprocess.run([sys.executable, "-m", "haste.cli", "train", str(settings)], check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt("demo interrupted")
    if done.returncode:
        raise ValueError(f"training in {run} must succeed; it ended with status {done.returncode}")
    return run


def _row(name: str, run: Path) -> _Row:
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"]
    size, memory = record["model"]["output"]["bytes"], record["peak_memory_bytes"]
    return _Row(name, metrics, size, memory, record["seconds"]["train"])


def _frequent(run: Path, data: Path) -> _Row:
    """The most frequent labels for every document: what a model has to beat."""
    import numpy as np

    from haste.train.evaluate import K, find_model, read_split, score_ranking
    from haste.train.model_folder import load_model

    trained = load_model(find_model(run))
    test = read_split(trained, "test", str(data))
    best = np.argsort(-trained.labels.counts, kind="stable")[:K]
    metrics = score_ranking(np.tile(best, (len(test), 1)), test.truth, trained.labels, num_points=trained.num_points)
    return _Row("most frequent labels", metrics)


def _table(rows: list[_Row]) -> str:
    heads = [*_COLUMNS, "output layer", "peak memory", "training"]
    lines = [" " * 22 + "".join(f"{head:>{max(8, len(head) + 2)}}" for head in heads)]
    for row in rows:
        cells = [f"{row.metrics[name]:.2f}" for name in _COLUMNS]
        for value in (row.output_bytes, row.memory_bytes):
            cells.append("-" if value is None else f"{value / 2**20:.1f} MiB")
        cells.append("-" if row.seconds is None else f"{row.seconds:.0f} s")
        widths = [max(8, len(head) + 2) for head in heads]
        lines.append(f"{row.name:<22}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
    return "\n".join(lines)


def _answer(run: Path) -> None:
    from haste.data.formats import Record
    from haste.train.evaluate import predict

    records = [Record(id=str(number), text=text, labels=()) for number, text in enumerate(TEXTS)]
    for text, row in zip(TEXTS, predict(run, records, 5), strict=True):
        found = "  ".join(f"{label['label']} {label['probability']:.2f}" for label in row["labels"])
        print(f"{text}\n    {found}")
    print()
