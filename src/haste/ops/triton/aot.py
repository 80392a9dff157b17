"""Compile the kernels ahead of time, without a GPU, and read what each uses: `python -m haste.ops.triton.aot`.

One line a variant: registers, bytes of stack (spills), shared memory, the matrix instructions and the vector atomics
found in its code. The limits are in `LIMITS`; the exit status is 1 where a variant breaks them.
"""

import argparse
import json
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from haste.ops.triton import plans
from haste.ops.triton.kernels import elementwise, layouts, passes, select

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# The matrix instructions of a target; tiles of 32 inputs are too small for the larger of two.
MATRIX = {
    "sm_80": ("mma.sync",),
    "sm_90": ("wgmma.mma_async", "mma.sync"),
    "sm_100": ("tcgen05.mma", "mma.sync"),
    "gfx942": ("v_mfma",),
}
SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}  # bytes a block may take
SHAPES = ((16, 64), (32, 64), (64, 128), (128, 256))  # (group_size, fan_in)

_KERNELS = {
    kernel.fn.__name__ if hasattr(kernel, "fn") else kernel.__name__: kernel
    for kernel in (
        passes.step_kernel,
        passes.logits_kernel,
        passes.update_kernel,
        layouts.dense_grad_x_kernel,
        layouts.rows_grad_kernel,
        select.topk_kernel,
        elementwise.prepare_kernel,
        elementwise.numbers_kernel,
        elementwise.update_rows_kernel,
        elementwise.link_scores_kernel,
        elementwise.gradient_scores_kernel,
    )
}
_POINTERS = {
    "xt_ptr": "x",
    "slopes_ptr": "x",
    "features_ptr": "x",
    "weight_ptr": "w",
    "first_ptr": "state",
    "second_ptr": "state",
    "bias_first_ptr": "state",
    "bias_second_ptr": "state",
    "indices_ptr": "i16",
    "sorted_rows_ptr": "i64",
    "sorted_points_ptr": "i32",
    "bounds_ptr": "i32",
    "step_ptr": "i64",
    "bad_ptr": "i32",
    "row_labels_ptr": "i64",
    "best_ptr": "i64",
    "rows_ptr": "i64",
    "lr_ptr": "fp64",
    "bias_lr_ptr": "fp64",
}
_WIDE = {"first_row", "seed"}  # int64 numbers; other numbers are int32, or float32 in `numbers_kernel`
_ALIGNED = {"leading", "in_features", "columns", "fan_in"}  # numbers that are multiples of 16


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One compilation: a kernel with its constants, for a target.

    x, w, state: dtypes of products, weights and moments. constants: of the kernel.
    """

    kernel: str
    target: str
    x: str = "bf16"
    w: str = "bf16"
    state: str = "fp32"
    warps: int = 8
    stages: int = 2
    registers: int = 0
    constants: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = " ".join(
            f"{k}={v}"
            for k, v in self.constants.items()
            if k not in ("PRECISION", "OUT", "FULL", "FLUSH") and (k != "RATED" or v)
        )
        return f"{self.target} {self.kernel} {self.w}/{self.state} warps={self.warps} {shown}"


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a compiled variant takes.

    registers of a thread; stack (spills) and shared memory in bytes; machine instructions, and in the assembly text
    matrix products and float32 atomics (counts of the code, not of what runs); seconds to compile.
    """

    registers: int
    stack: int
    shared: int
    instructions: int
    matrix: dict[str, int]
    vector_atomics: int
    scalar_atomics: int
    seconds: float


def compile_variant(variant: Variant) -> Usage:
    """Compile a variant for its target and read its usage from the machine code."""
    kernel = _KERNELS[variant.kernel]
    names = kernel.arg_names
    types = {name: "constexpr" if name in variant.constants else _type(name, variant) for name in names}
    constants = {(names.index(name),): value for name, value in variant.constants.items()}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if types[n].startswith("*") or n in _ALIGNED
    }
    options: dict[str, Any] = {"num_warps": variant.warps, "num_stages": variant.stages, "enable_fp_fusion": True}
    if variant.registers:
        options["maxnreg"] = variant.registers
    start = time.perf_counter()
    compiled = triton.compile(
        ASTSource(kernel, types, constants, aligned), target=TARGETS[variant.target], options=options
    )
    seconds = time.perf_counter() - start
    text = compiled.asm["amdgcn" if variant.target.startswith("gfx") else "ptx"]
    registers, stack, instructions = _resources(compiled.asm, variant.target)
    return Usage(
        registers=registers,
        stack=stack,
        shared=compiled.metadata.shared,
        instructions=instructions,
        matrix={name: _count(name, text) for name in MATRIX[variant.target]},
        vector_atomics=len(re.findall(r"(?:red|atom)\.global[.\w]*\.v[248]\.f32", text)),
        scalar_atomics=len(re.findall(r"(?:red|atom)\.global[.\w]*\.add\.f32|global_atomic_add_f32", text)),
        seconds=round(seconds, 2),
    )


