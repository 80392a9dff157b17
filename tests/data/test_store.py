import fcntl
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haste.config import Data
from haste.data import _columns, _words, _writer
from haste.data._cache import cache_folder, digests_of
from haste.data._columns import Columns, Strings, append_rows, matrix
from haste.data.dataset import load_dataset
from haste.data.formats import detect, write_jsonl
from haste.data.source import DataError, Problem, Record, Source, raise_problem
from haste.data.store import Store, StoreSource, open_store, read_store, write_store


def quiet(text: str) -> None:
    pass


RECORDS = [
    Record("a", "red fish", ("x", "y", "x")),
    Record("b", "", ()),
    Record("c", "Ünïcode \N{SNOWMAN} \U0001f600", ("z",)),
    Record("d", "red fish", ("y",)),
]


class Memory(Source):
    """A source in memory, which may break off while a split is read."""

    def __init__(self, path: Path, **splits: list[Record]) -> None:
        self.format, self.reason, self.path, self.kind = "memory", "it is in memory", path, "text"
        self.records, self.splits, self.breaks = splits, tuple(splits), ""
        self.read: list[str] = []

    def files(self) -> dict[str, tuple[Path, ...]]:
        return {}

    def documents(self, split: str, problem: Problem = raise_problem) -> Iterator[Record]:
        self.read.append(split)
        for number, record in enumerate(self.records[split]):
            if self.breaks == split and number == 1:
                raise KeyboardInterrupt
            yield record


def contents(store: Store) -> dict[str, object]:
    names = list(store.label_names)
    found: dict[str, object] = {"names": sorted(names)}
    for name, part in store.splits.items():
        offsets, numbers = part.labels
        labels = [{names[x] for x in numbers[a:b]} for a, b in pairwise(offsets)]
        assert part.texts is not None
        found[name] = list(part.ids), list(part.texts), labels
    return found


def expected(**splits: list[Record]) -> dict[str, object]:
    found: dict[str, object] = {
        name: ([r.id for r in records], [r.text for r in records], [set(r.labels) for r in records])
        for name, records in splits.items()
    }
    return {"names": sorted({x for records in splits.values() for r in records for x in r.labels}), **found}


def jsonl(folder: Path, **splits: list[Record]) -> Data:
    folder.mkdir(exist_ok=True)
    for name, records in splits.items():
        write_jsonl(folder / f"{name}.jsonl", records)
    return Data(path=str(folder), cache=str(folder.parent / "cache"))


def test_what_is_stored_is_what_was_read(tmp_path: Path) -> None:
    config = jsonl(tmp_path / "data", train=RECORDS, test=RECORDS[:1])
    lines: list[str] = []
    store = open_store(config, log=lines.append)
    assert contents(store) == expected(train=RECORDS, test=RECORDS[:1])
    assert store.notes == [
        "train: dropped 1 repeated labels in 1 documents",
        "train: 1 documents have no labels",
        "test: dropped 1 repeated labels in 1 documents",
    ]
    digests = store.splits["train"].digests
    assert digests[0] == digests[3]
    assert len(set(digests.tolist())) == 3
    assert lines[0].startswith(f"{tmp_path / 'data'}: jsonl, ")
    assert lines[1].startswith("train: 4 documents read in ")


def test_it_is_made_once_and_again_when_a_file_changes(tmp_path: Path) -> None:
    config = jsonl(tmp_path / "data", train=RECORDS)
    first = open_store(config, log=quiet)
    lines: list[str] = []
    again = open_store(config, log=lines.append)
    assert again.folder == first.folder
    assert len(lines) == 1  # what the data is taken to be, and nothing read
    write_jsonl(tmp_path / "data" / "train.jsonl", [*RECORDS, Record("e", "new", ("x",))])
    changed = open_store(config, log=lines.append)
    assert len(changed.splits["train"]) == 5
    assert changed.content != first.content
    assert any("are not those of the last time; reading them again" in line for line in lines)
    assert open_store(replace(config, separator="|"), log=quiet).folder != changed.folder


