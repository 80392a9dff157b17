"""Checkpoints that survive a crash at any point: safetensors parts, a checked manifest, atomic links.

A checkpoint is a folder `step-N` with `part-*.safetensors` and `manifest.json`. It is written as
`step-N.tmp`, flushed to the disk, renamed, and only then the link `last` or `best` is swapped to it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = 1
NAMES = ("last", "best")
_MANIFEST = "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, altered or incomplete."""


@dataclass
class _Entry:
    """One tensor in the manifest; pieces are (part, start, stop) along dim 0, (part, 0, 1) without dims."""

    dtype: str
    shape: list[int]
    groups: bool
    pieces: list[tuple[str, int, int]] = field(default_factory=list)


def save_checkpoint(
    folder: Path,
    names: Sequence[str],
    *,
    step: int,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    grouped: Collection[str] = (),
    max_part_bytes: int = 512 * 2**20,
) -> Path:
    """Write a checkpoint and point links at it; what the links pointed at before stays until the swap.

    Args:
        folder: the run's `checkpoints` folder, made when missing.
        names: links to swap, of `last` and `best`, in this order.
        step: completed training steps.
        tensors: name -> tensor, any dtype and device.
        meta: anything JSON holds, returned by `load_checkpoint`.
        grouped: names of the tensors whose dim 0 counts groups; the manifest marks them, so that another
            number of ranks can read them by ranges of groups.
        max_part_bytes: limit of a part; tensors are cut along dim 0 to keep it.

    Returns:
        The folder of the checkpoint.
    """
    assert set(names) <= set(NAMES)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    target = _free_name(folder, step)
    temporary = target.with_name(target.name + ".tmp")
    os.mkdir(temporary)
    entries, parts = _plan(tensors, grouped, max_part_bytes)
    files = {}
    for part, pieces in parts.items():
        save_file(_unshared(tensors, pieces), temporary / part)
        _sync(temporary / part)
        files[part] = {"bytes": os.path.getsize(temporary / part), "sha256": _digest(temporary / part)}
    manifest = {
        "format": FORMAT,
        "step": step,
        "meta": dict(meta),
        "tensors": {name: asdict(entry) for name, entry in entries.items()},
        "files": files,
    }
    manifest["sha256"] = _manifest_digest(manifest)
    (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    _sync(temporary / _MANIFEST)
    _sync(temporary)
    os.rename(temporary, target)
    _sync(folder)
    for name in names:
        link_checkpoint(target, name)
    _remove_stale(folder)
    return target


def link_checkpoint(path: Path, name: str) -> None:
    """Point a link, `last` or `best`, at the checkpoint folder `path` beside it, in one step."""
    swap = path.parent / f"{name}.tmp"
    swap.unlink(missing_ok=True)
    os.symlink(path.name, swap)
    os.replace(swap, path.parent / name)
    _sync(path.parent)


def load_checkpoint(path: Path, *, only: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint after checking every byte of it.

    Args:
        path: a `step-N` folder or a link to one.
        only: read the tensors whose names begin so; every byte is checked all the same.

    Returns:
        Name -> tensor on the CPU, and the meta of `save_checkpoint` with `step` added.

    Raises:
        CheckpointError: a file is missing, has another size or another digest than the manifest says, or
            the manifest itself was altered.
    """
    manifest = _read_manifest(path)
    for name, expected in manifest["files"].items():
        assert Path(name).name == name
        _check_file(path / name, expected)
    tensors: dict[str, Tensor] = {}
    pieces: dict[str, list[tuple[str, int, int]]] = {}
    for name, entry in manifest["tensors"].items():
        if not name.startswith(only):
            continue
        tensors[name] = torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]))
        for part, start, stop in entry["pieces"]:
            pieces.setdefault(part, []).append((name, start, stop))
    for part, contents in pieces.items():
        with safe_open(path / part, framework="pt") as opened:
            for name, start, stop in contents:
                _rows(tensors[name], start, stop).copy_(opened.get_tensor(name))
    return tensors, {**manifest["meta"], "step": manifest["step"]}


def _plan(
    tensors: Mapping[str, Tensor], grouped: Collection[str], limit: int
) -> tuple[dict[str, _Entry], dict[str, list[tuple[str, int, int]]]]:
    """Manifest entries, and part -> (tensor, start, stop): parts filled in order, cut between rows."""
    entries: dict[str, _Entry] = {}
    parts: dict[str, list[tuple[str, int, int]]] = {}
    part, used = "", 0
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        entries[name] = entry = _Entry(dtype, list(tensor.shape), name in grouped)
        rows = tensor.shape[0] if tensor.dim() else 1
        row_bytes = tensor.nbytes // max(rows, 1)
        start = 0
        while start < rows or not entry.pieces:
            room = limit - used if part else 0
            if not part or (row_bytes > room and used > 0):
                part, used, room = f"part-{len(parts):05d}.safetensors", 0, limit
                parts[part] = []
            stop = min(rows, start + max(1, room // max(row_bytes, 1)))
            entry.pieces.append((part, start, stop))
            parts[part].append((name, start, stop))
            used += (stop - start) * row_bytes
            start = stop
    return entries, parts


def _rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Rows start..stop of dim 0, contiguous; the whole of a tensor without dims."""
    rows = tensor.detach()[start:stop] if tensor.dim() else tensor.detach()
    return rows.cpu().contiguous()


def _unshared(tensors: Mapping[str, Tensor], pieces: list[tuple[str, int, int]]) -> dict[str, Tensor]:
    """Contiguous pieces; those on the same storage are copied, safetensors refuses them."""
    storages: set[int] = set()
    contents = {}
    for name, start, stop in pieces:
        rows = _rows(tensors[name], start, stop)
        storage = rows.untyped_storage().data_ptr()
        contents[name] = rows.clone() if storage in storages else rows
        storages.add(storage)
    return contents


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / _MANIFEST
    try:
        manifest = json.loads(file.read_text())
    except OSError:
        raise CheckpointError(f"{file}: missing; there is no complete checkpoint in {path}") from None
    except ValueError as error:
        raise CheckpointError(f"{file}: damaged ({error}); use another checkpoint") from None
    expected = manifest.get("sha256") if isinstance(manifest, dict) else None
    found = _manifest_digest(manifest) if expected else "none"
    if expected != found or expected is None:
        raise CheckpointError(f"{file}: altered: expected SHA-256 {expected}, found {found}")
    if manifest["format"] != FORMAT:
        found = manifest["format"]
        raise CheckpointError(f"{file}: format ({found}) must be {FORMAT}; read it with the haste that wrote it")
    return manifest


def _check_file(file: Path, expected: Mapping[str, Any]) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file}: missing; expected SHA-256 {expected['sha256']}")
    size = os.path.getsize(file)
    if size != expected["bytes"]:
        raise CheckpointError(f"{file}: altered: expected {expected['bytes']} bytes, found {size}")
    found = _digest(file)
    if found != expected["sha256"]:
        raise CheckpointError(f"{file}: altered: expected SHA-256 {expected['sha256']}, found {found}")


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Flush a file's or a folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_name(folder: Path, step: int) -> Path:
    """`step-N`, or `step-N-1`, ... where a link still points at an earlier checkpoint of that step."""
    target, attempt = folder / f"step-{step}", 0
    while target.exists():
        attempt += 1
        target = folder / f"step-{step}-{attempt}"
    return target


def _remove_stale(folder: Path) -> None:
    """Remove what an earlier crash left half-written and checkpoints that no link points at."""
    kept = {os.readlink(folder / name) for name in NAMES if (folder / name).is_symlink()}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(".tmp") and path.is_symlink():
            os.unlink(path)
        elif path.name.startswith("step-") and path.name not in kept:
            shutil.rmtree(path)
