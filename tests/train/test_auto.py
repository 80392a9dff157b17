"""Settings from the data: the facts they are chosen from, against the documents themselves."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix, save_npz

from haste.config import Config, Data
from haste.data.store import open_store
from haste.train.auto import complete, facts_of


def quiet(line: str) -> None:
    pass


def test_facts_of_texts(tiny_data: Path) -> None:
    facts = facts_of(open_store(Data(path=str(tiny_data)), log=quiet), "cpu")
    rows = [json.loads(line) for line in (tiny_data / "train.jsonl").read_text().splitlines()]
    pairs = [label for row in rows for label in row["labels"]]
    assert (facts.num_documents, facts.num_labels, facts.kind) == (240, len(set(pairs)), "text")
    assert facts.labels_per_document == pytest.approx(len(pairs) / 240)
    assert facts.words_per_document == pytest.approx(np.mean([len(row["text"].split()) for row in rows]))
    assert facts.has_dev
    assert facts.num_inputs is None
    assert facts.device == "cpu"
    assert facts.memory_bytes > 2**20


def test_words_are_counted_in_some_of_many_documents(tmp_path: Path) -> None:
    path = tmp_path / "many.csv"
    path.write_text("text,labels\n" + "".join(f"{'word ' * (n % 2 + 1)},a\n" for n in range(5000)))
    facts = facts_of(open_store(Data(path=str(path)), log=quiet), "cpu")
    assert facts.words_per_document == pytest.approx(1.5, abs=0.1)
    assert not facts.has_dev


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_facts_of_features(kind: str, tmp_path: Path) -> None:
    rows = np.eye(6, 7, dtype=np.float32)
    if kind == "sparse":
        save_npz(tmp_path / "X.trn.npz", csr_matrix(rows))
    else:
        np.save(tmp_path / "X.trn.npy", rows)
    # the last label has no document
    save_npz(tmp_path / "Y.trn.npz", csr_matrix(np.eye(6, 3, dtype=np.float32)[:, :3] * [1, 1, 0]))
    facts = facts_of(open_store(Data(path=str(tmp_path)), log=quiet), "cpu")
    assert (facts.kind, facts.num_inputs, facts.words_per_document) == (kind, 7, None)
    assert (facts.num_documents, facts.num_labels) == (6, 2)
    assert facts.labels_per_document == pytest.approx(2 / 6)


def test_what_was_given_stays_and_the_rest_makes_a_configuration(tiny_data: Path, tmp_path: Path) -> None:
    given = {"data": {"path": str(tiny_data)}, "output": {"fan_in": 5}, "run": {"dir": str(tmp_path / "run")}}
    values, reasons = complete(given, log=quiet)
    config = Config.from_dict(values)
    assert (config.output.fan_in, config.data.path) == (5, str(tiny_data))
    assert reasons
    assert not any(line.startswith("output.fan_in") for line in reasons)


def test_a_folder_in_the_way_is_refused_before_the_data_is_read(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    with pytest.raises(ValueError, match=r"must be new or empty; choose another run.dir"):
        complete({"data": {"path": "nothing-here"}, "run": {"dir": str(tmp_path / "run")}}, log=quiet)
