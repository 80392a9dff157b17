"""`haste predict RUN [RUN ...] --input FILE [--output out.jsonl]` and `haste predict RUN --text "..."`."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haste.cli._arguments import Parser, add_reading_options, add_runs, positive, reading_options

if TYPE_CHECKING:
    from haste.data.source import Record
    from haste.train.model_folder import TrainedModel

_READS = {"text": "texts", "sparse": "sparse features", "dense": "dense features"}


def run(argv: list[str]) -> None:
    """Print or write the best labels of documents."""
    parser = Parser(prog="haste predict", description="Best labels of new documents.")
    add_runs(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, metavar="FILE", help="new documents in any format")
    source.add_argument("--text", help="one document, as typed")
    parser.add_argument("--top-k", type=positive, default=10, metavar="K", help="labels a document (default 10)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write JSON lines here instead of the screen")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_reading_options(parser)
    options = parser.parse_args(argv)

    from haste.data.formats import Record
    from haste.train.evaluate import predict
    from haste.train.files import write_lines
    from haste.train.together import load_together, predict_together

    models = load_together(options.runs, device=options.device)
    trained = models[0]
    if any(model.inputs != trained.inputs for model in models):
        raise ValueError("the models must read the same kind of documents: all texts, or all features")
    if options.text is not None:
        if trained.inputs != "text":
            raise ValueError(
                f"--text must be --input FILE with features: {options.runs[0]} reads {_READS[trained.inputs]}"
            )
        records = iter([Record(id="1", text=options.text, labels=())])
    else:
        records = _read(options.input, reading_options(options), trained)
    rows = (
        predict(trained, records, options.top_k)
        if len(models) == 1
        else predict_together(models, records, options.top_k)
    )
    if options.output is not None:
        write_lines(options.output, (json.dumps(row, ensure_ascii=False) for row in rows))
    elif options.text is not None:
        for row in rows:
            for label in row["labels"]:
                value = label.get("probability", label.get("score"))
                print(f"{value:8.4f}  {label['label']}")
    else:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))


def _read(path: Path, reading: dict[str, Any], trained: "TrainedModel") -> Iterator["Record"]:
    """Documents of a file. Raises ValueError if they are not what the model reads."""
    from haste.data.formats import DataError, detect_input

    source = detect_input(path, replace(trained.config.data, **reading))
    if source.kind != trained.inputs:
        raise DataError(f"{path}: holds {_READS[source.kind]}, the model reads {_READS[trained.inputs]}")
    if source.num_features not in (None, trained.num_inputs):
        raise DataError(
            f"{path}: has {source.num_features:,} columns, the model reads {trained.num_inputs:,}; "
            "make them as those that it was trained on"
        )
    return source.documents("test")
