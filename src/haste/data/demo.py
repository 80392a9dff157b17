"""Real data without a download: the Python code on this machine, its functions' docstrings and what they call."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from haste.data.formats import DataError, Record, write_jsonl

_logger = logging.getLogger(__name__)
_FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
# Import name -> distribution: what haste itself needs, and the two large libraries that torch brings along.
_PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "safetensors": "safetensors",
    "pyarrow": "pyarrow",
    "jsonargparse": "jsonargparse",
    "yaml": "pyyaml",
    "rich": "rich",
    "sympy": "sympy",
    "networkx": "networkx",
}
# Where the words of a name meet: snake_case, camelCase, HTTPServer, log2.
_boundaries = re.compile(r"_+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def write_demo_data(
    folder: str | Path,
    *,
    folders: Mapping[str, Path] | None = None,
    log: Callable[[str], None] = _logger.info,
) -> Path:
    """Write train, dev and test documents made of Python code to `folder`, unless they are there already.

    A document is a function with a docstring: its text is its name, whole and as words, and the docstring; its
    labels are the names that its body calls (the last part of a dotted one). Labels of one document only and
    documents without labels are dropped, and so are exact copies. Tests and private modules (a name that
    starts with an underscore) are not read. A twentieth of the texts, chosen by their SHA-256, are dev, a tenth
    test; documents with the same text stay together. The result is the same wherever the code is the same.

    folders: name -> folder of code; None = the standard library and the installed packages haste depends on
    log: called with lines that tell what was read, left out and written
    Returns: `folder`, holding {train,dev,test}.jsonl.gz and manifest.json, by which it is found to be up to date.
    Raises: DataError if no document is found.
    """
    folder = Path(folder)
    if folders is None:
        folders = _installed(log)
    files, left_out = _python_files(folders)
    key = _key(files)
    manifest = _read_manifest(folder)
    if manifest and manifest["key"] == key and manifest["files"] == _digests(folder):
        log(f"{folder} is up to date: {manifest['documents']:,} documents, {manifest['labels']:,} labels")
        return folder

    log(f"reading {len(files):,} Python files of {', '.join(folders)} ({left_out:,} tests or private left out)")
    records, skipped = _records(files, log)
    if not records:
        raise DataError(f"{', '.join(map(str, folders.values()))}: no function with a docstring was found")
    num_labels = len(set(chain.from_iterable(record.labels for record in records)))
    folder.mkdir(parents=True, exist_ok=True)
    # Absent while the files are being replaced, so that a run that is interrupted is not taken for complete.
    (folder / _MANIFEST).unlink(missing_ok=True)
    for name in ("train", "dev", "test"):
        part = [record for record in records if _split(record.text) == name]
        path = folder / f"{name}.jsonl.gz"
        path.unlink(missing_ok=True)
        if part:
            write_jsonl(path, part)
        log(f"{name}: {len(part):,} documents")
    manifest = {
        "key": key,
        "documents": len(records),
        "labels": num_labels,
        "versions": {name: _version(name) for name in folders},
        "skipped": skipped,
        "files": _digests(folder),
    }
    partial = folder / (_MANIFEST + ".tmp")
    partial.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, folder / _MANIFEST)
    return folder


def _installed(log: Callable[[str], None]) -> dict[str, Path]:
    """Folders of the standard library and of the packages that are installed, found without importing them."""
    found = {"python": Path(sysconfig.get_path("stdlib"))}
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            log(f"{name} is not installed as a folder of Python code; left out")
        else:
            found[name] = Path(next(iter(spec.submodule_search_locations)))
    return found


def _python_files(folders: Mapping[str, Path]) -> tuple[dict[str, Path], int]:
    """Name (with / on every system) -> path of the public files, and how many others were met."""
    files, left_out = {}, 0
    for name, root in folders.items():
        for parent, inner, leaves in os.walk(root):
            inner.sort()
            inner[:] = [d for d in inner if d not in ("__pycache__", "site-packages", "dist-packages")]
            for leaf in sorted(leaves):
                if leaf.endswith(".py"):
                    path = Path(parent, leaf)
                    relative = path.relative_to(root)
                    if _is_public(relative):
                        files[f"{name}/{relative.as_posix()}"] = path
                    else:
                        left_out += 1
    return files, left_out


def _is_public(path: Path) -> bool:
    *parents, leaf = path.parts
    if leaf.startswith("test_") or leaf.endswith("_test.py") or leaf == "conftest.py":
        return False
    if any(part in ("test", "tests") or part.startswith("_") for part in parents):
        return False
    return leaf == "__init__.py" or not leaf.startswith("_")


def _records(files: Mapping[str, Path], log: Callable[[str], None]) -> tuple[list[Record], dict[str, str]]:
    """Documents in the order of the files, and the files that could not be read, with the reason."""
    documents: dict[tuple[str, tuple[str, ...]], str] = {}
    skipped: dict[str, str] = {}
    functions = described = calling = 0
    for name, path in files.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the code that is read, not about this program
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError, MemoryError, OSError) as error:
            skipped[name] = f"{type(error).__name__}: {error}"
            continue
        for node, docstring, calls in _functions(tree):
            functions += 1
            described += docstring is not None
            if docstring and calls:
                calling += 1
                document = (_text(node.name, docstring), tuple(sorted(calls)))
                documents.setdefault(document, f"{name}:{node.lineno}")
    distinct = len(documents)
    documents = _without_rare_labels(documents)
    log(
        f"{functions:,} functions, {described:,} with a docstring, {calling:,} of them with a call, "
        f"{distinct:,} distinct, {len(documents):,} left when labels seen once are dropped"
    )
    if skipped:
        log(f"{len(skipped):,} files could not be read or parsed: {', '.join(list(skipped)[:5])}")
    return [Record(name, text, labels) for (text, labels), name in documents.items()], skipped


def _functions(
    tree: ast.AST,
) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str | None, set[str]]]:
    """Every function of a module in the order of its lines, with its docstring and the names its body calls."""
    found: list[tuple[Any, str | None, set[str]]] = []
    # A list instead of recursion: real code holds expressions nested deeper than the interpreter's stack.
    waiting: list[tuple[ast.AST, tuple[set[str], ...]]] = [(tree, ())]
    while waiting:
        node, owners = waiting.pop()
        children = ast.iter_child_nodes(node)
        if isinstance(node, _FUNCTIONS):
            found.append((node, ast.get_docstring(node), set()))
            # Defaults and decorators run outside the function.
            body = {id(statement) for statement in node.body}
            waiting += [(child, owners) for child in children if id(child) not in body]
            owners, children = (*owners, found[-1][2]), iter(node.body)
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name | ast.Attribute):
                for calls in owners:
                    calls.add(called.id if isinstance(called, ast.Name) else called.attr)
        waiting += [(child, owners) for child in children]
    found.sort(key=lambda function: (function[0].lineno, function[0].col_offset))
    yield from found


def _text(name: str, docstring: str) -> str:
    """The name's words, the name, the docstring; half surrogate pairs, which no file can hold, become "?"."""
    words = _boundaries.sub(" ", name).strip()
    title = name if words == name else f"{words} {name}"
    return f"{title}\n{docstring}".encode(errors="replace").decode()


