import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix, save_npz

from haste.config import Data
from haste.data.dataset import Dataset, Labels, Split, load_dataset, split_for
from haste.data.formats import DataError, Record, write_jsonl


def _records(*rows: tuple[str, str]) -> list[Record]:
    return [Record(f"d{i}", text, tuple(labels.split())) for i, (text, labels) in enumerate(rows)]


TRAIN = _records(
    ("red fish blue fish", "b a b"), ("one fish two fish", "c"), ("red one", ""), ("two blue", "a"), ("red one", "a")
)
TEST = _records(("red one", "a zz"), ("green eggs", "yy"), ("blue fish", "b"))


def _load(folder: Path, seed: int = 0, **settings: object) -> tuple[Dataset, list[str]]:
    lines: list[str] = []
    data = load_dataset(Data(path=str(folder), **settings), seed=seed, log=lines.append)  # type: ignore[arg-type]
    return data, [line for line in lines[1:] if not line.endswith(" a second")]


def _written(folder: Path, **splits: list[Record]) -> Path:
    for name, records in splits.items():
        write_jsonl(folder / f"{name}.jsonl.gz", records)
    return folder


def test_what_is_loaded(tmp_path: Path) -> None:
    data, lines = _load(_written(tmp_path, train=TRAIN, dev=TEST[:2], test=TEST), min_df=2)
    assert data.labels.names == ["a", "b", "c", "yy", "zz"]
    assert data.labels.num_labels == 3
    assert data.labels.counts.dtype == np.int64
    assert data.labels.counts.tolist() == [3, 1, 1]
    assert data.vectorizer.terms == ["blue", "fish", "one", "red", "two"]
    assert data.dev is not None
    assert data.test is not None
    for split, records in ((data.train, TRAIN), (data.dev, TEST[:2]), (data.test, TEST)):
        assert len(split) == len(records)
        assert list(split.ids) == [record.id for record in records]
        assert split.features.dtype == split.truth.dtype == np.float32
        assert split.features.has_sorted_indices
        assert split.truth.has_sorted_indices
        expected = data.vectorizer.transform([record.text for record in records])
        assert (split.features != expected).nnz == 0
    assert data.train.truth.toarray().tolist() == [
        [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0]
    ]  # fmt: skip
    assert data.test.truth.toarray().tolist() == [[1, 0, 0, 0, 1], [0, 0, 0, 1, 0], [0, 1, 0, 0, 0]]
    assert lines == [
        "train: dropped 1 repeated labels in 1 documents",
        "train: 1 documents have no labels",
        "train: 1 documents repeat the text of another one",
        "dev: 1 of 2 documents have the text of a training document",
        "test: 1 of 3 documents have the text of a training document",
        "train: 5 documents, 2.4 terms and 1.00 labels each",
        "dev: 2 documents, 1.0 terms and 1.50 labels each; 1 without any term of the vocabulary",
        "test: 3 documents, 1.3 terms and 1.33 labels each; 1 without any term of the vocabulary",
        "5 terms; 3 labels with a training document, 2 more without",
    ]


def test_a_part_of_train(tmp_path: Path) -> None:
    records = _records(*((f"word{i} both", f"l{i}") for i in range(40)))
    folder = _written(tmp_path, train=records, test=TEST)
    whole, _ = _load(folder, min_df=1, dev_fraction=0.25)
    part, lines = _load(folder, min_df=1, dev_fraction=0.25, max_documents=12)
    assert whole.dev is not None
    assert part.dev is not None
    assert list(part.dev.ids) == list(whole.dev.ids)
    assert len(part.train) == part.labels.num_labels == 12
    assert len(part.labels.names) == len(whole.labels.names)  # the others are known, and not trained
    assert set(part.train.ids) < set(whole.train.ids)
    assert part.vectorizer is not None
    assert part.vectorizer.num_terms == 13
    assert "train: 12 of 30 documents, drawn at random with seed 0 (data.max_documents)" in lines
    assert part.digest != whole.digest
    again, _ = _load(folder, min_df=1, dev_fraction=0.25, max_documents=12)
    other, _ = _load(folder, seed=1, min_df=1, dev_fraction=0.25, max_documents=12)
    assert list(again.train.ids) == list(part.train.ids) != list(other.train.ids)
    assert _load(folder, min_df=1, dev_fraction=0.25, max_documents=30)[0].digest == whole.digest