def test_a_file_is_digested_again_only_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cache = tmp_path / "file", tmp_path / "cache"
    file.write_text("one")
    read: list[Path] = []
    digest = _columns.file_digest
    monkeypatch.setattr("haste.data._cache.file_digest", lambda path: read.append(path) or digest(path))
    first = digests_of([file], cache)
    assert digests_of([file], cache) == first
    assert read == [file]
    state = file.stat()
    file.write_text("two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert digests_of([file], cache) != first
    assert read == [file, file]
    (cache / "digests.json").write_text("damaged")
    assert len(digests_of([file], cache)) == 1


def altered(folder: Path) -> Iterator[tuple[str, Path]]:
    yield "one byte", folder / "train" / "texts.bytes"
    yield "shorter", folder / "train" / "labels.offsets"
    yield "gone", folder / "label_names.bytes"
    yield "manifest", folder / "dataset.json"


@pytest.mark.parametrize("number", range(4))
def test_an_altered_folder_is_noticed(tmp_path: Path, number: int) -> None:
    source = detect(jsonl(tmp_path / "data", train=RECORDS, test=RECORDS[:1]))
    folder = write_store(tmp_path / "made", source, log=quiet)
    assert contents(read_store(folder)) == expected(train=RECORDS, test=RECORDS[:1])
    what, file = list(altered(folder))[number]
    if what == "one byte":
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    elif what == "shorter":
        file.write_bytes(file.read_bytes()[:-8])
    elif what == "gone":
        file.unlink()
    else:
        file.write_text(file.read_text().replace('"size": 5', '"size": 4'))
    with pytest.raises(DataError) as caught:
        load_dataset(Data(path=str(folder), cache=str(tmp_path / "cache")), seed=0, log=quiet)
    message = {
        "one byte": "its content is not as written",
        "shorter": "has 32 bytes, was written with 40",
        "gone": "is missing",
        "manifest": "its content is not as written",
    }[what]
    assert str(caught.value) == f"{file}: {message}; the folder was altered, make it again"


def test_an_altered_cache_is_made_again(tmp_path: Path) -> None:
    config = jsonl(tmp_path / "data", train=RECORDS * 3)
    data = load_dataset(config, seed=0, log=quiet)
    before = data.train.features.toarray()
    for file in [*(tmp_path / "cache").rglob("texts.bytes"), *(tmp_path / "cache").rglob("features.values")]:
        file.write_bytes(b"\0" * file.stat().st_size)
    lines: list[str] = []
    again = load_dataset(config, seed=0, log=lines.append)
    assert np.array_equal(again.train.features.toarray(), before)
    assert again.digest == data.digest
    assert sum("it is made again now" in line for line in lines) == 2


def test_an_interrupted_one_is_taken_up(tmp_path: Path) -> None:
    later = [Record("e", "more", ("w", "y"))]
    source = Memory(tmp_path / "memory", train=RECORDS, dev=later, test=RECORDS)
    source.breaks = "test"
    with pytest.raises(KeyboardInterrupt):
        _writer.write_store(tmp_path / "made", tmp_path / "made.partial", source, key="one", log=quiet)
    assert not (tmp_path / "made").exists()
    source.breaks = ""
    source.read.clear()
    lines: list[str] = []
    _writer.write_store(tmp_path / "made", tmp_path / "made.partial", source, key="one", log=lines.append)
    assert source.read == ["test"]
    assert lines[:2] == [
        f"{name}: {n} documents were read before the interruption" for name, n in (("train", 4), ("dev", 1))
    ]
    whole = write_store(tmp_path / "whole", source, log=quiet)
    assert contents(read_store(tmp_path / "made")) == expected(train=RECORDS, dev=later, test=RECORDS)
    assert read_store(whole).content == read_store(tmp_path / "made").content
    assert sorted(p.name for p in whole.iterdir()) == sorted(p.name for p in (tmp_path / "made").iterdir())
    assert list(tmp_path.glob("*.partial")) == []


def test_what_another_source_left_is_not_used(tmp_path: Path) -> None:
    source = Memory(tmp_path / "one", train=RECORDS, test=RECORDS)
    source.breaks = "test"
    with pytest.raises(KeyboardInterrupt):
        _writer.write_store(tmp_path / "made", tmp_path / "made.partial", source, key="one", log=quiet)
    other = Memory(tmp_path / "two", train=RECORDS[2:], test=RECORDS[:1])
    _writer.write_store(tmp_path / "made", tmp_path / "made.partial", other, key="two", log=quiet)
    assert contents(read_store(tmp_path / "made")) == expected(train=RECORDS[2:], test=RECORDS[:1])


@pytest.mark.parametrize("number", range(7))
def test_killed_while_it_tidies_up_it_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    later = [Record("e", "more", ("w", "y"))]
    source = Memory(tmp_path / "memory", train=RECORDS, test=later)
    unlink, calls = Path.unlink, iter(range(100))

    def killed(path: Path, missing_ok: bool = False) -> None:
        if next(calls) == number:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            _writer.write_store(tmp_path / "made", tmp_path / "made.partial", source, key="one", log=quiet)
    _writer.write_store(tmp_path / "made", tmp_path / "made.partial", source, key="one", log=quiet)
    assert contents(read_store(tmp_path / "made")) == expected(train=RECORDS, test=later)
    assert not [path for path in (tmp_path / "made").rglob("*") if path.name.startswith(("new_labels", "key"))]


def test_a_folder_in_the_way_stays(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"made must be new or empty; choose another folder"):
        write_store(tmp_path / "made", Memory(tmp_path, train=RECORDS), log=quiet)
    assert (tmp_path / "made" / "thesis.txt").read_text() == "mine"


def test_a_folder_named_partial_stays(tmp_path: Path) -> None:
    (tmp_path / "made.partial").mkdir()
    (tmp_path / "made.partial" / "thesis.txt").write_text("mine")
    write_store(tmp_path / "made", Memory(tmp_path, train=RECORDS), log=quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "made.partial"]
    assert (tmp_path / "made.partial" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["vectorizer.npz", "vectorizer.json", "manifest.json"])
def test_a_damaged_vocabulary_is_made_again(tmp_path: Path, name: str) -> None:
    config = jsonl(tmp_path / "data", train=RECORDS * 3)
    terms = load_dataset(config, seed=0, log=quiet).vectorizer
    file = next((tmp_path / "cache" / "features").rglob(name))
    file.write_text("[]")
    again = load_dataset(config, seed=0, log=quiet).vectorizer
    assert terms is not None
    assert again is not None
    assert again.terms == terms.terms


def test_a_malformed_source_leaves_nothing(tmp_path: Path) -> None:
    config = jsonl(tmp_path / "data", train=RECORDS)
    (tmp_path / "data" / "train.jsonl").open("a").write("{}\n")
    with pytest.raises(DataError, match=r"train\.jsonl:5: "):
        open_store(config, log=quiet)
    assert not [path for path in (tmp_path / "cache" / "documents").iterdir() if path.suffix == "" and path.is_dir()]


def test_a_second_process_waits(tmp_path: Path) -> None:
    config = jsonl(tmp_path / "data", train=RECORDS)
    store = open_store(config, log=quiet)
    lock = store.folder.with_suffix(".lock")
    lines: list[str] = []
    with open(lock, "wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        waiting = threading.Event()

        def log(line: str) -> None:
            lines.append(line)
            if "waiting" in line:
                waiting.set()

        thread = threading.Thread(target=open_store, args=(config,), kwargs={"log": log})
        thread.start()
        assert waiting.wait(60)
        assert thread.is_alive()
    thread.join(60)
    assert not thread.is_alive()
    assert lines[-1].endswith("another process is making it; waiting")


def test_a_converted_folder_is_a_source(tmp_path: Path) -> None:
    source = detect(jsonl(tmp_path / "data", train=RECORDS, test=RECORDS[:1]))
    folder = write_store(tmp_path / "made", source, log=quiet)
    stored = detect(Data(path=str(folder)))
    assert isinstance(stored, StoreSource)
    assert (stored.format, stored.kind, stored.splits, stored.num_labels) == ("haste", "text", ("train", "test"), 3)
    names = [label.name for label in stored.labels()]
    for split in stored.splits:
        for record, original in zip(stored.documents(split), source.documents(split), strict=True):
            assert (record.id, record.text) == (original.id, original.text)
            assert {names[x] for x in record.labels} == set(original.labels)
    assert set(stored.files()) == {"train", "test", "labels"}
    again = write_store(tmp_path / "again", stored, log=quiet)
    assert contents(read_store(again)) == contents(read_store(folder))
    cache = str(tmp_path / "cache")
    from_folder = load_dataset(Data(path=str(folder), min_df=1, cache=cache), seed=0, log=quiet)
    from_files = load_dataset(Data(path=str(tmp_path / "data"), min_df=1, cache=cache), seed=0, log=quiet)
    assert (from_folder.train.features != from_files.train.features).nnz == 0
    assert from_folder.labels.names == from_files.labels.names


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HASTE_CACHE", "/some/where")
    assert cache_folder(None) == Path("/some/where")
    monkeypatch.delenv("HASTE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder(None) == Path("/xdg/haste")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder(None) == Path("/home/me/.cache/haste")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5)), st.data())
def test_strings(strings: list[str], data: st.DataObject) -> None:
    encoded = [string.encode() for string in strings]
    stored = Strings(np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)]))
    assert len(stored) == len(strings)
    assert list(stored) == strings
    start, stop, step = (data.draw(st.integers(-7, 7)) for _ in range(3))
    assert stored[start:stop] == strings[start:stop]
    assert stored[:: step or 1] == strings[:: step or 1]
    for number in range(-len(strings), len(strings)):
        assert stored[number] == strings[number]
    with pytest.raises(IndexError):
        stored[len(strings)]
    rows = np.array(data.draw(st.lists(st.integers(0, len(strings) - 1)) if strings else st.just([])), np.int64)
    assert list(stored.take(rows)) == [strings[row] for row in rows]


