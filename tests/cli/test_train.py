import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from haste.cli import main
from haste.train.run_folder import differing_keys

Settings = Callable[..., dict[str, Any]]


@pytest.fixture
def file(tiny_settings: Settings, tmp_path: Path) -> Path:
    """A settings file of a run of a second in tmp_path / "run"."""
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(tiny_settings()))
    return path


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


def test_train_evaluate_predict_and_info(
    file: Path, tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert main(["train", str(file), "--optim.epochs", "3", "--optim.encoder.lr=2e-2"]) == 0
    used = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert used["optim"]["epochs"] == 3
    assert used["optim"]["encoder"]["lr"] == 0.02
    capsys.readouterr()

    saved = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert main(["evaluate", run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"test": saved["test"], "propensity": {"a": 0.55, "b": 1.5}}
    assert main(["evaluate", run, "--split", "dev", "--propensity", "0.6", "2.6"]) == 0
    shown = capsys.readouterr().out
    assert f"{saved['dev']['P@1']:.2f}" in shown
    assert "a 0.6, b 2.6" in shown

    output = tmp_path / "out.jsonl"
    arguments = ["predict", run, "--input", str(tiny_data / "test.jsonl"), "--top-k", "2"]
    assert main([*arguments, "--output", str(output)]) == 0
    assert capsys.readouterr().out == ""
    assert main(arguments) == 0
    assert capsys.readouterr().out == output.read_text()
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"document-{number}" for number in range(40)]
    assert {len(row["labels"]) for row in rows} == {2}

    assert main(["predict", run, "--text", "word3 word4 word5", "--top-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(0 < float(line.split()[0]) < 1 for line in lines)

    assert main(["info", run]) == 0
    shown = capsys.readouterr().out
    assert "finished" in shown
    assert f"{saved['test']['P@5']:.2f}" in shown


def test_unlabelled_documents_can_be_predicted(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(file), "--optim.epochs", "1"]) == 0
    new = tmp_path / "new.jsonl"
    new.write_text('{"text": "word1"}\n{"text": "nothing known"}\n')
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), "--input", str(new)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["id"] for row in rows] == ["1", "2"]
    assert {len(row["labels"]) for row in rows} == {10}


def test_a_malformed_line_stops_a_prediction_without_a_file(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(file), "--optim.epochs", "1"]) == 0
    new = tmp_path / "new.jsonl"
    new.write_text('{"text": "word1"}\n{"txt": "x"}\n')
    output = tmp_path / "out.jsonl"
    assert main(["predict", str(tmp_path / "run"), "--input", str(new), "--output", str(output)]) == 2
    assert last_error(capsys).startswith(f"haste: error: {new}:2: ")
    assert not list(tmp_path.glob("out*"))


def test_resume_from_the_command_line(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(file)]) == 0
    assert main(["train", str(file)]) == 2
    assert "choose another run.dir, or continue with --resume" in last_error(capsys)
    assert main(["train", "--resume", str(tmp_path / "run" / "config.yaml")]) == 0
    assert "is finished already" in last_error(capsys)
    assert main(["train", str(file), "--resume", "--optim.epochs", "9"]) == 2
    assert "optim.epochs (4, now 9)" in last_error(capsys)


