"""`haste predict RUN --input FILE [--output out.jsonl]` and `haste predict RUN --text "..."`."""

import json
from dataclasses import replace
from pathlib import Path

from haste.cli._arguments import Parser, add_reading_options, positive, reading_options


def run(argv: list[str]) -> None:
    """Print or write the best labels of documents."""
    parser = Parser(prog="haste predict", description="Best labels of new documents.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or model folder")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, metavar="FILE", help="new documents in any format")
    source.add_argument("--text", help="one document, as typed")
    parser.add_argument("--top-k", type=positive, default=10, metavar="K", help="labels a document (default 10)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write JSON lines here instead of the screen")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_reading_options(parser)
    options = parser.parse_args(argv)

    from haste.data.formats import Record, detect_input
    from haste.train.evaluate import find_model, predict
    from haste.train.files import write_lines
    from haste.train.model_folder import load_model

    trained = load_model(find_model(options.run), device=options.device)
    if options.text is not None:
        records = iter([Record(id="1", text=options.text, labels=())])
    else:
        data = replace(trained.config.data, **reading_options(options))
        records = detect_input(options.input, data).documents("test")
    rows = predict(trained, records, options.top_k)
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
