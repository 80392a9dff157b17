import gzip
import json
from pathlib import Path

import pytest

from haste.data.formats import DataError, Record, read_jsonl, write_jsonl


def _written(folder: Path, content: str | bytes, name: str = "train.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


GOOD = '{"id": "a", "text": "one two", "labels": ["x", "y"]}\n'


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    records = [
        Record("a", 'naïve "quotes"\n\u2028tab\t', ("x", "β")),
        Record("7", "", ()),
        Record("c", "z", ("x",)),
    ]
    write_jsonl(tmp_path / name, records)
    assert list(read_jsonl(tmp_path / name)) == records
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_same_records_make_the_same_gzip_bytes(tmp_path: Path) -> None:
    for name in ("one.jsonl.gz", "two.jsonl.gz"):
        write_jsonl(tmp_path / name, [Record("a", "text", ("x",))])
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = _written(tmp_path, GOOD)

    def records():
        yield Record("a", "b", ())
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_jsonl(path, records())
    assert path.read_text() == GOOD
    assert [entry.name for entry in tmp_path.iterdir()] == ["train.jsonl"]


def test_byte_order_mark_blank_lines_and_crlf(tmp_path: Path) -> None:
    content = "\ufeff" + GOOD.replace("\n", "\r\n") + "\n   \n" + '{"text": "three", "labels": []}'
    path = _written(tmp_path, content)
    assert list(read_jsonl(path)) == [Record("a", "one two", ("x", "y")), Record("4", "three", ())]


def test_byte_order_mark_alone_is_a_blank_line(tmp_path: Path) -> None:
    assert next(read_jsonl(_written(tmp_path, b"\xef\xbb\xbf\n" + GOOD.encode()))).id == "a"


def test_other_keys_and_numeric_ids(tmp_path: Path) -> None:
    path = _written(tmp_path, '{"id": 12, "body": "b", "tags": ["x", "x"], "more": {}}\n')
    assert list(read_jsonl(path, text="body", labels="tags")) == [Record("12", "b", ("x", "x"))]


def test_labels_may_be_absent_when_not_required(tmp_path: Path) -> None:
    path = _written(tmp_path, '{"text": "b"}\n')
    assert list(read_jsonl(path, require_labels=False)) == [Record("1", "b", ())]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            '{"text": "b" "labels": []}',
            'not valid JSON (Expecting \',\' delimiter at column 14): \'{"text": "b" "labels": []}\'; '
            "write one whole JSON object on each line",
        ),
        (
            "{",
            "not valid JSON (Expecting property name enclosed in double quotes at column 2): '{'; "
            "write one whole JSON object on each line",
        ),
        ("[1]", "found a list, must be a JSON object; write one object on each line"),
        ('"s"', "found the string 's', must be a JSON object; write one object on each line"),
        ("null", "found null, must be a JSON object; write one object on each line"),
        (
            '{"body": "b", "labels": []}',
            "no key 'text' (found: body, labels); set data.text to the key of the text",
        ),
        ("{}", "no key 'text' (found: none); set data.text to the key of the text"),
        ('{"text": 3, "labels": []}', "the value of 'text' (the number 3) must be a string"),
        ('{"text": ["a"], "labels": []}', "the value of 'text' (a list) must be a string"),
        ('{"text": null, "labels": []}', "the value of 'text' (null) must be a string"),
        (
            '{"text": "b", "label": "x"}',
            "no key 'labels' (found: text, label); set data.labels to the key of the labels, "
            "[] for a document without any",
        ),
        ('{"text": "b", "labels": "x"}', "the value of 'labels' (the string 'x') must be a list of strings"),
        ('{"text": "b", "labels": {"x": 1}}', "the value of 'labels' (an object) must be a list of strings"),
        (
            '{"text": "b", "labels": ["x", 5.5]}',
            "the value of 'labels' holds the number 5.5, must be a list of strings",
        ),
        (
            '{"text": "b", "labels": [true]}',
            "the value of 'labels' holds true, must be a list of strings",
        ),
        (
            '{"text": "b", "labels": [""]}',
            "the value of 'labels' holds an empty string; remove it or name the label",
        ),
        ('{"id": null, "text": "b"}', "the value of 'id' (null) must be a string or a whole number"),
        ('{"id": false, "text": "b"}', "the value of 'id' (false) must be a string or a whole number"),
        (
            '{"text": "b \\ud800", "labels": []}',
            "the value of 'text' holds half a surrogate pair (\\ud800); remove it",
        ),
        (
            '{"text": "b", "labels": ["\\udc12"]}',
            "the value of 'labels' holds half a surrogate pair (\\udc12); remove it",
        ),
    ],
)
def test_malformed_line(tmp_path: Path, line: str, problem: str) -> None:
    path = _written(tmp_path, GOOD + "\n" + line + "\n" + GOOD)
    with pytest.raises(DataError) as caught:
        list(read_jsonl(path))
    assert str(caught.value) == f"{path}:3: {problem}"


def test_json_too_deep_or_too_big_to_read(tmp_path: Path) -> None:
    for line in ('{"text": "b", "x": ' + "[" * 200_000, '{"text": "b", "x": ' + "1" * 5000 + "}"):
        path = _written(tmp_path, GOOD + line)
        with pytest.raises(DataError, match=r"train\.jsonl:2: not readable as JSON \(.+\); simplify the line"):
            list(read_jsonl(path))


def test_records_before_the_error_are_returned(tmp_path: Path) -> None:
    records = read_jsonl(_written(tmp_path, GOOD + "{}"))
    assert next(records).id == "a"
    with pytest.raises(DataError):
        next(records)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = _written(tmp_path, GOOD.encode() + b'{"text": "caf\xe9", "labels": []}\n')
    with pytest.raises(DataError) as caught:
        list(read_jsonl(path))
    assert str(caught.value) == f"{path}:2: byte 0xe9 at column 14 is not UTF-8; save the file as UTF-8"


def test_gzip_cut_short(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"{i} {i * 7919 % 1009}", "labels": []}) + "\n" for i in range(3000))
    path = _written(tmp_path, gzip.compress(rows.encode())[:-4000], "train.jsonl.gz")
    seen: list[Record] = []
    with pytest.raises(DataError) as caught:
        seen.extend(read_jsonl(path))
    assert str(caught.value) == f"{path}:{len(seen) + 1}: the gzip file is cut short; get it again"
    assert seen[0].text == "0 0"


def test_gzip_that_is_damaged(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(GOOD.encode() * 10))
    packed[-6] ^= 0xFF
    path = _written(tmp_path, bytes(packed), "train.jsonl.gz")
    with pytest.raises(DataError, match=r"train\.jsonl\.gz:\d+: not readable as gzip \(CRC check failed"):
        list(read_jsonl(path))


def test_plain_file_named_gz(tmp_path: Path) -> None:
    path = _written(tmp_path, GOOD, "train.jsonl.gz")
    with pytest.raises(DataError) as caught:
        list(read_jsonl(path))
    assert str(caught.value) == (
        f"{path}:1: not readable as gzip (Not a gzipped file (b'{{\"')); get it again, "
        "or drop .gz from the name of a plain file"
    )


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        list(read_jsonl(tmp_path / "no.jsonl"))
    assert str(caught.value) == f"{tmp_path / 'no.jsonl'}: no such file"


def test_folder_read_as_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        list(read_jsonl(tmp_path))
    assert str(caught.value) == f"{tmp_path}:1: cannot be read (Is a directory)"


def test_whole_numbers_are_names_of_labels(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "aa", "labels": [7, "x", -1]}\n')
    assert next(read_jsonl(path)).labels == ("7", "x", "-1")
