"""Lines of plain and packed files, and words for what is wrong with them."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from haste.data.source import DataError, Problem, raise_problem

PACKED = ("", ".gz", ".zst")
_BOM = b"\xef\xbb\xbf"
_BUFFER = 1 << 17
_GZIP_BUFFER = 1 << 13


class Malformed(Exception):
    """What is wrong with a line, before the file and the line's number are put in front."""


def ignore(_: DataError) -> None:
    """The Problem of those who only look at what a file seems to hold."""


class Noted:
    """A Problem that passes on what it is told.

    told: how often it was told anything
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.told = 0

    def __call__(self, error: DataError) -> None:
        self.told += 1
        self._problem(error)


def at(path: Path, line: int, problem: object) -> DataError:
    """The error that names the file and the line."""
    return DataError(f"{path}:{line}: {problem}")


def lines(path: Path, problem: Problem = raise_problem) -> Iterator[tuple[int, bytes]]:
    """(number from 1, bytes with their line end) of every line, a byte-order mark left out.

    path: read as gzip or Zstandard if its name ends in .gz or .zst
    problem: is told, once, that the file cannot be read on
    """
    number = 0
    try:
        with _open(path) as stream:
            for number, raw in enumerate(stream, 1):
                yield number, raw.removeprefix(_BOM) if number == 1 else raw
        return
    except FileNotFoundError:
        error = DataError(f"{path}: no such file")
    except EOFError:
        error = at(path, number + 1, "the gzip file is cut short; get it again")
    except (gzip.BadGzipFile, zlib.error) as cause:
        error = at(
            path,
            number + 1,
            f"not readable as gzip ({cause}); get it again, or drop .gz from the name of a plain file",
        )
    except OSError as cause:
        error = _unreadable(path, number + 1, cause)
    problem(error)


def _open(path: Path) -> IO[bytes]:
    if path.name.endswith(".gz"):
        # A line out of this buffer costs no call of Python code. It is small: where the file breaks off, it is lost.
        return io.BufferedReader(gzip.open(path, "rb"), _GZIP_BUFFER)
    if path.name.endswith(".zst"):
        import pyarrow  # a second to import: only those who need it wait

        with open(path, "rb"):
            pass  # Arrow's errors have no number that tells a missing file from a folder
        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path), "rb"), "zstd"), _BUFFER)
    return open(path, "rb", _BUFFER)


def _unreadable(path: Path, number: int, cause: OSError) -> DataError:
    if path.name.endswith(".zst") and cause.errno is None:
        if "Truncated" in str(cause):
            return at(path, number, "the Zstandard file is cut short; get it again")
        return at(
            path,
            number,
            f"not readable as Zstandard ({cause}); get it again, or drop .zst from the name of a plain file",
        )
    return at(path, number, f"cannot be read ({cause.strerror or cause})")


def count_lines(path: Path) -> int:
    """Lines that are not blank. Raises DataError if the file cannot be read."""
    return sum(1 for _, raw in lines(path) if raw.strip())


def decode(raw: bytes) -> str:
    """A line's text without its line end. Raises Malformed if it is not UTF-8."""
    try:
        return raw.rstrip(b"\r\n").decode()
    except UnicodeDecodeError as error:
        raise Malformed(
            f"byte {raw[error.start]:#04x} at column {error.start + 1} is not UTF-8; save the file as UTF-8"
        ) from None


def check_no_nul(line: str) -> str:
    """Gives the line back. Raises Malformed if it holds NUL, which a file of another encoding is full of."""
    if "\0" in line:
        raise Malformed(f"holds a NUL character at column {line.index(chr(0)) + 1}; save the file as plain UTF-8 text")
    return line


def check_encodable(key: str, value: str) -> str:
    """Gives the value back. Raises Malformed if it holds half a surrogate pair, which no file of ours can hold."""
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise Malformed(f"the value of '{key}' holds half a surrogate pair ({half}); remove it") from None
    return value


def excerpt(value: str) -> str:
    """The beginning of a text, in quotes."""
    value = value.strip()
    return repr(value if len(value) <= 40 else value[:37] + "...")


def kind_of(value: object) -> str:
    """A value in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the string {excerpt(value)}"
    return "a list" if isinstance(value, list) else "an object"


def some(names: list[str], none: str = "none") -> str:
    """The first eight names, or the word for none at all."""
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or none


def joined(names: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
