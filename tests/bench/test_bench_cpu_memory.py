import json
import subprocess
import sys

import pytest

from haste.bench import cpu_memory


@pytest.mark.slow
def test_record_is_complete_and_adds_up():
    command = [sys.executable, "-m", "haste.bench", "--claim", "cpu-memory", "--labels", "40000", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    groups = 40_000 // 32
    assert record["layer_mb"] * 1e6 == groups * (32 * 64 * 2 + 64 * 2 + 32 * 4)
    # A process cannot have grown by less than what it wrote, give or take pages that it held already.
    assert record["build_over_layer_mb"] > -5
    assert record["step_mb"] >= 0
    text = cpu_memory.table(record)
    assert f"{record['step_mb']:.1f} MB (claim <= 200)" in text
