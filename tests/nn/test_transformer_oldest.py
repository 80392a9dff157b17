"""The oldest `transformers` that is supported gives the same: the other tests of transformers, run with it."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

OLDEST = "4.57"  # `make check` puts it beside the environment
TESTS = Path(__file__).parents[1]
RUN = (
    "nn/test_transformer.py",
    "nn/test_lora.py",
    "data/test_tokens.py",
    "train/test_transformer_training.py",
    "integrations/test_huggingface.py",
)


@pytest.mark.slow
def test_transformers_train_with_the_oldest_version() -> None:
    beside = Path(sysconfig.get_path("data")) / f"transformers-{OLDEST}"
    if not beside.is_dir():
        pytest.skip(f"no transformers {OLDEST} at {beside}; make check installs it")
    path = os.pathsep.join(filter(None, [str(beside), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path}
    version = [sys.executable, "-c", "import transformers; print(transformers.__version__)"]
    found = subprocess.run(version, capture_output=True, text=True, env=environment, check=True).stdout
    assert found.startswith(OLDEST)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(str(TESTS / name) for name in RUN)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=TESTS.parent, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
