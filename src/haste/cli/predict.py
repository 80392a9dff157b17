"""`haste predict RUN --input new.jsonl [--output out.jsonl]` and `haste predict RUN --text "..."`."""

import json
from pathlib import Path

from haste.cli._arguments import Parser, positive


def run(argv: list[str]) -> None:
    """Print or write the best labels of documents."""
    parser = Parser(prog="haste predict", description="Best labels of new documents.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or model folder")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, metavar="FILE", help=".jsonl or .jsonl.gz, one document a line")
    source.add_argument("--text", help="one document, as typed")
    parser.add_argument("--top-k", type=positive, default=10, metavar="K", help="labels a document (default 10)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write JSON lines here instead of the screen")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options = parser.parse_args(argv)

    from haste.data.formats import Record, read_jsonl
    from haste.train.evaluate import find_model, predict
    from haste.train.files import write_lines
    from haste.train.model_folder import load_model

    trained = load_model(find_model(options.run), device=options.device)
    if options.text is not None:
        records = iter([Record(id="1", text=options.text, labels=())])
    else:
        data = trained.config.data
        records = read_jsonl(
            options.input, text=data.text or "text", labels=data.labels or "labels", require_labels=False
        )
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
