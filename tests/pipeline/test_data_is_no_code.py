"""Plans and records of settings are data: nothing that they name is run unasked."""

import json
from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.cli.main import run
from secateur.importance import IMPORTANCE
from secateur.methods import METHODS, use

EVIL = "from pathlib import Path\nPath({ran!r}).write_text('ran')\n"
SCORE = """
from secateur.importance import importance
@importance("my-score", paper="")
def score(weight):
    "Sums."
    return weight.abs().sum((1, 2))
"""


@pytest.fixture(autouse=True)
def known() -> Any:
    yield
    for registry in (IMPORTANCE, METHODS):
        for name in [name for name in registry if name.startswith("my-")]:
            registry.pop(name)


@pytest.fixture
def evil(tmp_path: Path) -> tuple[Path, Path]:
    """A file that says if it was run, and where it would say so."""
    file, ran = tmp_path / "notes.py", tmp_path / "ran"
    file.write_text(EVIL.format(ran=str(ran)) + SCORE)
    return file, ran


@pytest.mark.parametrize("name", ["use", "device", "hidden_gib", "batch", "model", "nonsense"])
def test_a_plan_says_nothing_but_what_a_plan_says(
    name: str, evil: tuple[Path, Path], model: Path, tmp_path: Path, assert_refused: Any
) -> None:
    file, ran = evil
    secateur.prune(model, method="magnitude", dry_run=True, out=tmp_path / "plan")
    plan = tmp_path / "plan" / "plan.json"
    raw = json.loads(plan.read_text())
    plan.write_text(json.dumps({**raw, "calibration": {**raw["calibration"], name: str(file)}}))
    words = [repr(name), "calibration, field, samples, length, bos, seed"]
    assert_refused("apply", plan, model, "--out", tmp_path / "out", says=words)
    assert not ran.exists()


def test_the_code_that_a_record_names_is_run_only_if_the_user_names_it(
    evil: tuple[Path, Path], model: Path, tmp_path: Path, assert_refused: Any
) -> None:
    file, ran = evil
    record = tmp_path / "run.toml"
    settings = {"model": str(model), "method": "my-score", "use": str(file), "evaluate": "none"}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    record.write_text("[settings]\n" + "\n".join(lines))
    command = ["prune", "--config", str(record), "--out", str(tmp_path / "out")]
    assert_refused(*command, says=["not run unasked", f"add --use {file}"])
    assert not ran.exists()
    assert run([*command, "--use", str(file)]) == 0
    assert ran.exists()


def test_a_text_that_a_plan_or_a_record_names_is_told(
    model: Path, calibrated: list[str], tmp_path: Path, capsys: Any
) -> None:
    quick = ["--evaluate", "none", "--out"]
    assert run(["prune", str(model), *calibrated, *quick, str(tmp_path / "one")]) == 0
    capsys.readouterr()
    text = calibrated[1]
    again = ["prune", "--config", str(tmp_path / "one" / "run.toml"), "--out"]
    assert run([*again, str(tmp_path / "two")]) == 0
    assert f"{text}, which {tmp_path}/one/run.toml names" in capsys.readouterr().err
    applied = ["apply", str(tmp_path / "one" / "plan.json"), str(model), *quick]
    assert run([*applied, str(tmp_path / "three")]) == 0
    assert f"the text {text} is read, which the plan names" in capsys.readouterr().err
    measured = ["apply", str(tmp_path / "one" / "plan.json"), str(model), "--repair", "none"]
    assert run([*measured, "--out", str(tmp_path / "four")]) == 0  # perplexity on the rest of it
    assert f"the text {text} is read, which the plan names" in capsys.readouterr().err
    for number, command in enumerate((again, applied)):
        out = str(tmp_path / f"told-{number}")
        assert run([*command, out, "--calibration", text]) == 0
        assert capsys.readouterr().err == ""


BODIES: dict[str, tuple[str, str]] = {
    "raises": ("raise KeyError('x')", "KeyError"),
    "none": ("return None", "NoneType"),
    "list": ("return [1.0] * len(weight)", "list"),
    "numpy": ("return weight.sum((1, 2)).numpy()", "ndarray"),
    "meta": ("return weight.sum((1, 2)).to('meta')", "meta"),
    "complex": ("return weight.sum((1, 2)) * 1j", "cpu"),
}


@pytest.mark.parametrize("kind", list(BODIES))
def test_a_score_that_gives_no_scores_is_said(
    kind: str, model: Path, tmp_path: Path, assert_refused: Any
) -> None:
    body, says = BODIES[kind]
    file = tmp_path / "own.py"
    file.write_text(SCORE.replace("return weight.abs().sum((1, 2))", body))
    command = ["prune", model, "--use", file, "--method", "my-score", "--out", tmp_path / "out"]
    assert_refused(*command, "--evaluate", "none", says=["my-score", says])


FILES: dict[str, tuple[str, str]] = {
    "exit": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "positional": (SCORE.replace("(weight)", "(weight, /)"), "by name"),
    "variable": (SCORE.replace("(weight)", "(*weight)"), "by name"),
    "class": (SCORE.replace("def score(weight)", "class A"), "no function"),
    "number": (SCORE.replace('"my-score"', "7"), "letters, digits|TypeCheckError"),
    "comma": (SCORE.replace("my-score", "a,b"), "letters, digits"),
    "formula": (SCORE.replace("my-score", "$frac$"), "letters, digits"),
}


@pytest.mark.parametrize("kind", list(FILES))
def test_a_file_that_registers_nothing_usable_is_said(kind: str, tmp_path: Path) -> None:
    text, says = FILES[kind]
    file = tmp_path / "own.py"
    if kind == "class":
        text = text.replace("return weight.abs().sum((1, 2))", "pass")
    file.write_text(text)
    before = dict(IMPORTANCE)
    with pytest.raises(secateur.SecateurError, match=says):
        use(file)
    assert before == IMPORTANCE
