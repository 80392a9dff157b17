import json
import math
import statistics
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from haste.config import Config
from haste.train.compare import open_comparison, read_runs, train_all
from haste.train.files import write_json
from haste.train.plan import Plan, Planned, planned_runs, prepare_sizes
from haste.train.report import text_table, write_report
from haste.train.report_results import epoch_seconds, read_comparison, series
from haste.train.report_svg import Line, _ticks, bars, lines, points, stacks
from haste.train.report_tables import _time, tables
from haste.train.trainer import train

SYSTEMS = ["dense", "bottleneck", "spartex", "haste"]
OWN = {"haste": {"optim.encoder.lr": 0.04}}


@pytest.fixture(scope="module")
def compared(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four systems with two seeds, haste with a variation too; read only."""
    output = tmp_path_factory.mktemp("comparison") / "out"
    config = Config.from_dict(
        {
            "data": {"path": str(tiny_data)},
            "encoder": {"features": 32, "dropout": 0.2},
            "output": {"fan_in": 8, "group_size": 4},
            "rewire": {"interval": 5},
            "optim": {"epochs": 4, "batch_size": 32, "warmup_steps": 3, "encoder": {"lr": 0.05}},
            "run": {"dir": str(output), "threads": 1, "device": "cpu"},
        }
    )
    plan = Plan(config=config, systems=SYSTEMS, seeds=[0, 1], vary=[{"output.grouping": "random"}], settings=OWN)
    sizes = prepare_sizes(config, plan.seeds, lambda line: None)
    open_comparison(config, output)

    def execute(run: Planned, log: Callable[[str], None]) -> None:
        train(run.config, resume=True, log=log)

    assert train_all(planned_runs(plan, sizes, output), output, execute=execute, log=lambda line: None) == {}
    write_report(output)
    return output


def metrics(output: Path, name: str) -> dict[str, Any]:
    return json.loads((output / "runs" / name / "metrics.json").read_text())


def test_tables_hold_what_the_runs_say(compared: Path) -> None:
    found = {table.title: table for table in tables(read_comparison(compared))}
    accuracy = found["Accuracy on test"]
    names = [
        "dense",
        "bottleneck",
        "Spartex",
        "Spartex (output.grouping=random)",
        "HASTE",
        "HASTE (output.grouping=random)",
    ]
    assert [row[0] for row in accuracy.rows] == names
    values = [metrics(compared, f"haste-seed{seed}")["test"]["P@3"] for seed in (0, 1)]
    row = dict(zip(accuracy.heads, accuracy.rows[4], strict=True))
    assert row["P@3"] == f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
    assert row["seeds"] == "2"
    cost = dict(zip(found["Cost"].heads, found["Cost"].rows[4], strict=True))
    assert cost["fan-in / inputs"] == "8 / 32"
    assert cost["sparsity"] == "75.0 %"
    assert cost["head"] == "10 %"
    assert [row[2] for row in found["Cost"].rows[:2]] == ["-", "-"]
    record = json.loads((compared / "runs/haste-seed0/run.json").read_text())
    assert cost["output layer"] == f"{record['model']['output']['bytes'] / 2**20:.2f}"
    records = [json.loads((compared / f"runs/haste-seed{seed}/run.json").read_text()) for seed in (0, 1)]
    epochs = [1000 * record["seconds"]["train"] / 4 for record in records]
    assert cost["epoch"] == f"{statistics.mean(epochs):.0f} ± {statistics.stdev(epochs):.0f} ms"
    peaks = [record["peak_memory_bytes"] / 2**20 for record in records]
    assert cost["peak memory"] == f"{statistics.mean(peaks):.0f} ± {statistics.stdev(peaks):.0f}"
    steps = found["Time of a step"]
    assert all(" ± " in cell for cell in steps.rows[4][1:])
    parts = [float(cell.partition(" ±")[0]) for cell in steps.rows[4][1:]]
    assert sum(parts[:-1]) == pytest.approx(parts[-1], abs=0.05)
    cells = found["P@5 by label frequency"].rows[0][1:]
    first = [metrics(compared, f"dense-seed{seed}")["by_decile"]["test"]["P@5"][0] for seed in (0, 1)]
    assert cells[0] == f"{statistics.mean(first):.2f} ± {statistics.stdev(first):.2f}"
    deciles = [float(cell.partition(" ±")[0]) for cell in cells]
    assert sum(deciles[:-1]) == pytest.approx(deciles[-1], abs=0.06)
    links = {
        row[0]: dict(zip(found["Links of the tail"].heads, row, strict=True)) for row in found["Links of the tail"].rows
    }
    assert "dense" not in links
    assert links["HASTE"]["rewirings"] == "4 ± 0"
    assert links["HASTE"]["from auxiliary"] == "-"
    assert float(links["Spartex"]["from auxiliary"].partition(" ±")[0]) > 0


def test_the_files_of_a_report(compared: Path) -> None:
    page = (compared / "report.html").read_text()
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert page.count("<svg") == page.count("</svg>") == 11
    text = (compared / "report.md").read_text()
    for name in ("accuracy", "frequency", "training", "memory", "step", "rewired", "survivors", "weights", "gradients"):
        assert f"(plots/{name}.svg)" in text
        picture = ET.fromstring((compared / "plots" / f"{name}.svg").read_text())
        assert picture.tag == "{http://www.w3.org/2000/svg}svg"
        assert any("HASTE" in (element.text or "") for element in picture.iter())
    assert "- budget: 4 epochs, batches of 32" in text
    report = json.loads((compared / "report.json").read_text())
    assert report["split"] == "test"
    assert report["systems"]["dense"]["metrics"]["P@1"][1] == metrics(compared, "dense-seed1")["test"]["P@1"]
    assert report["missing"] == {}


def test_names_are_escaped_and_missing_runs_are_said(compared: Path, tmp_path: Path) -> None:
    output = tmp_path / "copy"
    output.mkdir()
    (output / "runs").symlink_to(compared / "runs")
    for name in ("config.yaml",):
        (output / name).write_text((compared / name).read_text())
    runs = {"haste-seed0": {**read_runs(compared)["haste-seed0"], "change": "data.path=<b>|&"}}
    runs["dense-seed9"] = {"system": "dense", "sparsity": None, "change": "", "seed": 9, "failed": "no <luck>"}
    write_json(output / "runs.json", runs)
    page = write_report(output).read_text()
    assert "HASTE (data.path=&lt;b&gt;|&amp;)" in page
    assert "dense-seed9: no &lt;luck&gt;" in page
    assert "HASTE (data.path=<b>\\|&)" in (output / "report.md").read_text()
    write_json(output / "runs.json", {"dense-seed9": runs["dense-seed9"]})
    assert "no &lt;luck&gt;" in write_report(output).read_text()
    assert tables(read_comparison(output)) == []


def copy(compared: Path, output: Path, names: list[str]) -> None:
    """Some runs of a comparison, to be changed."""
    for name in names:
        folder = output / "runs" / name
        folder.mkdir(parents=True)
        for file in ("metrics.json", "run.json", "metrics.jsonl", "config.yaml"):
            (folder / file).write_text((compared / "runs" / name / file).read_text())
    (output / "config.yaml").write_text((compared / "config.yaml").read_text())
    write_json(output / "runs.json", {name: read_runs(compared)[name] for name in names})


def test_the_record_holds_what_tables_and_plots_show(compared: Path) -> None:
    systems = json.loads((compared / "report.json").read_text())["systems"]
    table = next(t for t in tables(read_comparison(compared)) if t.title == "Links of the tail")
    row = {name: dict(zip(table.heads, cells, strict=True)) for name, *cells in [[r[0], *r] for r in table.rows]}
    for name, shown in (("HASTE", row["HASTE"]), ("Spartex", row["Spartex"])):
        found = systems[name]["links"]
        for key, head, digits in (("gradient_tail", "gradient from tail", 4), ("replaced", "replaced", 2)):
            assert shown[head].startswith(f"{statistics.mean(links[key] for links in found):.{digits}f} ± ")
        rows = [
            json.loads(line)
            for line in (compared / f"runs/{name.lower()}-seed1/metrics.jsonl").read_text().splitlines()
        ]
        norms = [row["gradient_tail"] for row in rows if row["kind"] == "diagnostics"]
        assert found[1]["gradient_tail"] == pytest.approx(statistics.mean(norms))
        assert found[1]["input_coverage"] == [row for row in rows if row["kind"] == "diagnostics"][-1]["input_coverage"]
        assert sum(row["fraction"] for row in rows if row["kind"] == "rewire") == pytest.approx(found[1]["replaced"])
        assert len(systems[name]["weight_by_decile"][1]) == 10
    assert "input_coverage" not in systems["dense"]["links"][0]
    assert "gradient_auxiliary" in systems["Spartex"]["links"][0]
    assert systems["HASTE"]["sparsity"] == [0.75, 0.75]
    assert [len(times) for times in systems["HASTE"]["step_ms"].values()] == [2] * len(systems["HASTE"]["step_ms"])
    assert systems["HASTE"]["model"][0]["output"]["fan_in"] == 8


def test_memory_of_a_gpu_is_in_the_record(compared: Path, tmp_path: Path) -> None:
    copy(compared, tmp_path, ["haste-seed0"])
    path = tmp_path / "runs/haste-seed0/run.json"
    write_json(path, {**json.loads(path.read_text()), "peak_device_memory_bytes": 3 << 20})
    write_report(tmp_path)
    system = json.loads((tmp_path / "report.json").read_text())["systems"]["HASTE"]
    assert system["peak_device_memory_bytes"] == [3 << 20]
    assert system["peak_memory_bytes"][0] > 3 << 20


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ([0.0312], "31 ms"),
        ([0.4, 0.6], "500 ± 141 ms"),
        ([4.0, 6.0], "5.0 ± 1.4 s"),
        ([200.0, 200.5], "3 min 20 s ± 354 ms"),
    ],
)
def test_times_for_people(seconds: list[float], text: str) -> None:
    assert _time(seconds) == text


def test_a_report_says_what_each_system_changes(compared: Path) -> None:
    table = next(t for t in tables(read_comparison(compared)) if t.title == "Settings of each system")
    rows = {row[0]: dict(zip(table.heads, row, strict=True)) for row in table.rows}
    assert rows["HASTE"]["--set"] == "optim.encoder.lr=0.04"
    assert rows["HASTE"]["lr of encoder"] == "0.04"
    assert "optim.encoder.lr 0.04 (0.05)" in rows["HASTE"]["changes"]
    assert "output.fan_in 0 (8)" in rows["dense"]["changes"]
    assert rows["dense"]["--set"] == "-"
    assert [rows["Spartex"][f"lr of {part}"] for part in ("encoder", "output layer", "auxiliary")] == [
        "0.05",
        "0.00625",  # of the squared hinge
        "0.05",
    ]
    assert rows["HASTE"]["lr of auxiliary"] == "-"
    assert "output.grouping random (semantic)" in rows["HASTE (output.grouping=random)"]["changes"]
    for name in ("report.md", "report.html"):
        assert "optim.output.lr 0.00625 (0.05)" in (compared / name).read_text()
    report = json.loads((compared / "report.json").read_text())
    assert report["settings"]["optim"]["output"]["lr"] == 0.05
    assert report["systems"]["Spartex"]["changes"]["optim.output.lr"] == 0.00625
    assert report["systems"]["HASTE"]["set"] == OWN["haste"]
    assert "run.seed" not in report["systems"]["HASTE"]["changes"]


def test_runs_of_other_settings_are_no_seeds_of_each_other(compared: Path, tmp_path: Path) -> None:
    names = ["haste-seed0", "haste-seed1"]
    copy(compared, tmp_path, names)
    assert [e.name for e in read_comparison(tmp_path).entrants] == ["HASTE"]
    settings = tmp_path / "runs/haste-seed1/config.yaml"
    settings.write_text(settings.read_text().replace("fan_in: 8", "fan_in: 16"))
    entrants = read_comparison(tmp_path).entrants
    assert [(e.name, len(e.results)) for e in entrants] == [("HASTE", 1), ("HASTE [output.fan_in=16]", 1)]


def test_runs_on_other_machines_are_said(compared: Path, tmp_path: Path) -> None:
    names = ["dense-seed0", "dense-seed1", "haste-seed0", "haste-seed1"]
    copy(compared, tmp_path, names)
    assert "not the same" not in (write_report(tmp_path).parent / "report.md").read_text()
    path = tmp_path / "runs/haste-seed1/run.json"
    record = json.loads(path.read_text())
    record["environment"] |= {"threads": 64, "commit": "abc"}
    write_json(path, record)
    write_report(tmp_path)
    said = (tmp_path / "report.md").read_text()
    others = "dense seed 0, dense seed 1, HASTE seed 0"
    assert f"- not the same for all runs: threads 1 ({others}), 64 (HASTE seed 1)" in said
    assert "abc (HASTE seed 1)" in said


def test_a_report_of_what_is_not_finite(compared: Path, tmp_path: Path) -> None:
    copy(compared, tmp_path, ["haste-seed0", "haste-seed1"])
    path = tmp_path / "runs/haste-seed1/metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["kind"] == "diagnostics":
            row |= {"gradient_head": math.inf, "gradient_tail": None, "weight_by_decile": [math.nan] * 10}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report(tmp_path)
    links = next(t for t in tables(read_comparison(tmp_path)) if t.title == "Links of the tail")
    row = dict(zip(links.heads, links.rows[0], strict=True))
    assert float(row["gradient from head"]) > 0  # of the other seed
    assert not any("Infinity" in path.read_text() for path in tmp_path.glob("report.*"))


def test_runs_on_other_documents_are_refused(compared: Path, tmp_path: Path) -> None:
    output = tmp_path / "copy"
    copy(compared, output, ["dense-seed0", "haste-seed0"])
    assert len(read_comparison(output).entrants) == 2
    record = json.loads((output / "runs/haste-seed0/run.json").read_text())
    write_json(output / "runs/haste-seed0/run.json", {**record, "documents": "others"})
    with pytest.raises(ValueError, match="dense-seed0 and haste-seed0 must have been trained on the same documents"):
        read_comparison(output)


@pytest.mark.parametrize(("old", "new"), [("max_features: null", "max_features: 100"), ("share: 1.0", "share: 0.5")])
def test_variations_of_the_data_are_said(compared: Path, tmp_path: Path, old: str, new: str) -> None:
    copy(compared, tmp_path, ["dense-seed0", "dense-seed1", "haste-seed0", "haste-seed1"])
    assert "trained on other" not in (write_report(tmp_path).parent / "report.md").read_text()
    for seed in (0, 1):  # however it was set: the settings say it
        settings, record = (tmp_path / f"runs/dense-seed{seed}" / name for name in ("config.yaml", "run.json"))
        settings.write_text(settings.read_text().replace(old, new))
        write_json(record, {**json.loads(record.read_text()), "documents": f"others of {seed}"})
    write_report(tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert "- trained on other documents, terms or labels than the rest: dense\n" in report


def test_numbers_of_a_run(compared: Path) -> None:
    haste = next(entrant for entrant in read_comparison(compared).entrants if entrant.name == "HASTE")
    result = haste.results[0]
    assert epoch_seconds(result) == pytest.approx(result.record["seconds"]["train"] / 4)
    half = replace(result, history=[row for row in result.history if row["step"] <= 16])
    assert epoch_seconds(half) == pytest.approx(result.record["seconds"]["train"] / 2)
    epochs, values = series(haste, "dev", "P@1")
    assert epochs == [1, 2, 3, 4]
    rows = [[row["P@1"] for row in r.history if row["kind"] == "dev"] for r in haste.results]
    assert values == pytest.approx([statistics.mean(pair) for pair in zip(*rows, strict=True)])


def test_text_tables_line_up(compared: Path) -> None:
    table = text_table(tables(read_comparison(compared))[0]).splitlines()
    assert table[0] == "Accuracy on test"
    assert len({len(line) for line in table[1:]}) == 1


@pytest.mark.parametrize(
    "picture",
    [
        lambda: lines("a < b", "x", "y", [Line(name="one & two", x=[0, 1], y=[3, 3]), Line(name="empty", x=[], y=[])]),
        lambda: lines("nothing", "x", "y", []),
        lambda: points("p", "x", "y", [Line(name="n", x=[0.0], y=[0.0])]),
        lambda: bars("b", "y", ["g"], ["n", "m"], [[1.0], [2.0]], [[0.1], [0.0]], zero=False),
        lambda: stacks("s", "y", ["g", "h"], ["n"], [[1.0, 1e-9]]),
        lambda: lines("l", "x", "y", [Line(name="n", x=[0, 1, 2], y=[1, math.inf, math.nan])], zero=True),
        lambda: points("p", "x", "y", [Line(name="n", x=[math.inf], y=[0.0])]),
        lambda: bars("b", "y", ["g"], ["n", "m"], [[math.inf], [2.0]], [[math.nan], [0.0]]),
        lambda: stacks("s", "y", ["g", "h"], ["n"], [[math.nan, 1e30]]),
    ],
)
def test_pictures_are_well_formed(picture: Callable[[], str]) -> None:
    text = picture()
    ET.fromstring(text)
    assert "nan" not in text
    assert "inf" not in text


def test_lines_go_where_their_values_are() -> None:
    root = ET.fromstring(lines("t", "x", "y", [Line(name="n", x=[0, 5, 10], y=[0, 50, 100])]))
    line = next(element for element in root.iter() if element.tag.endswith("polyline"))
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert points[1] == pytest.approx([(a + b) / 2 for a, b in zip(points[0], points[2], strict=True)], abs=0.2)
    assert points[0][0] < points[2][0]
    assert points[0][1] > points[2][1]  # up is less


@pytest.mark.parametrize("values", [[0, 1], [3.2, 47.9], [0.001, 0.0012], [5, 5], [0, 0], [-3, 4], [1e6, 3e6], []])
def test_ticks_are_few_and_around_the_values(values: list[float]) -> None:
    ticks = _ticks(values)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= min(values, default=0)
    assert ticks[-1] >= max(values, default=1)
