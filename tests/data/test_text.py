import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from haste.data import _words
from haste.data.text import TfIdf

TEXTS = [
    "The cat sat on the mat.",
    "A cat is a cat, is a cat: ÉTÉ été!",
    "",
    "dog_1 sat on the dog_1's x mat",
    "The mat; the mat; THE mat",
    "12 été 12 été",
]


def _same(a: csr_matrix, b: csr_matrix) -> bool:
    """Equal to the last bit, stored entries and their order included."""
    return (
        a.shape == b.shape
        and np.array_equal(a.indptr, b.indptr)
        and np.array_equal(a.indices, b.indices)
        and np.array_equal(a.data.view(np.int32), b.data.view(np.int32))
    )


def _against_sklearn(texts: list[str], others: list[str], ngrams: int, min_df: int) -> None:
    peer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, ngrams), min_df=min_df)
    expected = peer.fit_transform(texts)
    vectorizer, rows = TfIdf.fit_transform(texts, ngrams=ngrams, min_df=min_df)
    assert vectorizer.terms == list(peer.get_feature_names_out())
    for found, wanted in ((rows, expected), (vectorizer.transform(others), peer.transform(others))):
        assert found.dtype == np.float32
        assert found.shape == wanted.shape
        assert found.has_sorted_indices
        np.testing.assert_allclose(found.toarray(), wanted.toarray(), rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("ngrams", [1, 2])
@pytest.mark.parametrize("min_df", [1, 2, 3])
def test_equals_sklearn(ngrams: int, min_df: int) -> None:
    _against_sklearn(TEXTS, ["the cat nobody saw sat on dog_1", "zzz", "", "mat the"], ngrams, min_df)


@given(
    st.lists(st.text("ab1_ÀéİΣß .-\n", max_size=40), min_size=1, max_size=8),
    st.lists(st.text("ab1_ÀéİΣß .-\n", max_size=40), max_size=3),
    st.integers(1, 2),
    st.integers(1, 2),
)
@settings(max_examples=150, deadline=None)
def test_equals_sklearn_on_anything(texts: list[str], others: list[str], ngrams: int, min_df: int) -> None:
    try:
        TfidfVectorizer(ngram_range=(1, ngrams), min_df=min_df).fit(texts)
    except ValueError:
        with pytest.raises(ValueError, match=f"min_df \\({min_df}\\) must leave at least one term"):
            TfIdf.fit(texts, ngrams=ngrams, min_df=min_df)
    else:
        _against_sklearn(texts, [*others, ""], ngrams, min_df)


@pytest.mark.parametrize("ngrams", [1, 2])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, ngrams: int) -> None:
    texts = [*TEXTS, "", "", *TEXTS]
    whole, rows = TfIdf.fit_transform(texts, ngrams=ngrams)
    for chunk in (1, 3, 10):
        monkeypatch.setattr(_words, "CHUNK", chunk)
        monkeypatch.setattr(_words, "_BLOCK", chunk)
        cut, cut_rows = TfIdf.fit_transform(iter(texts), ngrams=ngrams)
        assert cut.terms == whole.terms
        assert _same(cut_rows, rows)
        assert _same(cut.transform(texts), rows)


def test_fit_then_transform_is_fit_transform() -> None:
    vectorizer, rows = TfIdf.fit_transform(TEXTS, ngrams=2, max_features=7)
    assert _same(TfIdf.fit(TEXTS, ngrams=2, max_features=7).transform(TEXTS), rows)
    assert vectorizer.num_terms == 7


def test_max_features_keeps_the_most_frequent_and_breaks_ties_by_name() -> None:
    texts = ["bb aa cc", "cc bb dd", "ee ee ee dd"]  # ee 3 times; bb, cc, dd twice; aa once
    assert TfIdf.fit(texts, min_df=1, max_features=3).terms == ["bb", "cc", "ee"]
    # The pair "ee ee" occurs twice and sorts behind "dd".
    assert TfIdf.fit(texts, ngrams=2, min_df=1, max_features=5).terms == ["bb", "cc", "dd", "ee", "ee ee"]
    assert TfIdf.fit(texts, min_df=1, max_features=99).num_terms == 5


def test_pair_whose_words_are_no_terms() -> None:
    vectorizer = TfIdf(["aa bb"], np.ones(1, np.float32), ngrams=2)
    assert vectorizer.transform(["aa bb", "bb aa", "aa xx bb", "aa"]).toarray().tolist() == [[1], [0], [0], [0]]


def test_pairs_do_not_cross_documents() -> None:
    vectorizer = TfIdf.fit(["aa bb", "aa bb"], ngrams=2)
    assert vectorizer.terms == ["aa", "aa bb", "bb"]
    assert vectorizer.transform(["bb aa", "bb", "", "aa"]).toarray()[:, 1].tolist() == [0, 0, 0, 0]


def test_no_documents_to_transform() -> None:
    assert TfIdf.fit(TEXTS).transform([]).shape == (0, TfIdf.fit(TEXTS).num_terms)