def test_strings_longer_than_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_columns, "_READ", 3)
    strings = [f"{number}" * (number % 4) for number in range(20)]
    encoded = [string.encode() for string in strings]
    stored = Strings(np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)]))
    assert list(stored) == strings
    assert list(stored.take(np.arange(19, -1, -1))) == strings[::-1]


@pytest.mark.parametrize("most", [2**31 - 1, 3])
def test_rows_are_mapped_without_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(_columns, "_MOST_INT32", most)
    columns = Columns(tmp_path)
    append_rows(columns, "x", np.array([2, 0]), np.array([1, 4]), np.array([0.5, 2.0]))
    append_rows(columns, "x", np.array([3]), np.array([0, 2, 4]), np.array([1.0, 1.5, 3.0]))
    files = columns.finish()
    rows = matrix(tmp_path, "x", files, 5)
    assert rows.toarray().tolist() == [[0, 0.5, 0, 0, 2], [0, 0, 0, 0, 0], [1, 0, 1.5, 0, 3]]
    assert rows.indices.dtype == rows.indptr.dtype == (np.int32 if most > 3 else np.int64)
    assert isinstance(rows.data.base, np.memmap)
    assert most == 3 or isinstance(rows.indices.base, np.memmap)
    assert rows[np.array([2, 0])].toarray().tolist() == [[1, 0, 1.5, 0, 3], [0, 0.5, 0, 0, 2]]
    assert json.loads(json.dumps(files)) == files


@pytest.mark.parametrize("most", [1, 7, 50])
def test_pairs_are_the_same_in_any_number_of_passes(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    generator = np.random.default_rng(0)
    texts = [" ".join(f"w{x}" for x in generator.integers(0, 9, 12)) for _ in range(30)]
    ids = _words.Growing()
    with _words.Spill() as spill:
        spill.extend(_words.tokenise(texts, ids))
        frequent = np.arange(len(ids)) != 3
        whole = _words.frequent_pairs(spill, frequent, 4)
        assert len(whole) > 5
        monkeypatch.setattr(_words, "_MOST_PAIRS", most)
        assert np.array_equal(_words.frequent_pairs(spill, frequent, 4), whole)
        assert [c[0].tolist() for c in spill] == [c[0].tolist() for c in spill]
