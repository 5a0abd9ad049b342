"""What reaches the screen and files: names as they are, no markup, no control, no formula."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from safetensors.torch import load_file, save_file

import secateur
from secateur.cli import screen
from secateur.cli.main import cli, run
from secateur.cli.screen import Screen, table
from secateur.errors import SecateurError
from secateur.progress import Lines
from secateur.recovery import forget_other, read_state
from secateur.report import checked_blend, plan_difference, write_comparison

Said = Callable[..., str]
ODD = "[v2]model [/x] [bold]\x1b[31m"
SHOWN = r"[v2]model [/x] [bold]\x1b[31m"


# --- names ----------------------------------------------------------------------------------------


def test_a_name_is_shown_as_it_is(tiny_folder: Any, text_file: Path, said: Said) -> None:
    folder = tiny_folder()
    odd = folder.rename(folder.with_name("[q4]m[x]\x1b[31m"))
    seen = r"[q4]m[x]\x1b[31m"
    assert seen in said("inspect", odd).replace("\n", "")
    assert seen in said("discover", odd).replace("\n", "")
    out = said(
        "evaluate",
        odd,
        "--evaluate",
        text_file,
        "--evaluate-lengths",
        "16",
        "--evaluate-tokens",
        "64",
    )
    assert seen in out.replace("\n", "")
    options = ["--methods", "magnitude", "--ratios", "0.4", "--evaluate", "none", "--align", "1"]
    assert seen in said("compare", odd, *options).replace("\n", "")


def test_tables_and_notes_take_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table(ODD, (ODD, "b"), [(ODD, 1)])
    Screen().note(f"{ODD}\nmore")
    out, err = capsys.readouterr()
    assert out.replace("\n", "").count(SHOWN) == 3
    assert SHOWN in err
    assert "\x1b" not in out + err


def test_an_error_shows_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "a\x1b[31mb"]) == 2
    assert run(["prune", "x", "--ratio", "\x1b[2J"]) == 2
    out, err = capsys.readouterr()
    assert r"a\x1b[31mb" in err
    assert "\x1b" not in out + err


# --- a bug of ours --------------------------------------------------------------------------------


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """A command that raises."""

    def make(error: Exception) -> None:
        def fails() -> None:
            raise error

        monkeypatch.setitem(cli.commands, "broken", click.Command("broken", callback=fails))

    return make


def test_a_bug_is_one_line_and_how_to_report_it(
    broken: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(ZeroDivisionError("by\nzero"))
    assert run(["broken"]) == 1
    err = capsys.readouterr().err
    assert "This is a bug in secateur: ZeroDivisionError: by\\nzero\n" in err
    assert "--traceback" in err
    assert "Traceback" not in err
    assert run(["broken", "--traceback"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (PermissionError(13, "Permission denied", "x"), 2, "Error: .*Permission denied"),
        (MemoryError(), 2, "Error: .*not enough memory"),
        (SecateurError("bad"), 2, "Error: bad"),
        (BrokenPipeError(32, "Broken pipe"), 2, "Error: .*standard output: Broken pipe"),
    ],
)
def test_what_the_system_refuses_is_no_bug(
    error: Exception, code: int, says: str, broken: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(error)
    assert run(["broken"]) == code
    assert re.search(says, capsys.readouterr().err)


def test_output_that_cannot_be_written_is_an_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    code = "import sys; sys.argv = ['secateur', '--help']; import secateur_command as c; c.main()"
    source = str(Path(secateur.__file__).parent.parent)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": source},
        )
    assert done.returncode == 2
    assert re.fullmatch(r"Error: .*(No space left).*\n", done.stderr)


@pytest.mark.parametrize(
    "command",
    [
        ["prune", "m", "--out", "o"],
        ["apply", "p", "m", "--out", "o"],
        ["recover", "m", "--data", "t", "--out", "o"],
        ["compare", "m", "--methods", "flap"],
        ["evaluate", "m", "--evaluate", "t"],
        ["convert", "m", "--out", "o"],
    ],
    ids=lambda command: command[0],
)
def test_a_command_shows_itself_before_what_takes_long_to_import(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[float] = []
    monkeypatch.setattr(Lines, "begin", lambda self, stage, spent=0.0: begun.append(spent))
    monkeypatch.setattr(screen, "_started", [time.monotonic() - 3])  # Python, torch
    for name in ("secateur.pipeline", "secateur.pipeline.look"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it is an error
    assert run(command) == 1
    assert [round(spent) for spent in begun] == [3]


@pytest.mark.parametrize(
    ("command", "lines"),
    [("prune m --out o", 1), ("prune --help", 0), ("store x", 0), ("--help", 0)],
)
def test_a_command_that_reads_a_model_says_so_before_it_is_imported(
    command: str, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = sys.modules["secateur.cli.main"]
    begun: list[float] = []
    monkeypatch.setattr(Lines, "begin", lambda self, stage, spent=0.0: begun.append(spent))
    monkeypatch.setattr(program, "run", lambda _: 0)  # nothing of the command is imported
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit):
        program.main(command.split(), started=time.monotonic() - 3)
    assert [round(spent) for spent in begun] == [3] * lines
    assert isinstance(screen.Screen(reading=False), screen.Screen)
    assert len(begun) == lines  # the lines that were begun go on
    screen.close_screens()


# --- comparisons ----------------------------------------------------------------------------------


def _row(method: str) -> dict[str, Any]:
    entry = {"window": 16, "tokens": 9, "before": 2.0, "after": 3.0}
    return {
        "model": f"models/{ODD}",
        "method": method,
        "ratio": 0.2,
        "repair": "none",
        "removed": 0.2,
        "stock": True,
        "parameters": 10,
        "dense_parameters": 12,
        "bytes_each": 4,
        "seed": 0,
        "calibration": None,
        "evaluation": {"text": "t"},
        "seconds": 1.0,
        "perplexity": [entry],
    }


NAMES = ("=1+1", "+x", "-x", "@x", r"$\frac{a}{$", "_hidden", "a,b", '"', "plain", "a\x1bb")


def test_a_comparison_of_any_names_is_written(tmp_path: Path) -> None:
    write_comparison(tmp_path, [_row(name) for name in NAMES])
    cells = [row[1] for row in csv.reader(io.StringIO((tmp_path / "comparison.csv").read_text()))]
    assert cells[1:] == [f"'{name}" if name[0] in "=+-@" else name for name in NAMES]
    assert [row["method"] for row in json.loads((tmp_path / "comparison.json").read_text())["rows"]]


# --- what records and plans may hold --------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        5,
        {},
        {"layers.0.mlp": 3},
        {"layers.0.mlp": {"coarse": "x", "fine": 0.5}},
        {"layers.0.mlp": {"coarse": 0.5}},
        {"elsewhere": {"coarse": 0.5, "fine": 0.5}},
        {"layers.x.mlp": {"coarse": 0.5, "fine": 0.5}},
    ],
)
def test_a_blend_that_is_none_is_refused(raw: object) -> None:
    with pytest.raises(SecateurError, match=r"results.blend is not what prune writes"):
        checked_blend(raw, "run.toml")


def test_a_record_whose_results_are_a_number_has_no_blend(pruned: Any) -> None:
    folder = pruned()
    (folder / "run.toml").write_text("results = 3\n[settings]\n")
    assert secateur.inspect(folder)["blend"] is None


def test_axes_of_any_name_are_compared_in_order() -> None:
    names = ("layers.10.mlp", "../../x", "layers.9.mlp", "x")
    plan = secateur.Plan(dict.fromkeys(names, (0,)), "a", "w")
    order = [row["axis"] for row in plan_difference(plan, plan)]
    assert order == ["../../x", "x", "layers.9.mlp", "layers.10.mlp"]


# --- the state of a training ----------------------------------------------------------------------


@pytest.mark.parametrize("values", ["3", "[]", "[" * 9000, "1" * 9000, '{"a": '])
def test_a_state_whose_values_are_none_is_damaged(values: str, tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    save_file({}, file, metadata={"fingerprint": "f", "values": values})
    with pytest.raises(SecateurError, match="or damaged"):
        read_state(file, "f")
    forget_other(file, "f")
    assert not file.exists()


@pytest.mark.parametrize(
    "damage",
    [
        "no tensor",
        *(
            pytest.param(one, marks=pytest.mark.slow)
            for one in ("no values", "another shape", "many steps")
        ),
    ],
)
def test_a_state_with_our_fingerprint_and_other_content_is_refused_and_force_begins_anew(
    damage: str, pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    from safetensors import safe_open

    from conftest import Cut

    folder, out = pruned(), tmp_path / "out"
    state = tmp_path / ".out.training.safetensors"
    settings: dict[str, Any] = {
        "data": str(text_file), "steps": 3, "length": 16, "evaluate": "none", "batch": 2,
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        secateur.recover(folder, out=out, progress=Cut(2), **settings)
    tensors = load_file(state)
    with safe_open(state, framework="pt") as file:
        about = dict(file.metadata())
    values = json.loads(about["values"])
    first = next(name for name in tensors if name.startswith("exp_avg/"))
    if damage == "no values":
        values = {}
    elif damage == "no tensor":
        del tensors[first]
    elif damage == "another shape":
        tensors[first] = tensors[first][:1].clone()
    else:
        values["steps"] = 10**6
    save_file(tensors, state, metadata={**about, "values": json.dumps(values)})
    with pytest.raises(SecateurError, match="or damaged"):
        secateur.recover(folder, out=out, **settings)
    assert state.exists()
    secateur.recover(folder, out=out, force=True, **settings)
    assert (out / "config.json").is_file()


def test_a_card_that_is_no_utf8_does_not_cost_a_training(
    pruned: Any, text_file: Path, tmp_path: Path
) -> None:
    folder, out = pruned(), tmp_path / "out"
    card = (folder / "README.md").read_bytes()
    (folder / "README.md").write_bytes(card + b"caf\xe9\n")
    secateur.recover(folder, out=out, data=str(text_file), steps=1, length=16, evaluate="none")
    assert "caf\ufffd" in (out / "README.md").read_text()