def test_settings_reach_the_reader_and_the_vectorizer(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"body": "aa bb aa bb", "tags": ["x"]}\n' * 3)
    (tmp_path / "one.jsonl").open("a").write('{"body": "cc", "tags": ["y"]}\n')
    data, _ = _load(
        tmp_path / "one.jsonl", text="body", labels="tags", ngrams=2, min_df=1, max_features=4, dev_fraction=0
    )
    assert data.vectorizer.terms == ["aa", "aa bb", "bb", "bb aa"]
    assert data.labels.names == ["x", "y"]
    assert (data.dev, data.test) == (None, None)


def test_path_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _written(tmp_path / ".", train=TRAIN)
    monkeypatch.setenv("SOME_DATA", str(tmp_path))
    assert len(load_dataset(Data(path="${SOME_DATA}"), seed=0).train) == 5
    monkeypatch.delenv("SOME_DATA")
    with pytest.raises(ValueError, match=r"data\.path \(\$\{SOME_DATA\}\) must only use variables that are set"):
        load_dataset(Data(path="${SOME_DATA}"), seed=0)


def _many(count: int) -> list[Record]:
    return [Record(str(i), f"word{i % 7} word{i % 5}", (f"l{i % 3}",)) for i in range(count)]


def test_dev_documents_drawn_from_train(tmp_path: Path) -> None:
    _written(tmp_path, train=_many(200))
    data, lines = _load(tmp_path, dev_fraction=0.1)
    assert data.dev is not None
    assert (len(data.train), len(data.dev)) == (180, 20)
    assert sorted([*data.train.ids, *data.dev.ids], key=int) == [str(i) for i in range(200)]
    for split in (data.train, data.dev):
        assert list(split.ids) == sorted(split.ids, key=int)
        words = [f"l{int(name) % 3}" for name in split.ids]
        assert [data.labels.names[i] for i in split.truth.indices] == words
    assert data.labels.counts.sum() == 180
    assert lines[0] == (
        "no dev file: 20 of the 200 training documents, drawn at random with seed 0, "
        "are the dev split and not trained on (data.dev_fraction 0.1)"
    )
    again, other = _load(tmp_path, dev_fraction=0.1)[0], _load(tmp_path, seed=1, dev_fraction=0.1)[0]
    assert again.dev is not None
    assert other.dev is not None
    assert list(again.dev.ids) == list(data.dev.ids)
    assert list(other.dev.ids) != list(data.dev.ids)


def test_at_most_5000_dev_documents_and_never_all(tmp_path: Path) -> None:
    data, _ = _load(_written(tmp_path, train=_many(6000)), dev_fraction=0.9)
    assert data.dev is not None
    assert (len(data.train), len(data.dev)) == (1000, 5000)
    data, _ = _load(_written(tmp_path, train=_many(4)), dev_fraction=0.99, min_df=1)
    assert data.dev is not None
    assert (len(data.train), len(data.dev)) == (1, 3)


def test_too_few_documents_for_a_dev_split(tmp_path: Path) -> None:
    data, lines = _load(_written(tmp_path, train=TRAIN), dev_fraction=0.05)
    assert data.dev is None
    assert "no dev split: no dev file, and data.dev_fraction (0.05) of 5 is none" in lines


def test_labels_of_a_dev_document_only_are_not_trained(tmp_path: Path) -> None:
    records = [Record(str(i), "aa bb", (f"only{i}",)) for i in range(10)]
    data, _ = _load(_written(tmp_path, train=records), dev_fraction=0.2)
    assert data.dev is not None
    assert data.labels.num_labels == 8
    assert data.labels.names[8:] == [f"only{i}" for i in data.dev.ids]
    assert data.dev.truth.indices.tolist() == [8, 9]