def _count(instruction: str, text: str) -> int:
    return len(re.findall(rf"^\s*(?:@\S+ )?{re.escape(instruction)}", text, re.MULTILINE))


def _type(name: str, variant: Variant) -> str:
    if not name.endswith("_ptr"):
        if variant.kernel == "numbers_kernel":
            return "fp32"
        return "i64" if name in _WIDE else "i32"
    dtype = _POINTERS.get(name, "fp32")
    if name == "out_ptr" and variant.constants.get("OUT") != "logits":
        dtype = "x"
    return "*" + {"x": variant.x, "w": variant.w, "state": variant.state}.get(dtype, dtype)


def _resources(asm: dict[str, Any], target: str) -> tuple[int, int, int]:
    """Return (registers a thread, stack bytes, machine instructions)."""
    if target.startswith("gfx"):
        usage = asm["amdgcn"]
        keys = (r"\.vgpr_count:\s*", r"\.private_segment_fixed_size:\s*")
        instructions = len(re.findall(r"^\s+[sv]_|^\s+(?:global|ds|buffer|flat)_", usage, re.MULTILINE))
    else:
        tool = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin" / "cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(asm["cubin"])
            file.flush()
            usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        keys = ("REG:", "STACK:")
        instructions = _code_bytes(asm["cubin"]) // 16  # every instruction since sm_70
    found = [re.search(rf"{key}(\d+)", usage) for key in keys]
    assert all(found), usage
    registers, stack = (int(match[1]) for match in found if match)
    return registers, stack, instructions


