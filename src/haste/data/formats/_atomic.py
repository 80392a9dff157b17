"""Files that appear complete or not at all."""

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path) -> Iterator[Any]:
    """A stream of bytes to be written to `path`, which appears when the block ends without an error.

    A name that ends in .gz or .zst packs. The same bytes always make the same file.
    """
    partial = path.with_name(path.name + ".tmp")
    try:
        with open(partial, "wb") as raw:
            if path.name.endswith(".gz"):
                # No name and no time in the header.
                with gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
                    yield packed
            elif path.name.endswith(".zst"):
                import pyarrow

                with pyarrow.CompressedOutputStream(pyarrow.PythonFile(raw, "w"), "zstd") as packed:
                    yield packed
            else:
                yield raw
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
