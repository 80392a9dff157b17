import subprocess
import sys

import pytest

from haste.cli import main


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


@pytest.mark.parametrize("argument", ["--help", "--version", "no-such-command"])
def test_answers_that_need_no_model_import_nothing_heavy(argument: str) -> None:
    done = run_python(
        f"import sys; from haste.cli import main; main([{argument!r}]);"
        "print([m for m in ('torch', 'numpy', 'jsonargparse', 'rich', 'yaml') if m in sys.modules])"
    )
    assert done.stdout.splitlines()[-1] == "[]", done


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in ("train", "evaluate", "predict", "info", "bench", "demo"):
        assert f"\n  {command} " in shown


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "info", "bench", "demo"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code in (0, None)
    assert "usage:" in capsys.readouterr().out


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == (
        "haste: error: unknown command trian; the nearest is train, and haste --help lists all\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate"], "the following arguments are required: RUN; haste evaluate --help explains"),
        (["evaluate", "nowhere"], "nowhere must be a run folder or a model folder; there is no such folder"),
        (["predict", "nowhere"], "one of the arguments --input --text is required"),
        (["predict", "x", "--text", "a", "--top-k", "0"], "argument --top-k: (0) must be at least 1"),
        (["info", "nowhere"], "nowhere must be a run folder; it has no run.json"),
        (["bench", "--claim", "none"], None),
    ],
)
def test_errors_of_use_are_one_line(
    arguments: list[str], message: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if message is None:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        return
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"haste: error: {message}")
    assert error.count("\n") == 1


def test_debug_shows_where_an_error_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTE_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown command"):
        main(["trian"])


def test_a_reader_that_stops_reading_is_no_error() -> None:
    done = run_python(
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'from haste.cli import main; import sys; sys.exit(main())'],"
        " stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "child.stdout.close()\n"
        "print(child.stderr.read(), child.wait())"
    )
    assert done.stdout == "b'' 0\n", done


def test_info_shows_the_kernels_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for name in ("haste", "torch", "device", "kernels ", "kernels_reason"):
        assert f"{name}" in shown
