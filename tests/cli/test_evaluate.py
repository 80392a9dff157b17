"""`haste evaluate` on data with filter files."""

import json
from pathlib import Path

import pytest

from haste.cli import main


@pytest.fixture
def filtered(tmp_path: Path) -> Path:
    """A folder in the LF layout: every document has label 0, which filter files take out of the test split."""
    for split, size in (("trn", 60), ("tst", 20)):
        rows = [
            {"uid": f"{split}{n}", "title": f"word{n % 4}", "content": "same", "target_ind": [1 + n % 4]}
            for n in range(size)
        ]
        if split == "trn":
            for row in rows:
                row["target_ind"] = [0, *row["target_ind"]]  # type: ignore[misc]
        (tmp_path / f"{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "lbl.json").write_text("".join(f'{{"uid": "l{n}", "title": "label {n}"}}\n' for n in range(5)))
    (tmp_path / "filter_labels_test.txt").write_text("".join(f"{n} 0\n" for n in range(20)))
    return tmp_path


def test_a_filter_is_on_unless_it_is_turned_off(
    filtered: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path_factory.mktemp("run"))
    given = ["--run.dir", run, "--run.device=cpu", "--run.threads=1", "--optim.epochs", "20"]
    assert main(["train", str(filtered), *given]) == 0
    assert "20 pairs of document and label are never predicted" in capsys.readouterr().err

    assert main(["evaluate", run, "--json"]) == 0
    on = json.loads(capsys.readouterr().out)["test"]
    assert main(["evaluate", run, "--json", "--no-filter"]) == 0
    off = json.loads(capsys.readouterr().out)["test"]
    assert on["P@1"] > 90
    assert off["P@1"] < 10
    assert main(["evaluate", run, "--no-filter"]) == 0
    assert capsys.readouterr().out.startswith(f"{run}, test, in percent, without filter\n")
