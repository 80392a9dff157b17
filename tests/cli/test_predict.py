"""`haste predict RUN --input FILE`: one answer for the same documents in any format; what does not fit is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.sparse import csr_matrix, load_npz, random_array, save_npz

from haste.cli import main
from haste.config import Data
from haste.data.formats import detect, write

SETTINGS: dict[str, Any] = {
    "encoder": {"features": 32},
    "output": {"fan_in": 8, "group_size": 4, "head_ratio": 0.2},
    "optim": {"epochs": 2, "batch_size": 32, "warmup_steps": 3},
}


def train(data: Path, folder: Path, **sections: Any) -> Path:
    values = {**SETTINGS, **sections, "data": {"path": str(data), "cache": str(folder / "cache")}}
    values["run"] = {"dir": str(folder / "run"), "threads": 1, "device": "cpu"}
    (folder / "settings.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", str(folder / "settings.yaml")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def text_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny_data, tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def sparse_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80/20 documents of 12 sparse columns with 9 labels, as npz."""
    folder = tmp_path_factory.mktemp("sparse-data")
    for split, size, seed in (("trn", 80, 0), ("tst", 20, 1)):
        generator = np.random.default_rng(seed)
        rows = random_array((size, 12), density=0.4, rng=generator, dtype=np.float32)
        save_npz(folder / f"X.{split}.npz", csr_matrix(rows))
        save_npz(folder / f"Y.{split}.npz", csr_matrix(generator.random((size, 9)) < 0.3, dtype=np.float32))
    return folder


@pytest.fixture(scope="module")
def sparse_run(sparse_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(sparse_data, tmp_path_factory.mktemp("sparse"))


@pytest.fixture(scope="module")
def dense_data(sparse_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense-data")
    for split in ("trn", "tst"):
        np.save(folder / f"X.{split}.npy", load_npz(sparse_data / f"X.{split}.npz").toarray())
        save_npz(folder / f"Y.{split}.npz", load_npz(sparse_data / f"Y.{split}.npz"))
    return folder


@pytest.fixture(scope="module")
def dense_run(dense_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = {"fan_in": 8, "group_size": 4}
    return train(
        dense_data, tmp_path_factory.mktemp("dense"), encoder={"kind": "features", "features": 0}, output=output
    )


@pytest.fixture
def predict(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[Any]]:
    """Runs haste predict; the labels of every document."""

    def run(run: Path, file: Path, *arguments: str) -> list[Any]:
        capsys.readouterr()
        assert main(["predict", str(run), "--input", str(file), "--top-k", "3", *arguments]) == 0
        return [json.loads(line)["labels"] for line in capsys.readouterr().out.splitlines()]

    return run


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("jsonl", "test.jsonl"),
        ("csv", "test.csv"),
        ("parquet", "test.parquet"),
        ("lf", "tst.json"),
        ("raw", "tst_X.txt"),
    ],
)
def test_texts_in_any_format(
    form: str, file: str, text_run: Path, tiny_data: Path, tmp_path: Path, predict: Callable[..., list[Any]]
) -> None:
    write(form, tmp_path / form, detect(Data(path=str(tiny_data))))
    expected = predict(text_run, tiny_data / "test.jsonl")
    assert len(expected) == 40
    assert predict(text_run, tmp_path / form / file) == expected


def test_texts_in_other_columns_and_without_labels(
    text_run: Path, tiny_data: Path, tmp_path: Path, predict: Callable[..., list[Any]]
) -> None:
    rows = [json.loads(line) for line in (tiny_data / "test.jsonl").read_text().splitlines()]
    path = tmp_path / "new.csv"
    path.write_text("number,subject\n" + "".join(f"{n},{row['text']}\n" for n, row in enumerate(rows)))
    assert predict(text_run, path, "--data.text", "subject") == predict(text_run, tiny_data / "test.jsonl")


@pytest.mark.parametrize(("form", "file"), [("bow", "test.txt"), ("split", "tst_X_Xf.txt"), ("npz", "X.tst.npz")])
def test_sparse_features_in_any_format(
    form: str, file: str, sparse_run: Path, sparse_data: Path, tmp_path: Path, predict: Callable[..., list[Any]]
) -> None:
    write(form, tmp_path / form, detect(Data(path=str(sparse_data))))
    expected = predict(sparse_run, sparse_data / "X.tst.npz")
    assert len(expected) == 20
    assert predict(sparse_run, tmp_path / form / file) == expected


def test_dense_features(dense_run: Path, dense_data: Path, predict: Callable[..., list[Any]]) -> None:
    rows = predict(dense_run, dense_data / "X.tst.npy")
    assert len(rows) == 20
    assert all(len(row) == 3 for row in rows)


def test_what_the_model_does_not_read_is_refused(
    text_run: Path,
    sparse_run: Path,
    dense_run: Path,
    dense_data: Path,
    sparse_data: Path,
    tiny_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sparse, dense, text = sparse_data / "X.tst.npz", dense_data / "X.tst.npy", tiny_data / "test.jsonl"
    save_npz(tmp_path / "wide.npz", csr_matrix(np.ones((2, 1300), np.float32)))
    for run, given, message in (
        (text_run, ["--input", str(sparse)], f"{sparse}: holds sparse features, the model reads texts"),
        (sparse_run, ["--input", str(dense)], f"{dense}: holds dense features, the model reads sparse features"),
        (dense_run, ["--input", str(text)], f"{text}: holds texts, the model reads dense features"),
        (sparse_run, ["--text", "words"], f"--text must be --input FILE with features: {sparse_run} reads sparse"),
        (sparse_run, ["--input", str(tmp_path / "wide.npz")], "has 1,300 columns, the model reads 12; make them"),
        (text_run, ["--input", str(tmp_path / "none.csv")], "none.csv: no such file"),
        (text_run, ["--input", str(tiny_data)], "no such file; give one file of documents"),
    ):
        assert main(["predict", str(run), *given]) == 2
        assert message in capsys.readouterr().err


def test_a_document_that_is_wrong_is_named_and_no_output_is_left(
    text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new.csv"
    path.write_text("text\nfine\nnot,fine\n")
    assert main(["predict", str(text_run), "--input", str(path), "--output", str(tmp_path / "out.jsonl")]) == 2
    assert f"{path}:3: has 2 fields, the header 1" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
