"""How many tokens of batches are pads, with documents as they come and bucketed by length.

python benchmarks/padding.py DATA TOKENIZER [--max-tokens 128] [--batch-size 128] [--buckets 50]
"""

import argparse

import numpy as np

from haste.config import Data
from haste.data.dataset import load_dataset
from haste.data.tokens import Tokenizer, Tokens
from haste.train.batches import epoch_order, pad_share


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="as data.path")
    parser.add_argument("tokenizer", metavar="TOKENIZER", help="as encoder.name")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--buckets", type=int, nargs="+", default=[50])
    options = parser.parse_args()
    tokenizer = Tokenizer.pretrained(options.tokenizer, options.max_tokens)
    features = load_dataset(Data(path=options.data), seed=0, tokenizer=tokenizer, log=print).train.features
    assert isinstance(features, Tokens)
    lengths = features.lengths
    cut = np.mean(lengths == options.max_tokens)
    print(
        f"{len(lengths):,} documents, {lengths.mean():.1f} tokens on average, {cut:.1%} of {options.max_tokens} or cut"
    )
    print(f"pads of all documents at {options.max_tokens}: {1 - lengths.mean() / options.max_tokens:.1%}")
    for buckets in (0, *options.buckets):
        order = epoch_order(
            np.arange(len(lengths)), options.batch_size, seed=0, epoch=0, lengths=lengths, buckets=buckets
        )
        print(f"pads of batches of {options.batch_size}, data.buckets {buckets}: {pad_share(lengths, *order):.1%}")


if __name__ == "__main__":
    main()
