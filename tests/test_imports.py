"""Imports of the package point one way, `import haste` stays light, and modules stay short."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import haste

PACKAGE = Path(haste.__file__).parent
MAX_LINES = 400
HEAVY = {
    "accelerate",
    "fastapi",
    "jsonargparse",
    "matplotlib",
    "peft",
    "pyarrow",
    "pytorch_lightning",
    "rich",
    "sklearn",
    "tokenizers",
    "transformers",
    "triton",
}
# What a machine that only runs the kernels may lack.
BEYOND_KERNELS = {*HEAVY, "hypothesis", "pytest", "safetensors", "scipy", "yaml"} - {"triton"}

# Part of the package -> the parts it may import, itself apart.
ALLOWED: dict[str, set[str]] = {
    "config": set(),
    "ops": set(),
    "metrics": set(),
    "topology": {"ops"},
    "optim": {"ops"},
    "rewire": {"ops", "topology", "optim"},
    "distributed": {"ops"},
    "estimate": {"config", "ops", "topology"},
    "data": {"config", "topology"},
    "nn": {"config", "ops", "topology", "optim", "rewire", "distributed"},
    "bench": {"ops", "nn", "optim", "estimate"},
}
ALLOWED["train"] = set(ALLOWED)
_BELOW_FACES = set(ALLOWED)
for _face in ("classifier", "calibrate", "explain", "labels", "export", "integrations"):
    ALLOWED[_face] = _BELOW_FACES
_ALL = {*ALLOWED, "serve", "cli"}
ALLOWED["serve"] = ALLOWED["cli"] = _ALL


def imported_names(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute dotted name) of every import, wherever it stands; package resolves relative ones.

    A bare `import haste` counts as what is then taken from it: `haste.nn`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name != "haste" or alias.asname:
                    yield node.lineno, alias.name
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "haste":
            yield node.lineno, f"haste.{node.attr}"
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).split(".")[-1]
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def violations(package_folder: Path) -> list[str]:
    """List every import that the table does not allow, as "path:line: part imports part"."""
    found = []
    for path in sorted(package_folder.rglob("*.py")):
        relative = path.relative_to(package_folder)
        part = relative.parts[0].removesuffix(".py")
        if part in ("__init__", "__main__"):
            continue  # the faces of the package: what they pull in is the light-import test's matter
        if part not in ALLOWED:
            found.append(f"{relative}: {part} is not in the table")
            continue
        package = ".".join(["haste", *relative.parts[:-1]])
        for line, name in imported_names(ast.parse(path.read_text()), package):
            top, _, rest = name.partition(".")
            target = rest.split(".")[0]
            dunder = target.startswith("__")  # haste.__version__, for every part
            if top == "haste" and target not in {part, *ALLOWED[part]} and not dunder:
                found.append(f"{relative}:{line}: {part} imports {target or 'haste itself'}")
    return found


def long_modules(package_folder: Path) -> list[str]:
    lengths = {path: len(path.read_text().splitlines()) for path in package_folder.rglob("*.py")}
    return sorted(f"{path.name} ({n} lines)" for path, n in lengths.items() if n > MAX_LINES)


def loaded_modules(code: str) -> set[str]:
    """Top-level modules in sys.modules of a fresh interpreter after code has run."""
    script = f"{code}\nimport json, sys\nprint(json.dumps([name.split('.')[0] for name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_imports_point_one_way():
    assert violations(PACKAGE) == []


def test_imports_that_point_the_other_way_are_found(tmp_path):
    files = {
        "__init__.py": "from haste.cli import main\n",
        "config.py": "import json\nfrom haste import __version__\n",
        "metrics.py": "def late():\n    import haste.train.trainer\n",
        "rewire.py": "from haste import nn, ops\n",
        "surprise.py": "import os\n",
        "ops/step.py": "if TYPE_CHECKING:\n    from haste.nn.linear import FanInLinear\nfrom . import topk\n",
        "optim/sgd.py": "from ..train import trainer\nfrom ..ops import update\nfrom .schedule import cosine\n",
        "data/text.py": "import haste\nhaste.__version__\nhaste.nn\n",
        "data/formats.py": "import haste as h\n",
        "nn/linear.py": "import importlib\nimportlib.import_module('haste.train')\nfrom haste.ops import step\n",
        "train/trainer.py": "from haste.nn import Model\nfrom haste import bench, metrics\n",
        "classifier.py": "from haste.export import save\nfrom haste.train import trainer\n",
        "cli/train.py": "from haste import classifier, serve\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert violations(tmp_path) == [
        "classifier.py:1: classifier imports export",
        "data/formats.py:1: data imports haste itself",
        "data/text.py:3: data imports nn",
        "metrics.py:2: metrics imports train",
        "nn/linear.py:2: nn imports train",
        "ops/step.py:2: ops imports nn",
        "optim/sgd.py:1: optim imports train",
        "rewire.py:1: rewire imports nn",
        "surprise.py: surprise is not in the table",
    ]


def test_import_haste_is_light():
    assert loaded_modules("import haste") & HEAVY <= loaded_modules("import torch")


def test_integrations_load_no_framework():
    loaded = loaded_modules("import haste.integrations")
    assert not {"accelerate", "lightning", "peft", "pytorch_lightning", "transformers"} & loaded


def test_a_heavy_import_is_found():
    assert "sklearn" in loaded_modules("import haste, sklearn") & HEAVY


@pytest.mark.parametrize("module", ["haste.nn", "haste.optim", "haste.bench.__main__"])
def test_kernels_need_only_torch_and_numpy(module):
    missing = f"import sys\nfor name in {sorted(BEYOND_KERNELS)}: sys.modules[name] = None\n"
    loaded_modules(f"{missing}import {module}")


def test_modules_are_short():
    assert long_modules(PACKAGE) == []


def test_a_long_module_is_found(tmp_path):
    (tmp_path / "short.py").write_text("x = 1\n" * MAX_LINES)
    (tmp_path / "long.py").write_text("x = 1\n" * (MAX_LINES + 1))
    assert long_modules(tmp_path) == [f"long.py ({MAX_LINES + 1} lines)"]
