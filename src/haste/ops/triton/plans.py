"""Which shapes the kernels take, and how they are cut: tiles, warps, forms of the step.

Nothing here changes what is computed, only how fast. `choose` is the plan in force; `using` puts another in its place,
for measurements.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import triton

GROUP_SIZES = (1, 16, 32, 64, 128)
FAN_IN_STEP, MAX_FAN_IN = 16, 512
MAX_K = 128
FORMS = ("fused", "two", "three")
SCATTERS = ("atomics", "atomics_by_point", "partials")

_ROWS = 32  # rows of one tile where every row has inputs of its own
_DENSE_ROWS = 64  # rows of one tile of the dense layer
_CHUNK_BYTES = 16 << 20  # of slopes between the two sweeps: they should stay in the L2 cache
_PARTIALS_BYTES = 64 << 20  # of private gradients of the features
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


@dataclass(frozen=True, kw_only=True)
class _Tuning:
    """Tiles of one target that neither spill nor miss its matrix instructions, for 16-bit products.

    fused: rows of a tile -> (most points, inputs) of the one-kernel form.
    two: rows of a tile -> (points, inputs, warps) of the two-kernel form.
    """

    fused: dict[int, tuple[int, int]]
    two: dict[int, tuple[int, int, int]]


_TUNING = {
    "sm_80": _Tuning(
        fused={16: (128, 32), 64: (128, 32)},
        two={16: (128, 32, 8), 32: (128, 32, 8), 64: (64, 32, 8), 128: (128, 32, 8)},
    ),
    "sm_90": _Tuning(
        fused={16: (256, 64), 32: (256, 64), 64: (128, 64)},
        two={16: (128, 64, 8), 32: (128, 64, 8), 64: (128, 64, 8), 128: (64, 64, 8)},
    ),
    "sm_100": _Tuning(
        fused={16: (128, 64), 32: (128, 64), 64: (128, 32)},
        two={16: (64, 64, 8), 32: (64, 64, 8), 64: (64, 64, 8), 128: (64, 64, 8)},
    ),
    "gfx942": _Tuning(
        fused={16: (128, 64)},
        two={16: (64, 64, 8), 32: (64, 64, 8), 64: (64, 64, 8), 128: (64, 64, 4)},
    ),
}
_TWO_IN_FLOAT32 = {16: (64, 32, 8), 32: (64, 32, 8), 64: (64, 32, 8), 128: (32, 16, 8)}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a step is cut.

    form: ``fused`` (one kernel), ``two`` (slopes to memory chunk by chunk, then both gradients), ``three`` (the
        gradients by two kernels).
    scatter: how the gradient of the features is added up: ``atomics``, float32 vectors into (H, B);
        ``atomics_by_point``, into (B, H); ``partials``, a private copy for each of ``programs`` programs, in a fixed
        order: bitwise the same each time.
    block_b, block_f: points and inputs of a tile.
    warps, stages: of a program, and of the pipeline of its loads.
    registers: most that a thread may take, 0 for no limit; 128 lets two programs of 8 warps share a multiprocessor.
    precision: of float32 products, `tl.dot`'s ``tf32x3`` (three TF32 products each) or ``ieee``; no matter to bfloat16.
    programs: of the grid; 0 is one for every group.
    chunk_bytes: of slopes between the sweeps.
    """

    form: str = "fused"
    scatter: str = "atomics"
    block_b: int = 128
    block_f: int = 64
    warps: int = 8
    stages: int = 2
    registers: int = 0
    precision: str = "tf32x3"
    programs: int = 0
    chunk_bytes: int = _CHUNK_BYTES

    def options(self) -> dict[str, int]:
        """Return what a launch takes beside the kernel's arguments."""
        found = {"num_warps": self.warps, "num_stages": self.stages}
        return {**found, "maxnreg": self.registers} if self.registers else found


_override: Plan | None = None


@contextmanager
def using(plan: Plan) -> Iterator[None]:
    """Run steps with this plan instead of the chosen one, on every thread."""
    global _override
    before, _override = _override, plan
    try:
        yield
    finally:
        _override = before


def layout_of(group_size: int, *, gathered: bool) -> str:
    """Return the layout of a tile of rows: ``dense``, ``rows`` (every row has inputs of its own) or ``gathered``."""
    return "dense" if not gathered else "rows" if group_size == 1 else "gathered"


def tile_rows(group_size: int, layout: str) -> int:
    """Return the rows of the weights that a program owns."""
    return {"dense": _DENSE_ROWS, "rows": _ROWS}.get(layout, group_size)


def check_shape(group_size: int, fan_in: int, layout: str) -> None:
    """Raise ValueError where no kernel takes a layer of this shape."""
    remedy = "choose one that is, or set HASTE_KERNELS=torch for slower kernels without this limit"
    if layout == "dense":
        return
    if group_size not in GROUP_SIZES:
        sizes = ", ".join(map(str, GROUP_SIZES))
        raise ValueError(f"group_size ({group_size}) must be one of {sizes} for the triton kernels; {remedy}")
    if layout == "gathered" and (fan_in % FAN_IN_STEP or fan_in > MAX_FAN_IN):
        raise ValueError(
            f"fan_in ({fan_in}) must be a multiple of {FAN_IN_STEP}, at most {MAX_FAN_IN}, for the triton kernels; "
            f"{remedy}"
        )


