"""Settings of the data: every one, what it means, its default and its limits."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from haste.config._checked import Checked, require


@dataclass(frozen=True, kw_only=True)
class Expected(Checked):
    """What a data set is known to hold; a run says where it finds anything else.

    train: training documents (null = not known), those that dev is drawn from too
    test: test documents
    labels: labels, those without a training document too
    """

    _section: ClassVar[str] = "data.expected"
    train: int | None = None
    test: int | None = None
    labels: int | None = None

    def _check(self) -> None:
        self._at_least(1, "train", "test", "labels")


@dataclass(frozen=True, kw_only=True)
class Propensity(Checked):
    """Constants of PSP and PSnDCG (Jain et al., 2016).

    a: exponent of the labels' frequencies
    b: added to them
    """

    _section: ClassVar[str] = "data.propensity"
    a: float = 0.55
    b: float = 1.5

    def _check(self) -> None:
        self._at_least(0, "a", "b")


@dataclass(frozen=True, kw_only=True)
class Data(Checked):
    """Where the documents and labels come from and how text becomes terms.

    path: folder or file of documents, or what the names of its files begin with; ${NAME} is read from the environment
    dev: a file of dev documents, where path is the one of train
    test: a file of test documents, where path is the one of train
    format: auto finds it from names and content
    input: what is read where there are both texts and given features (auto = text)
    text: key or column of the text; several, joined by a space, as title+body (null = text; lf: title+content)
    labels: key or column of the labels (null = labels)
    id: key or column of the documents' ids (null = id, where there is one)
    separator: between the labels in a string (null = found from the first documents)
    filter: never predict the pairs of document and label that filter files list
    max_features: keep only the most frequent terms (null = all)
    ngrams: 1 = single words, 2 = words and pairs of words
    min_df: drop terms found in fewer documents than this
    max_tokens: of a text, for a transformer; longer texts are cut
    buckets: batches of a transformer sorted by length together, so that few pads are needed (0 = none)
    dev_fraction: part of train used as dev where there is no dev file (0 = no dev split)
    max_documents: train on this many documents at most, drawn at random (null = all)
    cache: folder of the data sets made from the files (null = $HASTE_CACHE, else ~/.cache/haste)
    origin: where the data comes from; said where it is missing
    """

    _section: ClassVar[str] = "data"
    path: str
    dev: str | None = None
    test: str | None = None
    format: Literal["auto", "jsonl", "csv", "parquet", "bow", "split", "npz", "raw", "lf", "haste"] = "auto"
    input: Literal["auto", "text", "features"] = "auto"
    text: str | None = None
    labels: str | None = None
    id: str | None = None
    separator: str | None = None
    filter: bool = True
    max_features: int | None = None
    ngrams: int = 1
    min_df: int = 2
    max_tokens: int = 128
    buckets: int = 50
    dev_fraction: float = 0.05
    max_documents: int | None = None
    cache: str | None = None
    origin: str | None = None
    expected: Expected = field(default_factory=Expected)
    propensity: Propensity = field(default_factory=Propensity)

    def _check(self) -> None:
        for name in ("path", "dev", "test", "text", "labels", "id", "separator", "cache", "origin"):
            require(getattr(self, name) != "", self._key(name), "''", "not be empty")
        require(self.ngrams in (1, 2), "data.ngrams", self.ngrams, "be 1 (unigrams) or 2 (uni- and bigrams)")
        self._at_least(1, "max_features", "min_df", "max_tokens", "max_documents")
        self._at_least(0, "buckets")
        require(0 <= self.dev_fraction < 1, "data.dev_fraction", self.dev_fraction, "be in [0, 1)")