@pytest.mark.parametrize("ngrams", [1, 2])
def test_saved_and_loaded_is_the_same(tmp_path: Path, ngrams: int) -> None:
    vectorizer = TfIdf.fit(TEXTS, ngrams=ngrams, max_features=9)
    vectorizer.save(tmp_path / "a")
    loaded = TfIdf.load(tmp_path / "a")
    assert (loaded.ngrams, loaded.min_df, loaded.max_features) == (ngrams, 2, 9)
    assert loaded.terms == vectorizer.terms
    assert _same(loaded.transform(TEXTS), vectorizer.transform(TEXTS))
    loaded.save(tmp_path / "b")
    for name in ("vectorizer.json", "vectorizer.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_load_refuses_another_header(tmp_path: Path) -> None:
    TfIdf.fit(TEXTS).save(tmp_path)
    path = tmp_path / "vectorizer.json"
    good = json.loads(path.read_text())
    for change, problem in (
        ({"format_version": 2}, r"format_version \(2\) must be 1"),
        ({"more": 1}, r"has the keys .*'more'.*, must have"),
        ({"ngrams": "1"}, r"ngrams \('1'\) must be a whole number"),
        ({"min_df": True}, r"min_df \(True\) must be a whole number"),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=r"vectorizer\.json: " + problem):
            TfIdf.load(tmp_path)
    for text in ("{", "[]", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"vectorizer\.json: .*; the file is damaged or from another"):
            TfIdf.load(tmp_path)


def _parts(vectorizer: TfIdf) -> dict[str, np.ndarray]:
    encoded = [term.encode() for term in vectorizer.terms]
    return {
        "idf": vectorizer.idf,
        "terms": np.frombuffer(b"".join(encoded), np.uint8),
        "offsets": np.cumsum([0, *map(len, encoded)]),
    }


def _with_byte(terms: np.ndarray, position: int, letter: str) -> np.ndarray:
    return np.concatenate((terms[:position], [np.uint8(ord(letter))], terms[position + 1 :]))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda p: p.pop("idf"), "must hold"),
        (lambda p: p.update(more=p["idf"]), "must hold"),
        (lambda p: p.update(idf=p["idf"][1:]), "must hold one value for each of the"),
        (lambda p: p.update(idf=p["idf"].astype(np.float64)), "must be one row of float32"),
        (lambda p: p.update(idf=p["idf"][None]), "must be one row of float32"),
        (lambda p: p.update(idf=p["idf"] * np.nan), "idf must be finite and above zero"),
        (lambda p: p.update(idf=np.array([{}] * 3, object)), "must be one row of float32"),
        (lambda p: p.update(terms=p["terms"][:-1]), "offsets must rise from 0 to"),
        (lambda p: p.update(offsets=p["offsets"][::-1]), "offsets must rise from 0 to"),
        (lambda p: p.update(offsets=p["offsets"][:0]), "offsets must rise from 0 to"),
        (lambda p: p.update(terms=p["terms"] ^ 0x80), "can't decode byte"),
        (lambda p: p.update(terms=_with_byte(p["terms"], 0, "z")), "sorted and unique"),
        (lambda p: p.update(offsets=p["offsets"][[0, -1]], idf=p["idf"][:1]), "holds 1 terms"),
        (lambda p: p.update(terms=_with_byte(p["terms"], 1, " ")), r"must have at most ngrams \(1\) words"),
    ],
)
def test_load_refuses_other_arrays(tmp_path: Path, change, problem: str) -> None:
    vectorizer = TfIdf.fit(TEXTS)
    vectorizer.save(tmp_path)
    parts = _parts(vectorizer)
    change(parts)
    np.savez(tmp_path / "vectorizer.npz", **parts)
    with pytest.raises(ValueError, match=problem) as caught:
        TfIdf.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'vectorizer.npz'}: ")


def test_load_refuses_a_damaged_compressed_or_overstated_file(tmp_path: Path) -> None:
    vectorizer = TfIdf.fit(TEXTS)
    vectorizer.save(tmp_path)
    path = tmp_path / "vectorizer.npz"
    good = path.read_bytes()

    def refused(content: bytes, problem: str) -> None:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=problem):
            TfIdf.load(tmp_path)

    refused(good[:-30], "is not a zip file")
    refused(b"", "is not a zip file")
    at = good.index(vectorizer.idf.tobytes())
    refused(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :], "Bad CRC-32")
    np.savez_compressed(path, **_parts(vectorizer))
    refused(path.read_bytes(), "neither compressed nor encrypted")
    with zipfile.ZipFile(path, "w") as packed:
        for name, array in _parts(vectorizer).items():
            with packed.open(f"{name}.npy", "w") as stream:
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": (1 << 50,)}
                np.lib.format.write_array_header_1_0(stream, header)
    refused(path.read_bytes(), r"idf \(float32, \(1125899906842624,\)\) must be one row of float32, 0 bytes")


def test_load_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"vectorizer\.json"):
        TfIdf.load(tmp_path)


def test_misuse() -> None:
    with pytest.raises(TypeError, match=r"texts \(one string\) must be several documents; put it in a list"):
        TfIdf.fit("one text")
    with pytest.raises(TypeError, match=r"texts\[1\] \(NoneType\) must be a string"):
        TfIdf.fit(["a", None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"ngrams \(3\) must be 1 \(words\) or 2 \(words and pairs of words\)"):
        TfIdf.fit(TEXTS, ngrams=3)
    with pytest.raises(ValueError, match=r"min_df \(0\) must be at least 1"):
        TfIdf.fit(TEXTS, min_df=0)
    with pytest.raises(ValueError, match=r"max_features \(0\) must be at least 1, or None for all terms"):
        TfIdf.fit(TEXTS, max_features=0)
    with pytest.raises(ValueError, match=r"is in that many of the 0 documents; lower data.min_df"):
        TfIdf.fit([])
    with pytest.raises(ValueError, match=r"terms must have at most ngrams \(1\) words"):
        TfIdf(["aa bb"], np.ones(1, np.float32))
