import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from haste.train.files import JsonLines, write_json, write_lines, write_text


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_text(path, "old")
    write_json(path, {"é": [1, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [1, None]}
    assert [item.name for item in tmp_path.iterdir()] == ["x.json"]


def test_lines_that_fail_half_way_leave_the_old_file(tmp_path: Path) -> None:
    def lines() -> Iterator[str]:
        yield "first"
        raise ValueError("second")

    path = tmp_path / "x.jsonl"
    path.write_text("old\n")
    with pytest.raises(ValueError, match="second"):
        write_lines(path, lines())
    assert path.read_text() == "old\n"
    assert [item.name for item in tmp_path.iterdir()] == ["x.jsonl"]
    write_lines(path, iter(["a", "b"]))
    assert path.read_text() == "a\nb\n"


def test_kept_rows_stay_byte_for_byte_and_a_cut_line_goes(tmp_path: Path) -> None:
    history = JsonLines(tmp_path / "x.jsonl")
    for step in range(4):
        history.append({"step": step, "loss": step / 3})
    before = (tmp_path / "x.jsonl").read_text().splitlines()
    with open(tmp_path / "x.jsonl", "a") as file:
        file.write('{"step": 1, "lo')
    history.keep(lambda row: row["step"] <= 2)
    assert (tmp_path / "x.jsonl").read_text().splitlines() == before[:3]
    history.append({"step": 3, "loss": 1.0})
    assert (tmp_path / "x.jsonl").read_text().splitlines() == before


def test_lines_go_where_a_link_or_a_pipe_leads(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_lines(link, ["a", "b"])
    assert link.is_symlink()
    assert target.read_text() == "a\nb\n"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_lines(pipe, ["c"])
    assert os.read(reader, 10) == b"c\n"
    os.close(reader)
    assert pipe.is_fifo()


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    values = {"a": math.inf, "b": [1.5, -math.inf, 2], "c": {"d": math.nan, "e": "inf"}}
    expected = {"a": None, "b": [1.5, None, 2], "c": {"d": None, "e": "inf"}}
    write_json(tmp_path / "x.json", values)
    JsonLines(tmp_path / "x.jsonl").append(values)
    for name in ("x.json", "x.jsonl"):
        assert json.loads((tmp_path / name).read_text()) == expected
