import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from haste.train import checkpoint
from haste.train.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


def some_tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(7, 3, 5, generator=generator)
    return {
        "weight": normal,
        "half": normal.bfloat16(),
        "indices": torch.randint(-300, 300, (7, 4), generator=generator, dtype=torch.int16),
        "bits": torch.randint(0, 255, (9,), generator=generator, dtype=torch.uint8),
        "order": torch.randperm(11, generator=generator),
        "step": torch.tensor(float(seed)),
        "count": torch.tensor(3),
        "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 4),
        "transposed": normal[0].T,
        "view": normal[2:4],
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("limit", [1, 24, 61, 100, 10**9])
def test_every_dtype_survives_in_parts_of_any_size(tmp_path: Path, limit: int) -> None:
    tensors = some_tensors(1)
    meta = {"best": 0.1 + 0.2, "none": None, "history": [1, "two"]}
    saved = save_checkpoint(
        tmp_path,
        ["best", "last"],
        step=5,
        tensors=tensors,
        meta=meta,
        grouped=["weight"],
        max_part_bytes=limit,
    )
    for name in ("last", "best"):
        found, found_meta = load_checkpoint(tmp_path / name)
        assert_same(found, tensors)
        assert found_meta == {**meta, "step": 5}
    manifest = json.loads((saved / "manifest.json").read_text())
    assert [name for name, entry in manifest["tensors"].items() if entry["groups"]] == ["weight"]
    largest_row = 3 * 5 * 4
    headers = 2000
    assert all(file["bytes"] <= max(limit, largest_row) + headers for file in manifest["files"].values())


def test_parts_keep_their_limit_and_cut_between_groups(tmp_path: Path) -> None:
    tensors = {"weight": torch.arange(100.0).reshape(10, 10), "bias": torch.arange(10.0)}
    saved = save_checkpoint(
        tmp_path, ["last"], step=1, tensors=tensors, meta={}, grouped=["weight", "bias"], max_part_bytes=130
    )
    pieces = json.loads((saved / "manifest.json").read_text())["tensors"]["weight"]["pieces"]
    assert [stop - start for _, start, stop in pieces] == [3, 3, 3, 1]
    assert len({part for part, _, _ in pieces}) == 4
    assert_same(load_checkpoint(saved)[0], tensors)


def test_only_linked_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        names = ["best", "last"] if step == 2 else ["last"]
        save_checkpoint(tmp_path, names, step=step, tensors={"x": torch.tensor(step)}, meta={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last", "step-2", "step-3"]
    assert load_checkpoint(tmp_path / "best")[1]["step"] == 2
    assert load_checkpoint(tmp_path / "last")[1]["step"] == 3


def test_a_step_can_be_written_again(tmp_path: Path) -> None:
    for value in (1, 2, 3):
        save_checkpoint(tmp_path, ["last"], step=9, tensors={"x": torch.tensor(value)}, meta={})
        assert load_checkpoint(tmp_path / "last")[0]["x"] == value
    assert len(list(tmp_path.iterdir())) == 2


class Crash(Exception):
    pass


class Crasher:
    """Stands in front of every call that changes the disk and stops at the chosen one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.stop_at, self.when = 0, -1, "before"
        for owner, name in [
            (os, "mkdir"),
            (os, "fsync"),
            (os, "rename"),
            (os, "symlink"),
            (os, "replace"),
            (os, "unlink"),
            (shutil, "rmtree"),
            (checkpoint, "save_file"),
            (Path, "write_text"),
        ]:
            monkeypatch.setattr(owner, name, self.guard(getattr(owner, name)))

    def guard(self, call: Callable) -> Callable:
        def guarded(*arguments: Any, **options: Any) -> Any:
            if self.calls < 0:
                return call(*arguments, **options)
            self.calls += 1
            stop = self.calls - 1 == self.stop_at
            if stop and self.when == "before":
                raise Crash
            try:
                return call(*arguments, **options)
            finally:
                if stop:
                    files = [item for item in arguments if isinstance(item, Path) and item.is_file()]
                    for file in files if self.when == "half" else []:
                        os.truncate(file, os.path.getsize(file) // 2)
                    raise Crash

        return guarded


@pytest.mark.parametrize("when", ["before", "half", "after"])
def test_a_crash_at_any_write_leaves_a_loadable_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    crasher = Crasher(monkeypatch)
    old, new, next_ = some_tensors(1), some_tensors(2), some_tensors(3)

    def save(folder: Path, step: int, tensors: dict[str, Tensor]) -> None:
        save_checkpoint(folder, ["best", "last"], step=step, tensors=tensors, meta={}, max_part_bytes=400)

    crasher.when = when
    outcomes = []
    for stop_at in range(1000):
        folder = tmp_path / str(stop_at)
        crasher.calls, crasher.stop_at = 0, -1
        save(folder, 1, old)
        crasher.calls, crasher.stop_at = 0, stop_at
        with contextlib.suppress(Crash):
            save(folder, 2, new)
        finished = crasher.calls <= stop_at
        for name in ("last", "best"):
            found, meta = load_checkpoint(folder / name)
            assert_same(found, old if meta["step"] == 1 else new)
        outcomes.append(load_checkpoint(folder / "last")[1]["step"])
        crasher.calls, crasher.stop_at = 0, -1
        save(folder, 3, next_)
        assert_same(load_checkpoint(folder / "last")[0], next_)
        assert sorted(path.name for path in folder.iterdir()) == ["best", "last", "step-3"]
        if finished:
            break
    assert outcomes[-1] == 2
    assert outcomes.count(1) > 12
    assert outcomes == sorted(outcomes)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path, ["last"], step=4, tensors=some_tensors(1), meta={"best": 1.0}, max_part_bytes=400)


def test_every_altered_byte_of_a_part_is_found(saved: Path) -> None:
    part = saved / "part-00001.safetensors"
    content = part.read_bytes()
    for place in range(0, len(content), 37):
        part.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match=r"part-00001.safetensors: altered: expected SHA-256 \w+, found"):
            load_checkpoint(saved)
    part.write_bytes(content)
    load_checkpoint(saved)


def test_a_truncated_part_is_found(saved: Path) -> None:
    part = saved / "part-00000.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"part-00000.safetensors: altered: expected \d+ bytes, found \d+"):
        load_checkpoint(saved)


def test_a_missing_part_is_found(saved: Path) -> None:
    (saved / "part-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"part-00002.safetensors: missing; expected SHA-256"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace('"step": 4', '"step": 5'), "altered: expected SHA-256"),
        (lambda text: text.replace('"best": 1.0', '"best": 2.0'), "altered: expected SHA-256"),
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: "[]", "altered: expected SHA-256 None"),
        (lambda text: "", "damaged"),
    ],
)
def test_an_edited_manifest_is_found(saved: Path, edit: Callable[[str], str], message: str) -> None:
    manifest = saved / "manifest.json"
    manifest.write_text(edit(manifest.read_text()))
    with pytest.raises(CheckpointError, match=f"manifest.json: {message}"):
        load_checkpoint(saved)


def test_another_format_and_a_missing_checkpoint_are_named(saved: Path, tmp_path: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["format"] = 99
    manifest["sha256"] = checkpoint._manifest_digest(manifest)
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"format \(99\) must be 1"):
        load_checkpoint(saved)
    with pytest.raises(CheckpointError, match=r"best/manifest.json: missing; there is no complete checkpoint"):
        load_checkpoint(tmp_path / "best")
