"""Documents a second of every stage of the data path, beside scikit-learn's tf-idf on the same texts.

    python benchmarks/data_path.py PATH [--ngrams N] [--min-df N] [--max-features N]

Each stage runs in a process of its own, so that its peak memory is its own. First it is checked that both vectorizers
give the same rows. Prints one JSON line; ratios above 1 are in favour of haste.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from haste.bench.machine import describe
from haste.config import Data
from haste.data.check import check
from haste.data.dataset import load_dataset
from haste.data.formats import detect
from haste.data.store import open_store
from haste.train.record import peak_memory

STAGES = ("check", "store", "terms", "open", "batches", "scikit-learn")


def quiet(text: str) -> None:
    pass


def timed(stage: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Seconds that went by and seconds of the processor, and what the stage returned."""
    started = time.perf_counter(), time.process_time()
    result = stage()
    return (time.perf_counter() - started[0], time.process_time() - started[1]), result


def run_stage(stage: str, config: Data) -> dict[str, float]:
    """Seconds, documents and bytes of peak memory of one stage; what comes before it is made already."""
    if stage == "check":
        seconds, report = timed(lambda: check(detect(config)))
        documents = sum(split.documents for split in report.splits.values())
    elif stage == "store":
        seconds, store = timed(lambda: open_store(config, log=quiet))
        documents = sum(map(len, store.splits.values()))
    elif stage in ("terms", "open"):
        seconds, data = timed(lambda: load_dataset(config, seed=0, log=quiet))
        documents = sum(len(split) for split in (data.train, data.dev, data.test) if split)
    elif stage == "batches":
        train = load_dataset(config, seed=0, log=quiet).train
        order = np.random.default_rng(0).permutation(len(train))

        def batches() -> None:
            for start in range(0, len(train), 256):
                train.batch(order[start : start + 256])

        seconds, documents = timed(batches)[0], len(train)
    else:
        seconds, documents = scikit_learn(config)
    return {
        "seconds": seconds[0],
        "processor_seconds": seconds[1],
        "documents": documents,
        "peak_memory_bytes": peak_memory(),
    }


def scikit_learn(config: Data) -> tuple[tuple[float, float], int]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    store = open_store(config, log=quiet)
    data = load_dataset(config, seed=0, log=quiet)
    chosen = set(data.train.ids)
    part = store.splits["train"]
    assert part.texts is not None
    texts = [text for name, text in zip(part.ids, part.texts, strict=True) if name in chosen]
    vectorizer = TfidfVectorizer(
        sublinear_tf=True,
        min_df=config.min_df,
        ngram_range=(1, config.ngrams),
        max_features=config.max_features,
        dtype=np.float32,
    )
    seconds, rows = timed(lambda: vectorizer.fit_transform(texts))
    assert data.vectorizer is not None
    if data.vectorizer.terms == sorted(vectorizer.vocabulary_):
        difference = abs(rows - data.train.features).max()
        assert difference < 1e-6, f"rows differ by {difference}"
    else:
        assert config.max_features, "the vocabularies differ"
    return seconds, len(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--ngrams", type=int, default=1)
    parser.add_argument("--min-df", type=int, default=2)
    parser.add_argument("--max-features", type=int)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    options = parser.parse_args()
    settings = {"ngrams": options.ngrams, "min_df": options.min_df, "max_features": options.max_features}
    if options.stage:
        config = Data(path=options.path, cache=options.cache, **settings)
        print(json.dumps(run_stage(options.stage, config)))
        return
    rows = {}
    with tempfile.TemporaryDirectory() as cache:
        for stage in STAGES:
            command = [sys.executable, __file__, *sys.argv[1:], "--stage", stage, "--cache", cache]
            rows[stage] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    theirs = rows["scikit-learn"]

    def rate(row: dict[str, float], what: str) -> float:
        return row["documents"] / row[what]

    result = {
        stage: {
            "documents_per_second": round(rate(row, "seconds")),
            "over_scikit_learn": round(rate(row, "seconds") / rate(theirs, "seconds"), 2),
            "over_scikit_learn_by_processor_time": round(
                rate(row, "processor_seconds") / rate(theirs, "processor_seconds"), 2
            ),
            "peak_memory_mib": round(row["peak_memory_bytes"] / 2**20),
        }
        for stage, row in rows.items()
    }
    shape = {"data": Path(options.path).name, "documents": rows["store"]["documents"], **settings}
    print(json.dumps({"claim": "data-path", "shape": shape, "stages": result, **describe(torch.device("cpu"))}))


if __name__ == "__main__":
    main()
