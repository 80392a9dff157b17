"""The training examples run as a user would run them, on a small data set."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def run(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run an example in an empty folder; return what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def of(name: str, *options: str) -> str:
        given = [str(tiny_data), "--batch", "8", "--lr", "3e-3", *options]
        monkeypatch.setattr("sys.argv", [f"{name}.py", *given])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return of


def precision(shown: str) -> float:
    found = re.search(r"^24 documents kept from training: P@1 ([\d.]+)", shown, re.MULTILINE)
    assert found is not None, shown
    return float(found[1])


@pytest.mark.parametrize("options", [[], ["--step"], ["--step", "--accumulate", "2"]])
def test_plain_pytorch(run, options: list[str]) -> None:
    shown = run("plain_pytorch", "--epochs", "2", *options)
    losses = [float(loss) for loss in re.findall(r"^epoch \d: loss ([\d.]+) a document$", shown, re.MULTILINE)]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert 0 <= precision(shown) <= 100


@pytest.mark.parametrize("options", [[], ["--step"]])
def test_huggingface_trainer(run, tmp_path: Path, options: list[str]) -> None:
    shown = run("huggingface_trainer", "--epochs", "2", *options)
    assert "links were replaced 1 times" in shown
    assert 0 <= precision(shown) <= 100
    saved = sorted(path.name for path in (tmp_path / "trainer-output/checkpoint-54").iterdir())
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt"} <= set(saved)


@pytest.mark.parametrize("options", [[], ["--step"]])
def test_lightning_module(run, options: list[str]) -> None:
    shown = run("lightning_module", "--epochs", "2", *options)
    assert "links were replaced 1 times" in shown
    assert 0 <= precision(shown) <= 100


@pytest.mark.slow
@pytest.mark.parametrize("name", ["huggingface_trainer", "lightning_module"])
def test_it_learns_and_goes_on_from_a_checkpoint(run, tmp_path: Path, name: str) -> None:
    run(name, "--epochs", "8", "--step")
    if name == "huggingface_trainer":
        resume = ["--resume"]
    else:
        (checkpoint,) = (tmp_path / "lightning-output").rglob("*.ckpt")
        resume = ["--resume", str(checkpoint)]
    assert precision(run(name, "--epochs", "10", "--step", *resume)) > 40


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain_pytorch", "huggingface_trainer", "lightning_module"])
def test_the_encoder_may_be_compiled(run, name: str) -> None:
    import torch._dynamo

    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    precision(run(name, "--epochs", "1", "--step", "--compile", "eager"))  # no compiler of C++ is needed
    assert counters["stats"]["unique_graphs"] > 0