def test_batch(tmp_path: Path) -> None:
    data, _ = _load(_written(tmp_path, train=TRAIN, test=TEST), min_df=1, dev_fraction=0)
    rows = np.array([4, 0, 0, 2])
    (offsets, terms, values), (label_offsets, labels) = data.train.batch(rows)
    assert [t.dtype for t in (offsets, terms, label_offsets, labels)] == [torch.int64] * 4
    assert values.dtype == torch.float32
    expected = data.train.features[rows]
    dense = torch.zeros(4, data.vectorizer.num_terms)
    for i in range(4):
        dense[i, terms[offsets[i] : offsets[i + 1]]] = values[offsets[i] : offsets[i + 1]]
    assert np.array_equal(dense.numpy(), expected.toarray())
    assert label_offsets.tolist() == [0, 1, 3, 5, 5]
    assert labels.tolist() == [0, 0, 1, 0, 1]


def test_batch_leaves_out_labels_without_a_row(tmp_path: Path) -> None:
    data, _ = _load(_written(tmp_path, train=TRAIN, test=TEST), dev_fraction=0)
    assert data.test is not None
    (offsets, _, values), (label_offsets, labels) = data.test.batch(np.arange(3))
    assert offsets.tolist() == [0, 2, 2, 4]  # the second document has no known term
    assert len(values) == 4
    assert label_offsets.tolist() == [0, 1, 1, 2]
    assert labels.tolist() == [0, 1]


def test_batch_does_not_share_memory_with_the_split(tmp_path: Path) -> None:
    data, _ = _load(_written(tmp_path, train=TRAIN), dev_fraction=0)
    before = data.train.features.toarray()
    (_, _, values), _ = data.train.batch(np.arange(5))
    values.zero_()
    assert np.array_equal(data.train.features.toarray(), before)


def test_a_split_in_the_terms_and_labels_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    model, _ = _load(_written(tmp_path / "a", train=TRAIN, test=TEST), dev_fraction=0)
    other = Data(path=str(_written(tmp_path / "b", train=TRAIN, test=_records(("blue zebra fish", "new c yy a new")))))
    split = split_for(other, "test", model.labels, model.vectorizer, inputs="text", seed=0)
    with pytest.raises(DataError, match="there is no dev split; found train, test"):
        split_for(other, "dev", model.labels, model.vectorizer, inputs="text", seed=0)
    drawn = split_for(replace(other, dev_fraction=0.4), "dev", model.labels, model.vectorizer, inputs="text", seed=0)
    theirs, _ = _load(tmp_path / "b", dev_fraction=0.4)
    assert theirs.dev is not None
    assert list(drawn.ids) == list(theirs.dev.ids)
    chosen = [record.text for record in TRAIN if record.id in list(drawn.ids)]
    assert (drawn.features != model.vectorizer.transform(chosen)).nnz == 0
    assert drawn.truth.shape == (2, 6)
    assert model.vectorizer is not None
    assert (split.features != model.vectorizer.transform(["blue zebra fish"])).nnz == 0
    assert model.labels.names == ["a", "b", "c", "yy", "zz"]
    assert split.num_labels == 3
    assert split.truth.toarray().tolist() == [[1, 0, 1, 1, 0, 1]]  # "new" gets a column of its own
    with pytest.raises(DataError, match="holds texts; the model reads dense features, as it was trained on"):
        split_for(other, "test", model.labels, None, inputs="dense", seed=0)
    again = split_for(other, "test", model.labels, model.vectorizer, inputs="text", seed=0)
    assert (again.features != split.features).nnz == 0


