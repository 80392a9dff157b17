import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

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
print("true")
"""
COMPILED = """
import json, re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from haste.bench import _fixed_fan_in

sizes = {"FAN_IN": 32, "TILE_L": 32, "TILE_B": 64, "BLOCKS": 1}
types = {"indices": "*i16", "x": "*bf16", "weight": "*bf16", "g": "*fp32", "out": "*fp32"}
found = {}
for name in ("forward_kernel", "backward_features_kernel", "backward_weights_kernel"):
    kernel = getattr(_fixed_fan_in, name)
    constants = {(number,): sizes[n] for number, n in enumerate(kernel.arg_names) if n in sizes}
    signature = {n: "constexpr" if n in sizes else types.get(n, "i32") for n in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    atomics = re.findall(r"(?:red|atom)\\.\\S*global|(?:red|atom)\\.global", built.asm["ptx"])
    found[name] = len(built.asm["cubin"]) > 0, len(atomics) > 0
print(json.dumps(found))
"""


def run(code, interpreted):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_kernels_equal_the_reference():
    assert run(INTERPRETED, interpreted=True)


@pytest.mark.slow
def test_kernels_build_for_a_gpu_and_only_the_features_gradient_takes_atomics():
    assert run(COMPILED, interpreted=False) == {
        "forward_kernel": [True, False],
        "backward_features_kernel": [True, True],
        "backward_weights_kernel": [True, False],
    }