def target_of(device: torch.device) -> str:
    """Return the target that a device's plans are made for; sm_90 where nothing is compiled (a CPU)."""
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip:
        return "gfx942"
    # Compute capability 12 has the instructions of 8 with another number.
    major = torch.cuda.get_device_capability(device)[0]
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(major, "sm_80")


def _precision(target: str) -> str:
    return "ieee" if target == "gfx942" else "tf32x3"


def _fused_warps(rows: int, points: int, target: str) -> int:
    """Return the warps of a fused tile: 4 keep 32 logits a thread of 4,096, and two programs on a multiprocessor."""
    few = 4096 if target == "sm_90" and points <= 128 else 2048
    return 4 if rows * points <= few and target != "sm_100" else 8


def choose(
    *,
    batch: int,
    in_features: int,
    group_size: int,
    fan_in: int,
    dtype: torch.dtype,
    layout: str,
    deterministic: bool = False,
    target: str = "sm_90",
) -> Plan:
    """Return the plan for a step: a pure function of its shape and the target.

    Args:
        batch, in_features, group_size, fan_in: B, H, S, F.
        dtype: of the products.
        layout: of `layout_of`.
        deterministic: whether results must be bitwise equal each time.
        target: one of TARGETS.
    """
    if _override is not None:
        return _override
    rows, points = tile_rows(group_size, layout), max(16, triton.next_power_of_2(batch))
    wide, widest = dtype == torch.float32, max(16, triton.next_power_of_2(fan_in))
    most, inputs = _TUNING[target].fused.get(rows, (0, 0))
    if layout == "gathered" and not wide and points <= (most if fan_in >= 64 else min(most, 128)):
        plan = Plan(
            form="fused",
            block_b=points,
            block_f=min(inputs, widest),
            warps=_fused_warps(rows, points, target),
            precision=_precision(target),
        )
    else:
        block_b, inputs, warps = (_TWO_IN_FLOAT32 if wide else _TUNING[target].two)[rows]
        if fan_in < 64:  # the products of few inputs are not those of the largest instructions, and hold more registers
            block_b = min(block_b, 64)
        plan = Plan(
            form="two",
            block_b=min(block_b, points),
            block_f=min(inputs, widest),
            warps=warps,
            precision=_precision(target),
        )
    if deterministic:
        plan = replace(plan, scatter="partials", programs=partial_programs(in_features, batch))
    return plan


def choose_topk(rows: int, fan_in: int, dtype: torch.dtype, target: str) -> Plan:
    """Return the tile of `topk` for tiles of rows: block_b, block_f, warps, stages and precision of a plan."""
    most, widest = 32 if dtype == torch.float32 else 64, max(16, triton.next_power_of_2(fan_in))
    warps = 4 if target == "sm_80" and rows <= 32 else 8
    return Plan(block_b=64, block_f=min(most, widest), warps=warps, precision=_precision(target))


def partial_programs(in_features: int, batch: int) -> int:
    """Return how many programs keep a gradient of their own: a function of the shape alone, not of the device."""
    return max(8, min(128, _PARTIALS_BYTES // (4 * in_features * max(16, batch))))


def candidates(
    *,
    batch: int,
    in_features: int,
    group_size: int,
    fan_in: int,
    dtype: torch.dtype,
    layout: str = "gathered",
    target: str = "sm_90",
) -> list[Plan]:
    """Return plans worth timing for a shape: forms, ways to scatter, tiles and warps; the chosen one first."""
    chosen = choose(
        batch=batch,
        in_features=in_features,
        group_size=group_size,
        fan_in=fan_in,
        dtype=dtype,
        layout=layout,
        target=target,
    )
    found = [chosen]

    def add(plan: Plan) -> None:
        if plan not in found and (plan.form != "fused" or batch <= plan.block_b):
            found.append(plan)

    programs = partial_programs(in_features, batch)
    add(replace(chosen, scatter="partials", programs=programs))
    add(replace(chosen, scatter="atomics_by_point"))
    for warps in (8, 16):
        add(replace(chosen, warps=warps, registers=128))
    for form in FORMS:
        for scatter in ("atomics", "partials"):
            plan = replace(chosen, form=form, scatter=scatter, programs=programs if scatter == "partials" else 0)
            add(plan)
    for form in ("fused", "two"):
        for block_f in (32, 64):
            for warps in (4, 8, 16):
                for stages in (1, 2, 3):
                    if block_f <= max(16, triton.next_power_of_2(fan_in)):
                        add(replace(chosen, form=form, block_f=block_f, warps=warps, stages=stages))
    for programs in (132, 264, 528, 1056):
        add(replace(chosen, programs=programs))
    for megabytes in (4, 8, 32):
        add(replace(chosen, form="two", chunk_bytes=megabytes << 20))
    return found