def test_filter_pairs_reach_the_labels_they_mean(tmp_path: Path) -> None:
    names = ["x", "b", "a"]
    labels = "".join(json.dumps({"uid": name, "title": f"the {name}"}) + "\n" for name in names)
    (tmp_path / "lbl.json").write_text(labels)
    rows = [[1, 2], [2], [1]]
    for name in ("trn", "tst"):
        lines = [{"uid": str(i), "title": "aa bb", "content": "cc", "target_ind": x} for i, x in enumerate(rows)]
        (tmp_path / f"{name}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "filter_labels_test.txt").write_text("1 1\n1 0\n2 2\n0 2\n")
    data, lines = _load(tmp_path, dev_fraction=0)
    assert data.labels.names == ["a", "b", "x"]
    assert data.labels.texts == ["the a", "the b", "the x"]
    assert data.test is not None
    assert data.test.filter is not None
    assert data.test.filter.toarray().tolist() == [[1, 0], [0, 1], [1, 0]]  # x is not trained and never predicted
    exclude = data.test.exclude(np.array([1, 0]))
    assert exclude is not None
    assert [x.tolist() for x in exclude] == [[0, 1, 2], [1, 0]]
    assert data.train.exclude(np.array([1])) is None
    assert "test: 3 pairs of document and label are never predicted (data.filter)" in lines
    off, _ = _load(tmp_path, dev_fraction=0, filter=False)
    assert off.test is not None
    assert off.test.filter is None


@pytest.mark.parametrize("dense", [False, True])
def test_given_features(tmp_path: Path, dense: bool) -> None:
    generator = np.random.default_rng(0)
    x = generator.random((20, 6)).astype(np.float32) * (generator.random((20, 6)) < 0.5)
    y = csr_matrix(generator.random((20, 4)) < 0.5, dtype=np.float32)
    if dense:
        np.save(tmp_path / "X.trn.npy", x)
    else:
        save_npz(tmp_path / "X.trn.npz", csr_matrix(x))
    save_npz(tmp_path / "Y.trn.npz", y)
    data, _ = _load(tmp_path, dev_fraction=0.2)
    assert data.kind == ("dense" if dense else "sparse")
    assert data.vectorizer is None
    assert data.num_inputs == 6
    assert data.dev is not None
    rows = [int(name) - 1 for name in [*data.train.ids, *data.dev.ids]]
    found = [part.features if dense else part.features.toarray() for part in (data.train, data.dev)]
    assert np.array_equal(np.concatenate(found), x[rows])
    truth = np.concatenate([part.truth.toarray() for part in (data.train, data.dev)])
    assert np.array_equal(truth, y.toarray()[rows][:, [int(name) for name in data.labels.names]])
    documents, _ = data.dev.batch(np.array([1, 0]))
    if dense:
        assert np.array_equal(documents.numpy(), x[rows[16:]][[1, 0]])
    else:
        assert documents[1].dtype == torch.int64


def test_the_same_data_has_the_same_digest(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, _ = _load(_written(tmp_path / "a", train=_many(50)), dev_fraction=0.1)
    (tmp_path / "b" / "train.jsonl").write_bytes(gzip.decompress((tmp_path / "a" / "train.jsonl.gz").read_bytes()))
    other, _ = _load(tmp_path / "b", dev_fraction=0.1)
    assert one.digest == other.digest
    digests = {_load(tmp_path / "b", seed=seed, dev_fraction=f)[0].digest for seed, f in ((0, 0.1), (1, 0.1), (0, 0.2))}
    assert len(digests) == 3
    write_jsonl(tmp_path / "b" / "train.jsonl", [*_many(49), Record("49", "word0 word4", ("l2",))])
    assert _load(tmp_path / "b", dev_fraction=0.1)[0].digest != one.digest


def test_labels_saved_and_loaded(tmp_path: Path) -> None:
    labels = Labels(["a", "é\u2028", "later"], np.array([5, 1]))
    labels.save(tmp_path / "labels.jsonl")
    loaded = Labels.load(tmp_path / "labels.jsonl")
    assert loaded.names == labels.names
    assert loaded.counts.tolist() == [5, 1]
    assert loaded.counts.dtype == np.int64
    assert loaded.num_labels == 2
    assert loaded.texts is None
    Labels(labels.names, labels.counts, ["", "words", ""]).save(tmp_path / "labels.jsonl")
    assert Labels.load(tmp_path / "labels.jsonl").texts == ["", "words", ""]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"label": "b"}', 'must be {"label": name, "count": whole number}'),
        ('{"label": "b", "count": 1, "x": 1}', 'must be {"label": name, "count": whole number}'),
        ('{"label": "b", "count": true}', 'must be {"label": name, "count": whole number}'),
        ('{"label": 3, "count": 1}', 'must be {"label": name, "count": whole number}'),
        ('{"label": "a", "count": 0}', "label 'a' stands in an earlier line too"),
        ('{"label": "b", "count": 1}', "count (1) must be above 0, or 0 from here to the end"),
        ('{"label": "b", "count": -1}', "count (-1) must be above 0, or 0 from here to the end"),
        ('{"label": "b", "count": 9223372036854775808}', "count (9223372036854775808) must be above 0"),
        ("[]", "found a list, must be a JSON object; write one object on each line"),
    ],
)
def test_labels_file_with_something_else(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"label": "a", "count": 2}\n{"label": "z", "count": 0}\n' + line)
    with pytest.raises(DataError) as caught:
        Labels.load(path)
    assert str(caught.value).startswith(f"{path}:3: {problem}")


