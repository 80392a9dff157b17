"""How many tokens of batches are pads, with documents as they come and bucketed by length.

python benchmarks/padding.py DATA TOKENIZER [--documents 10000] [--max-tokens 128] [--batch-size 128] [--buckets 50]
"""

import argparse

import numpy as np

from haste.config import Data
from haste.data.store import open_store
from haste.data.tokens import Tokenizer
from haste.train.batches import epoch_order, pad_share


def main() -> None:
    """Print a line for every way to make batches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="as data.path")
    parser.add_argument("tokenizer", metavar="TOKENIZER", help="as encoder.name")
    parser.add_argument("--documents", type=int, default=10_000, help="of train, drawn at random (default 10,000)")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--buckets", type=int, nargs="+", default=[50])
    options = parser.parse_args()
    tokenizer = Tokenizer.pretrained(options.tokenizer, options.max_tokens)
    texts = open_store(Data(path=options.data), log=print).splits["train"].texts
    if texts is None:
        raise SystemExit(f"{options.data} must hold texts; it holds given features")
    drawn = np.random.default_rng(0).permutation(len(texts))[: options.documents]
    lengths = tokenizer.transform(texts.take(drawn)).lengths
    mean, longest = lengths.mean(), np.mean(lengths == options.max_tokens)
    print(f"{len(lengths):,} documents, {mean:.1f} tokens on average, {longest:.1%} of {options.max_tokens}")
    print(f"all documents as long as {options.max_tokens}: {1 - mean / options.max_tokens:.1%} pads")
    for buckets in (0, *options.buckets):
        rows = np.arange(len(lengths))
        order = epoch_order(rows, options.batch_size, seed=0, epoch=0, lengths=lengths, buckets=buckets)
        share = pad_share(lengths, *order)
        print(f"batches of {options.batch_size}, data.buckets {buckets}: {share:.1%} pads")


if __name__ == "__main__":
    main()