def _without_rare_labels(
    documents: dict[tuple[str, tuple[str, ...]], str],
) -> dict[tuple[str, tuple[str, ...]], str]:
    """The documents with only labels of two or more documents; again, where dropping some made others rare."""
    while True:
        counts = Counter(chain.from_iterable(labels for _, labels in documents))
        if min(counts.values(), default=2) >= 2:
            return documents
        kept: dict[tuple[str, tuple[str, ...]], str] = {}
        for (text, labels), name in documents.items():
            common = tuple(label for label in labels if counts[label] >= 2)
            if common:
                kept.setdefault((text, common), name)
        documents = kept


def _split(text: str) -> str:
    part = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 20
    return "dev" if part == 2 else "test" if part < 2 else "train"


def _key(files: Mapping[str, Path]) -> str:
    """Changes with the files' names or sizes, with what this module does, and with the grammar."""
    sizes = [[name, path.stat().st_size if path.exists() else -1] for name, path in files.items()]
    content = json.dumps([_FORMAT_VERSION, list(sys.version_info[:3]), sizes])
    return hashlib.sha256(content.encode()).hexdigest()


def _version(name: str) -> str:
    if name == "python":
        return ".".join(map(str, sys.version_info[:3]))
    try:
        return importlib.metadata.version(_PACKAGES.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the documents' files that are there."""
    paths = (folder / f"{name}.jsonl.gz" for name in ("train", "dev", "test"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, or None where there is none that can be used: the data is then written anew."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    types = {"key": str, "files": dict, "documents": int, "labels": int}
    if isinstance(manifest, dict) and all(type(manifest.get(key)) is kind for key, kind in types.items()):
        return manifest
    return None