def test_empty_split_and_data_without_labels(tmp_path: Path) -> None:
    _written(tmp_path, train=TRAIN, test=[])
    with pytest.raises(DataError) as caught:
        _load(tmp_path)
    assert str(caught.value) == (f"{tmp_path / 'test.jsonl.gz'}: holds no documents; remove the file or fill it")
    _written(tmp_path, train=[Record("a", "aa bb", ())] * 3, test=TEST)
    with pytest.raises(DataError) as caught:
        _load(tmp_path, min_df=1)
    assert str(caught.value) == f"{tmp_path}: no training document has a label; check data.labels (labels)"


def test_malformed_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "aa", "labels": []}\n{"text": "aa"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:2: no key 'labels'"):
        _load(tmp_path)


def test_reading_jsonl_imports_no_scikit_learn(tmp_path: Path) -> None:
    _written(tmp_path, train=TRAIN)
    code = (
        "import sys; from haste.config import Data; from haste.data.dataset import load_dataset; "
        f"load_dataset(Data(path={str(tmp_path)!r}), seed=0); "
        "print([name for name in ('sklearn', 'pyarrow', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_documents(tmp_path: Path) -> None:
    code = (
        "import sys; from haste.config import Data; from haste.data.dataset import load_dataset; "
        "from haste.data import _words; from haste.train.record import peak_memory; "
        "_words._MOST_PAIRS = 1 << 20; before = peak_memory(); "
        "load_dataset(Data(path=sys.argv[1], cache=sys.argv[2], ngrams=2, max_features=5000), seed=0); "
        "print((peak_memory() - before) >> 20)"
    )
    grown = []
    for size in (30_000, 120_000):
        generator = np.random.default_rng(0)
        folder = tmp_path / str(size)
        folder.mkdir()
        texts = (" ".join(f"w{x}" for x in generator.integers(0, 300, 60)) for _ in range(size))
        write_jsonl(folder / "train.jsonl", (Record(str(n), text, (f"l{n % 50}",)) for n, text in enumerate(texts)))
        command = [sys.executable, "-c", code, str(folder), str(tmp_path / "cache")]
        grown.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert grown[1] < grown[0] + 60  # MiB; the pairs of words alone would be 54 more, and the rows 80


def _shared_data(name: str) -> Path:
    root = os.environ.get("HASTE_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(root) / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set HASTE_DATA to the folder of the data sets")
    return folder


@pytest.mark.slow
def test_eurlex57k() -> None:
    data, _ = _load(_shared_data("eurlex57k"), min_df=3)
    splits = [data.train, data.dev, data.test]
    assert all(isinstance(split, Split) for split in splits)
    assert [len(split) for split in splits if split] == [45000, 6000, 6000]
    assert data.labels.num_labels == 4108
    assert len(data.labels.names) == 4271
    assert data.vectorizer.num_terms == 28101
    assert round(data.train.truth.nnz / 45000, 2) == 5.07