def _code_bytes(cubin: bytes) -> int:
    """Return the size of the code sections of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    strings = sections[names][4]
    return sum(section[5] for section in sections if cubin.startswith(b".text", strings + section[0]))


_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def _planned(
    kernel: str,
    target: str,
    group_size: int,
    fan_in: int,
    *,
    batch: int = 128,
    x: str = "bf16",
    layout: str = "gathered",
    state: str = "fp32",
    **constants: Any,
) -> Variant:
    """Return the variant that the plan in force for this shape launches."""
    dtype = _DTYPES[x]
    plan = plans.choose(
        batch=batch, in_features=768, group_size=group_size, fan_in=fan_in, dtype=dtype, layout=layout,
        target=target,
    )  # fmt: skip
    known = {
        "S": plans.tile_rows(group_size, layout),
        "F": fan_in,
        "BLOCK_B": plan.block_b,
        "BLOCK_F": plan.block_f,
        "SCATTER": plan.scatter,
        "FULL": True,
        "FLUSH": target.startswith("sm"),
        "LAYOUT": layout,
        "PRECISION": plan.precision,
        "RATED": False,
        **constants,
    }
    wanted = {name: value for name, value in known.items() if name in _KERNELS[kernel].arg_names}
    return Variant(
        kernel=kernel,
        target=target,
        x=x,
        w=x,
        state=state,
        warps=plan.warps,
        stages=plan.stages,
        registers=plan.registers if kernel == "step_kernel" else 0,
        constants=wanted,
    )


def _step_variants(target: str, group_size: int, fan_in: int, **more: Any) -> Iterator[Variant]:
    """Yield the kernels that a step of this shape launches."""
    loss, rule = more.pop("loss", "bce"), more.pop("rule", "sgd")
    fused = _planned("step_kernel", target, group_size, fan_in, LOSS=loss, RULE=rule, **more)
    form = plans.choose(
        batch=more.get("batch", 128), in_features=768, group_size=group_size, fan_in=fan_in,
        dtype=_DTYPES[more.get("x", "bf16")], layout="gathered", target=target,
    ).form  # fmt: skip
    if form == "fused":
        yield fused
    else:
        yield _planned("logits_kernel", target, group_size, fan_in, OUT=loss, **more)
        yield _planned("update_kernel", target, group_size, fan_in, RULE=rule, FEATURES=True, WEIGHTS=True, **more)


def variants(*, full: bool) -> list[Variant]:
    """Return what is compiled: at most 60 variants for tests, or the full table."""
    found: list[Variant] = []
    for group_size, fan_in in SHAPES:
        found += _step_variants("sm_90", group_size, fan_in)
        found.append(_planned("logits_kernel", "sm_90", group_size, fan_in, OUT="logits"))
        found.append(_topk("sm_90", group_size, fan_in))
        for target in TARGETS:
            if target != "sm_90":
                found += _step_variants(target, group_size, fan_in)
    for target in TARGETS:
        found += [v for v in _step_variants(target, 64, 128, RATED=True) if "RATED" in v.constants]
    found += _others("sm_90")
    found.append(_topk("sm_90", 32, 64, k=plans.MAX_K))
    group_size, fan_in = 64, 128
    for rule, state in (("momentum", "fp32"), ("momentum", "bf16"), ("adamw", "fp32"), ("adamw", "bf16")):
        found += _step_variants("sm_90", group_size, fan_in, rule=rule, state=state)
    found += _step_variants("sm_90", group_size, fan_in, loss="squared_hinge")
    found += _step_variants("sm_90", group_size, fan_in, SCATTER="partials")
    found += _step_variants("sm_90", group_size, fan_in, x="fp32")
    found += _step_variants("sm_90", group_size, fan_in, batch=512)
    if full:
        for target in TARGETS:
            for group_size in plans.GROUP_SIZES[1:]:
                for fan_in in (32, 64, 128, 256, 512):
                    for more in ({}, {"rule": "adamw"}, {"rule": "momentum", "state": "bf16"}, {"x": "fp32"}):
                        found += _step_variants(target, group_size, fan_in, **more)
                    found += _step_variants(target, group_size, fan_in, batch=256)
                    found.append(_topk(target, group_size, fan_in))
            found += _others(target)
    return list({str(asdict(variant)): variant for variant in found}.values())


def _topk(target: str, group_size: int, fan_in: int, layout: str = "gathered", k: int = 8) -> Variant:
    tile = plans.choose_topk(plans.tile_rows(group_size, layout), fan_in, torch.bfloat16, target)
    blocks = {"BLOCK_B": tile.block_b, "BLOCK_F": tile.block_f}
    more: dict[str, Any] = {"K": k, "LABELLED": True, "EXCLUDE": False, **blocks}
    planned = asdict(_planned("topk_kernel", target, group_size, fan_in, layout=layout, **more))
    return Variant(**{**planned, "warps": tile.warps, "stages": tile.stages})


def _others(target: str) -> Iterator[Variant]:
    """Yield the kernels beside the pass, and the layouts other than gathered."""
    dense: dict[str, Any] = {"layout": "dense"}
    yield _planned("logits_kernel", target, 32, 768, OUT="bce", **dense)
    yield _planned("update_kernel", target, 32, 768, RULE="sgd", FEATURES=False, WEIGHTS=True, **dense)
    yield _planned("dense_grad_x_kernel", target, 32, 768, **dense)
    yield _topk(target, 32, 768, "dense")
    yield _planned("logits_kernel", target, 1, 64, layout="rows", OUT="bce")
    yield _planned("rows_grad_kernel", target, 1, 64, layout="rows")
    yield Variant(kernel="prepare_kernel", target=target, warps=4, constants={"BLOCK": 32})
    yield Variant(kernel="numbers_kernel", target=target, warps=1, constants={"RULE": "adamw"})
    for rule in ("sgd", "adamw"):
        constants = {"ROWS": 16, "COLUMNS": 128, "RULE": rule, "RATED": False, "CHOSEN": False}
        yield Variant(kernel="update_rows_kernel", target=target, warps=4, constants=constants)
    yield Variant(kernel="link_scores_kernel", target=target, warps=4, constants={"S": 64, "BLOCK_F": 64})
    yield _planned("gradient_scores_kernel", target, 64, 128, BLOCK_H=64)
    yield _planned("gradient_scores_kernel", target, 64, 128, x="fp32", BLOCK_H=32)


def broken_limits(variant: Variant, usage: Usage) -> list[str]:
    """Return what a variant does that it must not: spill, overflow shared memory, or miss the tensor cores."""
    found = []
    if usage.stack:
        found.append(f"{usage.stack} bytes of stack")
    if usage.shared > SHARED[variant.target]:
        found.append(f"{usage.shared} bytes of shared memory")
    tiled = "PRECISION" in variant.constants and variant.constants.get("LAYOUT") != "rows"
    if tiled and variant.x == "bf16":
        largest, *smaller = MATRIX[variant.target]
        small = min(variant.constants.get(name, 64) for name in ("BLOCK_B", "BLOCK_F")) < 64
        if not usage.matrix[largest] and not (small and any(usage.matrix[name] for name in smaller)):
            found.append(f"no {largest}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Compile, print, return 1 where a limit is broken."""
    parser = argparse.ArgumentParser(prog="python -m haste.ops.triton.aot", description=__doc__)
    parser.add_argument("--full", action="store_true", help="every shape and target, an hour of one core")
    parser.add_argument("--only", default="", help="variants whose description holds this text")
    parser.add_argument("--jobs", type=int, default=1, help="processes; default %(default)s")
    parser.add_argument("--output", type=Path, help="JSON lines")
    options = parser.parse_args(arguments)
    chosen = [variant for variant in variants(full=options.full) if options.only in str(variant)]
    broken, lines = 0, []
    with ProcessPoolExecutor(options.jobs) as pool:
        for variant, usage in zip(chosen, pool.map(compile_variant, chosen), strict=True):
            limits = broken_limits(variant, usage)
            broken += bool(limits)
            shown = " ".join(f"{name}={value}" for name, value in asdict(usage).items())
            print(f"{variant}: {shown}{' BROKEN: ' + ', '.join(limits) if limits else ''}", flush=True)
            lines.append(
                json.dumps({**asdict(variant), **asdict(usage), "broken": limits, "triton": triton.__version__})
            )
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(chosen)} variants, {broken} beyond the limits")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
