"""The kernels compiled for GPUs that need not be there: registers, spills, shared memory, matrix instructions."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from haste.ops.triton import aot, plans

OLDEST = (
    "3.6"  # triton's, of the machines that the project means to run on; `make check` puts it beside the environment
)
PRODUCTS = ("step_kernel", "logits_kernel", "update_kernel", "dense_grad_x_kernel", "gradient_scores_kernel")


def _compile(tmp_path: Path, *arguments: str, beside: Path | None = None) -> list[dict]:
    """Compile in a process that does not interpret; return a record for every variant."""
    output = tmp_path / "usage.jsonl"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    if beside is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(beside), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", "-m", "haste.ops.triton.aot", "--output", str(output), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_a_fused_step_builds_for_every_target(tmp_path: Path) -> None:
    records = _compile(tmp_path, "--only", "S=16 F=64 BLOCK_B=128 BLOCK_F=64 SCATTER")
    assert {record["target"] for record in records} == {"sm_90", "sm_100", "gfx942"}
    for record in records:
        assert record["stack"] == 0
        assert record["matrix"][aot.MATRIX[record["target"]][0]] > 0
        if record["target"] != "gfx942":
            assert record["vector_atomics"] > 0
            assert record["scalar_atomics"] == 0


@pytest.mark.slow
def test_every_kernel_builds_within_its_limits(tmp_path: Path) -> None:
    _check(_compile(tmp_path, "--jobs", "2"))


@pytest.mark.slow
def test_every_kernel_builds_with_the_oldest_triton(tmp_path: Path) -> None:
    beside = Path(sysconfig.get_path("data")) / f"triton-{OLDEST}"
    if not beside.is_dir():
        pytest.skip(f"no triton {OLDEST} at {beside}; make check installs it")
    records = _compile(tmp_path, "--jobs", "2", beside=beside)
    assert {record["triton"].rpartition(".")[0] for record in records} == {OLDEST}
    _check(records)


def _check(records: list[dict]) -> None:
    assert len(records) <= 60  # the time that continuous integration has for it
    assert {record["target"] for record in records} == set(plans.TARGETS)
    assert {record["kernel"] for record in records} == set(aot._KERNELS)
    for record in records:
        assert record["broken"] == []
        if record["target"] == "sm_90" and record["kernel"] in PRODUCTS and record["constants"].get("LAYOUT") != "rows":
            assert record["matrix"]["wgmma.mma_async"] > 0 or record["x"] == "fp32"
    steps = [record for record in records if record["kernel"] == "step_kernel" and record["target"] == "sm_90"]
    shapes = {(record["constants"]["S"], record["constants"]["F"]) for record in steps}
    assert shapes == {(16, 64), (32, 64), (64, 128)}  # groups of 128 take two kernels


def test_limits_name_what_is_broken() -> None:
    variant = aot.Variant(kernel="step_kernel", target="sm_90", constants={"BLOCK_B": 64, "PRECISION": "tf32"})
    good = {
        "registers": 128,
        "stack": 0,
        "shared": 1000,
        "instructions": 900,
        "matrix": {"wgmma.mma_async": 4, "mma.sync": 0},
        "vector_atomics": 1,
        "scalar_atomics": 0,
    }
    assert aot.broken_limits(variant, aot.Usage(**good, seconds=1)) == []
    bad = aot.Usage(
        **{**good, "stack": 8, "shared": 300_000, "matrix": {"wgmma.mma_async": 0, "mma.sync": 8}}, seconds=1
    )
    assert aot.broken_limits(variant, bad) == [
        "8 bytes of stack", "300000 bytes of shared memory", "no wgmma.mma_async"
    ]  # fmt: skip


def test_the_full_table_holds_every_shape() -> None:
    found = aot.variants(full=True)
    assert {v.target for v in found} == set(plans.TARGETS)
    shapes = {(v.constants["S"], v.constants["F"]) for v in found if v.kernel in ("step_kernel", "update_kernel")}
    assert shapes >= {(s, f) for s in (16, 32, 64, 128) for f in (32, 64, 128, 256, 512)}
