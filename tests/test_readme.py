"""What the documentation tells people to type works."""

import ast
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from secateur.cli.main import cli, run
from secateur.config import LOSSES
from secateur.importance import IMPORTANCE
from secateur.methods import METHODS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [line[2:] for block in blocks("console") for line in block.splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.startswith("secateur ")]


@pytest.fixture
def desk(
    request: pytest.FixtureRequest, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder with the files that the README names."""
    folder = text_file.parent
    dense = request.getfixturevalue("tiny_folder")()
    (folder / "path" / "to").mkdir(parents=True)
    dense.rename(folder / "path" / "to" / "model")
    request.getfixturevalue("baichuan")()[1].rename(folder / "path" / "to" / "baichuan")
    text_file.rename(folder / "text.txt")
    (folder / "heldout.txt").write_text((folder / "text.txt").read_text())
    example = (ROOT / "docs" / "own-score.md").read_text(encoding="utf-8")
    (folder / "my_score.py").write_text(re.findall(r"```python\n(.*?)```", example, re.DOTALL)[0])
    # in other fields than Alpaca's, whose words alone fill the context of a toy
    rows = [{"prompt": f"Add {n} and 1.", "completion": str(n + 1)} for n in range(20)]
    (folder / "alpaca.json").write_text(json.dumps(rows))
    for name, loss in LOSSES.items():  # as many steps as a toy can take
        monkeypatch.setitem(LOSSES, name, replace(loss, steps=2))
    monkeypatch.chdir(folder)
    yield folder
    for known in (IMPORTANCE, METHODS):
        known.pop("my-score", None)


OPTIONAL = ("datasets", "sentencepiece", "google.protobuf", "vl_convert")


def test_the_commands_of_the_readme_run(
    desk: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in OPTIONAL:  # the base installation runs them
        monkeypatch.setitem(sys.modules, name, None)
    assert len(commands()) >= 5
    for command in commands():
        if "other/" in command:
            (desk / "other").mkdir(exist_ok=True)
            (desk / "other" / "plan.json").write_bytes((desk / "plan" / "plan.json").read_bytes())
        out = re.search(r"--out (\S+)/", command)
        force = ["--force"] if out and (desk / out[1]).exists() else []
        command = re.sub(r" --minutes \d+", "", command)  # half an hour is more than a test has
        assert run(shlex.split(command)[1:] + force) == 0, (command, capsys.readouterr().err)


def test_what_the_package_imports_is_in_its_base() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = {re.split("[<>=]", one)[0].replace("-", "_") for one in settings["dependencies"]}
    imported = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module or "")
    first = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert first - base - {"secateur", "secateur_command"} <= {
        "bitsandbytes",
        "compressed_tensors",
        "datasets",
        "gguf",
        "lm_eval",
        "markupsafe",  # comes with jinja2
        "vl_convert",
        "sentencepiece",
    }


def test_the_python_of_the_readme_runs(desk: Path) -> None:
    code = [block for block in blocks("python") if not block.startswith("@")]
    assert len(code) == 4
    order = [code[3], *code[:3]]  # the one that prunes comes first
    for block in order:
        exec(compile(block, "README.md", "exec"), {})


def test_the_options_of_the_readme_exist() -> None:
    known = {
        option
        for name in cli.list_commands(None)
        for parameter in cli.get_command(None, name).params
        for option in parameter.opts
    }
    named = set(re.findall(r"`?(--[a-z][a-z-]+)", README)) - {"--all", "--help"}
    assert named <= known
    assert len(named) > 15


def test_the_score_of_the_readme_is_the_one_in_the_package() -> None:
    (shown,) = (block for block in blocks("python") if block.startswith("@importance"))
    source = (ROOT / "src/secateur/importance/fluctuation.py").read_text(encoding="utf-8")
    paper = '"https://arxiv.org/abs/2312.11983"'
    function = source[source.index('@importance("wifv"') :].replace("PAPER", paper)
    assert shown.split() == function.split()[: len(shown.split())]


def test_links_of_the_documentation_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
