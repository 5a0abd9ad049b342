"""What `import secateur` gives: names, a version, registered classes, settings that have types."""

import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

import secateur
from secateur.config import PruneConfig, PruneSettings, RecoverConfig, RecoverSettings

ROOT = Path(__file__).parent.parent


def _python(*arguments: str, folder: Path, program: str = sys.executable) -> str:
    """What Python prints; the package is on its path, warnings are no errors."""
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [program, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_the_public_names_are_listed_before_anything_is_used() -> None:
    for name in ("prune", "apply", "compare", "evaluate", "recover", "load", "inspect", "Plan"):
        assert name in dir(secateur)
    for name in secateur.__all__:
        assert name in dir(secateur)
        assert getattr(secateur, name) is not None
    assert secateur.__version__ == "0.1.0"
    assert "torch" not in dir(secateur)
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        _ = secateur.prun


@pytest.mark.parametrize(
    ("argv", "original", "ours"),
    [
        (["-m", "--help"], ["python", "-m", "secateur", "--help"], True),
        (["-m"], ["python", "-Im", "secateur"], True),
        (["-m", "x"], ["python", "-msecateur", "x"], True),
        (["-m", "secateur"], ["python", "-m", "package.main", "secateur"], False),
        (["-m"], ["python", "-m", "secateur_things"], False),
        (["secateur"], ["python", "secateur"], False),
        (["secateur", "-m", "secateur"], ["python", "secateur", "-m", "secateur"], False),
        ([""], ["python"], False),
        ([], [], False),
    ],
)
def test_only_our_own_program_leaves_the_registering_for_later(
    argv: list[str], original: list[str], ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert secateur._is_program() is ours
    monkeypatch.setitem(sys.modules, "secateur_command", sys)
    assert secateur._is_program()


@pytest.mark.slow
def test_importing_registers_in_any_program_but_our_own(tmp_path: Path) -> None:
    """A module that imports us while `-m` looks for it, and a program of our name, register too."""
    says = "import secateur, sys; print('transformers' in sys.modules)"
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text(says)
    (package / "main.py").write_text("")
    (tmp_path / "secateur").write_text(says)
    ours = f"from secateur_command import main; {says}"
    said = {
        "package": _python("-m", "package.main", "secateur", folder=tmp_path),
        "program": _python(str(tmp_path / "secateur"), folder=tmp_path),
        "ours": _python("-c", ours, folder=tmp_path),
    }
    assert {name: text.strip() for name, text in said.items()} == {
        "package": "True",
        "program": "True",
        "ours": "False",
    }


@pytest.mark.slow
def test_help_imports_neither_torch_models_nor_transformers(tmp_path: Path) -> None:
    code = (
        "import runpy, sys, atexit\n"
        "atexit.register(lambda: print('transformers' in sys.modules))\n"
        "sys.argv = ['-m', '--help']; sys.orig_argv = ['python', '-m', 'secateur', '--help']\n"
        "runpy.run_module('secateur', run_name='__main__', alter_sys=True)\n"
    )
    out = _python("-c", code, folder=tmp_path)
    assert "Usage: secateur" in out
    assert out.strip().endswith("False")


@pytest.mark.parametrize(
    ("types", "model"), [(PruneSettings, PruneConfig), (RecoverSettings, RecoverConfig)]
)
def test_the_typed_settings_are_those_of_the_models(types: type, model: type) -> None:
    """If not: python scripts/typed_settings.py"""
    fields = model.model_fields  # type: ignore[attr-defined]
    wanted = {
        name: Any if name in ("calibration", "evaluate", "data") else field.annotation
        for name, field in fields.items()
        if name != "model"
    }
    assert get_type_hints(types) == wanted


def test_the_script_writes_the_types_that_there_are() -> None:
    spec = spec_from_file_location("typed_settings", ROOT / "scripts" / "typed_settings.py")
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.FILE.read_text() == script.made()


@pytest.mark.slow
def test_a_type_checker_finds_a_misspelled_setting(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    lines = {
        'secateur.prune("m", rato=3)': '"rato"',
        'secateur.prune("m", ratio="x")': "incompatible type",
        'secateur.recover("m", out="x", recpe="distil")': '"recpe"',
        'secateur.compare("m", methods="flap", ratios=0.2, smples=3)': '"smples"',
        'secateur.prune("m", ratio=0.2, out="x").load()': "",
        'secateur.apply("plan.json", "m", out="x", repair="none")': "",
    }
    (tmp_path / "uses.py").write_text("import secateur\n" + "\n".join(lines) + "\n")
    options = ["--config-file", str(ROOT / "pyproject.toml"), "uses.py"]
    out = _python("-m", "mypy", *options, folder=tmp_path)
    for number, (line, complaint) in enumerate(lines.items(), start=2):
        errors = [one for one in out.splitlines() if f"uses.py:{number}: error" in one]
        assert bool(errors) == bool(complaint), (line, out)
        assert all(complaint in one for one in errors), (line, out)


def test_shapes_are_checked_at_run_time() -> None:
    from jaxtyping import TypeCheckError

    from secateur.importance.magnitude import l2

    with pytest.raises(TypeCheckError):
        l2(torch.ones(3))
