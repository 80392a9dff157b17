"""`haste data check`: what it shows, what it counts as wrong, and its exit status; `haste data convert`."""

import json
from pathlib import Path

import pytest

from haste.cli import main

TICKETS = "text,labels\nthe screen stays black,hardware;screen\nthe page is slow,network\nno sound at all,hardware\n"


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    path = tmp_path / "tickets.csv"
    path.write_text(TICKETS)
    return path


def test_what_a_csv_is_taken_for_and_holds(tickets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tickets)]) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert lines[0] == str(tickets)
    assert lines[1] == "csv: found tickets.csv; 'labels' are separated by ';'"
    assert lines[2] == "texts"
    for name, value in (("documents", "3"), ("labels", "3"), ("labels each, mean", "1.33"), ("words each, most", "4")):
        assert [name, value] in [[line[:32].strip(), line[32:].strip()] for line in lines]
    assert "3 labels in all, on 4 pairs of document and label" in lines
    assert "there is no test split" in shown
    assert lines[-1] == "No problems."


def test_every_problem_is_shown_with_its_line_and_the_status_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.dumps({"text": f"words {n}", "labels": ["a"]}) for n in range(30)]
    rows[3] = "{"
    rows[5:29] = ['{"text": 5, "labels": []}'] * 24
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(rows))
    assert main(["data", "check", str(path)]) == 1
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    start = lines.index("25 problems:")
    assert lines[start + 1].startswith(f"{path}:4: not valid JSON")
    assert lines[start + 2] == f"{path}:6: the value of 'text' (the number 5) must be a string"
    assert lines[start + 21].startswith(f"{path}:25: ")
    assert lines[start + 22] == "... and 4 more like this"
    assert f"{'documents':<32}{5:>12}" in lines


def test_several_paths_and_one_that_is_no_data_set(tickets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tickets.with_name("none")), str(tickets)]) == 1
    first, second = capsys.readouterr().out.split("\n\n", 1)
    assert first.splitlines()[1] == "1 problem:"
    assert "no such file or folder" in first
    assert second.startswith(f"{tickets}\n")
    assert main(["data", "check", str(tickets), str(tickets)]) == 0


def test_equal_documents_are_shown_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.csv").write_text("text,labels\nred,a\ngreen,b\nred,a\nblue,a\n")
    (tmp_path / "test.csv").write_text("text,labels\nblue,c\npink,A\n")
    assert main(["data", "check", str(tmp_path)]) == 0
    remarks = [line for line in capsys.readouterr().out.splitlines() if line.startswith("- ")]
    assert remarks == [
        "- 1 label differing from another one only in case or blanks",
        "- train: 1 document equal to an earlier one (train 4 = train 2)",
        "- test: 2 labels without a document in train, 100.0 % of its pairs; no prediction can hit them",
        "- test: 1 document equal to one of train (test 2 = train 5)",
    ]


def test_json_holds_the_same(tickets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none = str(tickets.with_name("none"))
    assert main(["data", "check", "--json", str(tickets), none]) == 1
    good, bad = json.loads(capsys.readouterr().out)
    assert (good["format"], good["labels"], good["splits"]["train"]["documents"]) == ("csv", 3, 3)
    assert good["problems"] == {"total": 0, "counts": {}, "shown": {}}
    assert good["splits"]["train"]["labels_per_document"]["most"] == 2
    assert bad["path"] == none
    assert bad["problems"]["total"] == 1


def test_json_of_equal_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.csv").write_text("text,labels\nred,a\n")
    (tmp_path / "test.csv").write_text("text,labels\nred,a\n")
    assert main(["data", "check", "--json", str(tmp_path)]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["shared"] == [{"first": "train", "second": "test", "documents": 1, "lines": [[2, 2]]}]


def test_nothing_is_counted_where_there_is_no_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empty.csv"
    path.touch()
    assert main(["data", "check", str(path)]) == 1
    assert capsys.readouterr().out.splitlines()[2:] == [
        "texts",
        "",
        "1 problem:",
        f"{path}:1: is empty; its first line must name the columns",
    ]


def test_settings_of_reading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "export.csv"
    path.write_text("subject,body,topics\nhello,world of x,a/b\nbye,now,b\n")
    assert main(["data", "check", str(path)]) == 1
    assert "set data.text to the column of the text" in capsys.readouterr().out
    given = ["--data.text", "subject+body", "--data.labels=topics", "--data.separator", "/"]
    assert main(["data", "check", str(path), *given, "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["labels"] == 2
    assert report["splits"]["train"]["words"]["most"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chek"], "haste data chek must be haste data check or haste data convert"),
        (["check"], "the following arguments are required: PATH"),
        (["check", "x", "--data.format", "xml"], "invalid choice: 'xml'"),
        (["check", "x", "--data.text", ""], "data.text ('') must not be empty"),
        (["convert", "x", "y"], "the following arguments are required: --format"),
        (["convert", "x", "y", "--format", "auto"], "invalid choice: 'auto'"),
    ],
)
def test_errors_of_use(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", *arguments]) == 0
    assert "haste data convert PATH FOLDER --format FORMAT" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["jsonl", "csv", "parquet", "lf", "raw"])
def test_convert_there_and_back(name: str, tickets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    assert main(["data", "convert", str(tickets), str(there), "--format", name]) == 0
    shown = capsys.readouterr()
    assert f"{tickets} is csv: found tickets.csv" in shown.err
    assert {Path(line) for line in shown.out.splitlines()} == set(there.iterdir())
    assert main(["data", "convert", str(there), str(back), "--format", "csv"]) == 0
    capsys.readouterr()
    assert main(["data", "check", str(tickets), str(back), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    for key in ("kind", "labels", "histogram"):
        assert first[key] == second[key]
    for key in ("documents", "pairs", "words", "characters"):
        assert first["splits"]["train"][key] == second["splits"]["train"][key]


@pytest.mark.parametrize(
    ("form", "message"),
    [("bow", "bow cannot hold texts; choose one of"), ("csv", "must be a new or empty folder to write into")],
)
def test_convert_refuses(
    form: str, message: str, tickets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    if form == "csv":
        folder.mkdir()
        (folder / "mine").touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(["data", "convert", str(tickets), str(folder), "--format", form]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_convert_stops_at_the_first_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("text,labels\na,b\nc\n")
    assert main(["data", "convert", str(path), str(tmp_path / "out"), "--format", "jsonl"]) == 2
    assert f"{path}:3: has 1 fields, the header 2" in capsys.readouterr().err


def test_convert_to_the_memory_mapped_form(tickets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "there"
    assert main(["data", "convert", str(tickets), str(there), "--format", "haste"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(there)]
    assert main(["data", "check", str(there), "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert (report["format"], report["labels"], report["splits"]["train"]["documents"]) == ("haste", 3, 3)
    column = next(there.glob("train/texts*"))
    column.write_bytes(column.read_bytes()[::-1])
    assert main(["data", "check", str(there)]) == 1
    assert str(column) in capsys.readouterr().out
