import os
import re
import subprocess
import sys

import pytest

triton = pytest.importorskip("triton")

INTERPRETED = """
import torch
from haste.bench import _fixed_fan_in as kernels
from haste.bench._case import Case, batch_of
from haste.ops import reference

# more points than a tile of the batch, labels that divide nothing
case = Case(name="x", batch=70, in_features=48, num_labels=77, fan_in=5, group_size=16, dtype="float32")
features, _ = batch_of(case, torch.device("cpu"))
for kind in (kernels.FixedFanIn, kernels.FixedFanInColumns):
    variant = kind(case, torch.device("cpu"))
    x = variant.inputs(features)
    logits = variant.forward(x)
    torch.testing.assert_close(logits, reference.fan_in(x, *variant.operands(), 77), rtol=1e-5, atol=1e-5)
    g = torch.randn_like(logits)
    expected = reference.fan_in_backward(g, x, *variant.operands())
    for found, truth in zip(variant.backward(x, g), expected):
        assert found.shape == truth.shape
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=2e-5)
print("equal")
"""


def test_kernels_equal_the_reference():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", INTERPRETED]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "equal\n"


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted")
@pytest.mark.parametrize("name", ["forward_kernel", "backward_features_kernel", "backward_weights_kernel"])
def test_kernels_build_for_a_gpu(name):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from haste.bench import _fixed_fan_in

    kernel = getattr(_fixed_fan_in, name)
    sizes = {"FAN_IN": 32, "TILE_L": 32, "TILE_B": 64, "BLOCKS": 1}
    constants = {(number,): sizes[n] for number, n in enumerate(kernel.arg_names) if n in sizes}
    types = {"indices": "*i16", "x": "*bf16", "weight": "*bf16", "g": "*fp32", "out": "*fp32"}
    signature = {n: "constexpr" if n in sizes else types.get(n, "i32") for n in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    atomics = re.findall(r"(?:red|atom)\.global|global\.\w*\.?(?:red|atom)", built.asm["ptx"])
    assert bool(atomics) == (name == "backward_features_kernel")
    assert built.asm["cubin"]