def test_printed_settings_are_a_settings_file(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", str(file), "--output.loss", "squared_hinge", "--print_config"])
    assert stop.value.code in (0, None)
    shown = yaml.safe_load(capsys.readouterr().out)
    expected = yaml.safe_load(file.read_text())
    assert shown["output"]["loss"] == "squared_hinge"
    assert shown["encoder"]["features"] == expected["encoder"]["features"]
    assert not (tmp_path / "run").exists()
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(shown))
    assert main(["train", str(copy), "--optim.epochs", "1"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optim.epohs", "3"], "unknown key optim.epohs; the nearest known key is optim.epochs"),
        (["--fan_in=3"], "unknown key fan_in; the nearest known key is output.fan_in"),
        (["--optim.epochs", "many"], "optim.epochs (many) must be of type int"),
        (["--optim.epochs", "0"], "optim.epochs (0) must be at least 1"),
        (["--run.threads", "two"], "run.threads (two) must be of type int | null"),
        (["--output.loss", "mse"], "output.loss (mse) must be one of bce, squared_hinge"),
        (["--output.fan_in", "64"], "output.fan_in (64) must not exceed encoder.features (32); lower"),
        (["--preset", "best"], "--preset (best) must be one of auto, none"),
        (["data.csv"], "haste train takes one settings file or path of data, found"),
        (["second.yaml"], "haste train takes one settings file or path of data, found"),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(
    file: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(file), *arguments]) == 2
    assert last_error(capsys).startswith(f"haste: error: {message}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {epohs: 3}", "unknown key optim.epohs; the nearest known key is optim.epochs"),
        ("learning_rate: 3", "unknown key learning_rate; the nearest"),
        ("optim: 3", "optim (int) must be a mapping"),
        ("optim: {epochs: many}", "optim.epochs (many) must be of type int"),
        ("[1, 2]", "must be a mapping of keys to values, found list"),
        ("optim: {", "must be YAML; while parsing"),
        ("", "data.path must be given"),
    ],
)
def test_wrong_files_are_one_line(tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    assert main(["train", str(file)]) == 2
    assert message in last_error(capsys)


def test_a_missing_file_and_a_variable_that_is_not_set_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["train", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: cannot be read; No such file" in last_error(capsys)
    monkeypatch.delenv("HASTE_NOWHERE", raising=False)
    assert main(["train", "--data.path", "${HASTE_NOWHERE}/x", "--run.dir", str(tmp_path / "run")]) == 2
    assert "export HASTE_NOWHERE=... first" in last_error(capsys)


def test_numbers_may_be_written_as_people_write_them(file: Path, tmp_path: Path) -> None:
    text = file.read_text().replace("lr: 0.05", "lr: 5e-2")
    assert "5e-2" in text
    file.write_text(text)
    assert main(["train", str(file), "--optim.epochs", "1"]) == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["optim"]["encoder"]["lr"] == 0.05


@pytest.fixture
def table(tiny_data: Path, tmp_path: Path) -> Path:
    """The tiny training documents as a csv."""
    rows = [json.loads(line) for line in (tiny_data / "train.jsonl").read_text().splitlines()]
    path = tmp_path / "mine.csv"
    path.write_text("text,labels\n" + "".join(f"{row['text']},{'|'.join(row['labels'])}\n" for row in rows))
    return path


QUICK = ["--optim.epochs", "2", "--run.threads=1", "--run.device", "cpu"]


def test_data_alone_is_enough_and_what_is_given_wins(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", str(table), *QUICK, "--run.dir", str(run), "--data.cache", str(tmp_path / "cache")]) == 0
    said = capsys.readouterr().err
    assert "preset auto: 240 documents of text" in said
    used = yaml.safe_load((run / "config.yaml").read_text())
    assert used["optim"]["epochs"] == 2
    assert "optim.epochs" not in said
    assert used["data"]["path"] == str(table)
    reasons = (run / "preset.txt").read_text().splitlines()
    assert reasons[0] in said
    for line in reasons[1:]:
        key, _, value = line.partition(": ")[0].partition(" ")
        assert line in said
        section, *names = key.split(".")
        found = used[section]
        for name in names:
            found = found[name]
        assert str(found) == value.replace(",", "")


def test_a_run_with_a_preset_is_resumed_with_what_was_chosen(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(table), *QUICK, "--run.dir", str(tmp_path / "run"), "--data.cache", str(tmp_path / "cache")]
    assert main(["train", *given]) == 0
    assert main(["train", *given]) == 2
    assert "choose another run.dir, or continue with --resume" in last_error(capsys)
    chosen = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "metrics.json").unlink()
    table.write_text(table.read_text())
    assert main(["train", *given, "--resume"]) == 0
    assert (tmp_path / "run" / "config.yaml").read_text() == chosen
    assert main(["train", *given, "--resume", "--encoder.features", "16", "--output.fan_in", "16"]) == 2
    assert "encoder.features" in last_error(capsys)


def test_a_settings_file_is_completed_where_it_says_nothing(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = yaml.safe_load(file.read_text())
    assert main(["train", str(file), "--preset", "auto", "--print_config"]) == 0
    shown = capsys.readouterr().out
    values = yaml.safe_load(shown)
    changed = differing_keys(given, values)
    assert all(old is None for old, _ in changed.values()), "what was given is kept"
    assert "optim.encoder.name" in changed
    assert shown.startswith("# preset auto: 240 documents")
    assert f"\n# data.min_df {values['data']['min_df']}: " in shown
    assert not (tmp_path / "run").exists()


def test_a_folder_of_data_is_not_a_settings_file(tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tiny_data), "--preset=none", "--data.min_df", "0"]) == 2
    assert "data.min_df (0) must be at least 1" in last_error(capsys)
    assert main(["train", str(tiny_data), "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["path"] == str(tiny_data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing-here"], "nothing-here: no such file or folder; check data.path"),
        (
            ["data.csv", "--data.path", "other.csv"],
            "haste train takes one path of data, found data.csv and --data.path",
        ),
        (["--preset", "auto"], "data.path must be given; haste train PATH"),
        (["data.csv", "--preset", "auto", "--optim.epochs", "0"], "optim.epochs (0) must be at least 1"),
        (["data.csv", "--optim.epochs", "many"], "optim.epochs (many) must be of type int"),
    ],
)
def test_wrong_uses_of_data_alone(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *arguments]) == 2
    assert last_error(capsys).startswith(f"haste: error: {message}")
