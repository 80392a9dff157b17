"""The report of a comparison: report.md with plots/*.svg, report.html in one file, report.json."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from haste.train.files import write_json, write_text
from haste.train.report_plots import plots
from haste.train.report_results import (
    Comparison,
    epoch_seconds,
    final_weights,
    links,
    read_comparison,
    sparsity,
    step_milliseconds,
    step_parts,
)
from haste.train.report_settings import changes_of, conditions
from haste.train.report_tables import Table, tables
from haste.train.systems import SYSTEMS


def write_report(output: Path) -> Path:
    """Write the report of what is finished in the folder of a comparison.

    Returns:
        report.html.

    Raises:
        ValueError: runs with the same settings of the data were trained on different documents.
    """
    comparison = read_comparison(output)
    title, notes = _title(comparison), conditions(comparison) if comparison.entrants else []
    found, drawn = tables(comparison), plots(comparison)
    (output / "plots").mkdir(exist_ok=True)
    for name, (_, picture) in drawn.items():
        write_text(output / "plots" / f"{name}.svg", picture)
    write_json(output / "report.json", summary(comparison))
    write_text(output / "report.md", _markdown(title, notes, found, drawn, comparison))
    write_text(output / "report.html", _page(title, notes, found, drawn, comparison))
    return output / "report.html"


def text_table(table: Table) -> str:
    """A table for a terminal."""
    cells = [list(table.heads), *map(list, table.rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.heads))]
    lines = []
    for row in cells:
        first, *others = (
            f"{c:<{w}}" if n == 0 else f"{c:>{w}}" for n, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join([table.title, *lines])


def summary(comparison: Comparison) -> dict[str, Any]:
    """The numbers of a report for programs: by system, what it changes, and every value of every seed."""
    split = comparison.split
    return {
        "split": split,
        "settings": comparison.shared,
        "systems": {
            e.name: {
                "system": e.system,
                "set": e.own,
                "changes": {key: value for key, (_, value) in changes_of(e, comparison).items()},
                "seeds": [r.seed for r in e.results],
                "metrics": {m: [r.metrics[split][m] for r in e.results] for m in e.results[0].metrics[split]},
                "by_decile": [r.metrics["by_decile"][split] for r in e.results],
                "model": [r.record["model"] for r in e.results],
                "sparsity": [round(sparsity(r), 6) for r in e.results],
                **{
                    name: [r.record[name] for r in e.results]
                    for name in ("peak_memory_bytes", "peak_device_memory_bytes")
                    if all(name in r.record for r in e.results)
                },
                "epoch_seconds": [round(epoch_seconds(r), 3) for r in e.results],
                "step_ms": {
                    part: [round(step_milliseconds(r, part), 3) for r in e.results] for part in step_parts([e])
                },
                "links": [links(r) for r in e.results],
                "weight_by_decile": [final_weights(r) for r in e.results],
            }
            for e in comparison.entrants
        },
        "missing": dict(comparison.missing),
    }


def _title(comparison: Comparison) -> str:
    return f"Output layers compared on {Path(comparison.shared['data']['path']).name}"


def _systems(comparison: Comparison) -> list[tuple[str, str]]:
    names = dict.fromkeys(entrant.system for entrant in comparison.entrants)
    return [(SYSTEMS[name].title, SYSTEMS[name].text) for name in names if name in SYSTEMS]


def _markdown(
    title: str,
    notes: Sequence[str],
    found: Sequence[Table],
    drawn: dict[str, tuple[str, str]],
    comparison: Comparison,
) -> str:
    lines = [f"# {title}", "", *(f"- {note}" for note in notes), ""]
    for table in found:
        lines += [f"## {table.title}", "", table.note, ""]
        lines += ["| " + " | ".join(map(_cell, table.heads)) + " |", "|---" * len(table.heads) + "|"]
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in table.rows]
        lines.append("")
    if comparison.missing:
        lines += ["## Without a result", "", *(f"- {name}: {why}" for name, why in comparison.missing.items()), ""]
    lines += ["## Systems", "", *(f"- {name}: {text}" for name, text in _systems(comparison)), ""]
    for name, (caption, _) in drawn.items():
        lines += [f"![{caption}](plots/{name}.svg)", ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
th { border-bottom: 2px solid #888; font-weight: 600 }
table.words td { white-space: normal; text-align: left }
div.wide { overflow-x: auto }
h2 { margin: 2rem 0 .3rem; font-size: 1.2rem }
p { margin: .2rem 0; color: #555 }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; vertical-align: top }
svg { max-width: 100%; height: auto }
"""


def _page(
    title: str,
    notes: Sequence[str],
    found: Sequence[Table],
    drawn: dict[str, tuple[str, str]],
    comparison: Comparison,
) -> str:
    """One file: no script, nothing from elsewhere."""

    def escaped(text: str) -> str:
        return html.escape(text, quote=False)

    def row(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escaped(cell)}</{tag}>" for cell in cells) + "</tr>"

    parts = [f"<h1>{escaped(title)}</h1>", _list(notes)]
    for table in found:
        kind, heads = " class=words" if table.words else "", row("th", table.heads)
        body = "".join(row("td", cells) for cells in table.rows)
        parts += [
            f"<h2>{escaped(table.title)}</h2><p>{escaped(table.note)}</p>",
            f'<div class="wide"><table{kind}><thead>{heads}</thead><tbody>{body}</tbody></table></div>',
        ]
    if comparison.missing:
        parts += ["<h2>Without a result</h2>", _list([f"{name}: {why}" for name, why in comparison.missing.items()])]
    parts += [f"<figure>{picture}</figure>" for _, picture in drawn.values()]
    parts += ["<h2>Systems</h2>", _list([f"{name}: {text}" for name, text in _systems(comparison)])]
    head = f'<meta charset="utf-8"><title>{escaped(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line, quote=False)}</li>" for line in lines) + "</ul>"
