"""What the documentation tells people to type works."""

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from documentation import PAGES, README, ROOT, blocks, commands, type_at
from secateur.cli.main import cli

# Pages whose Python is no example of a file of one's own.
PYTHON = ("pruning", "deploy", "quickstart", "sweep")
# What imports it is run by the tests of exports.
ENGINE = "onnxruntime"
OPTIONAL = ("datasets", "sentencepiece", "google.protobuf", "vl_convert")


def test_the_commands_of_the_readme_run(
    desk: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in OPTIONAL:  # the base installation runs them
        monkeypatch.setitem(sys.modules, name, None)
    assert len(commands(README)) >= 5
    for command in commands(README):
        assert type_at(desk, command, wordless) == 0, (command, capsys.readouterr().err)


def wordless(command: list[str]) -> list[str]:
    """llama.cpp has no name for the tokenizer of a tiny random model."""
    return ["--no-tokenizer"] if command[1] == "export" else []


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
        "llama_cpp",
        "openvino",
        "lm_eval",
        "markupsafe",  # comes with jinja2
        "ray",
        "vl_convert",
        "sentencepiece",
    }


def test_the_python_of_the_readme_and_of_the_pages_runs(desk: Path) -> None:
    page = {
        name: [
            code for code in blocks(ROOT / "docs" / f"{name}.md", "python") if ENGINE not in code
        ]
        for name in PYTHON
    }
    assert [len(code) for code in page.values()] == [1, 3, 1, 1]
    prunes, generates = blocks(README, "python")
    assert page["pruning"] == [prunes]
    for code in (*page.values(), [generates]):  # the first one prunes, others load what came of it
        for block in code:
            exec(compile(block, "a page", "exec"), {})


# Those of scripts, of benchmarks, and of all commands alike.
NOT_OF_COMMANDS = {"--all", "--only", "--help", "--help-all", "--traceback"}
# Pages on what was: they name options as they were then.
HISTORY = {"log.md", *(page.name for page in PAGES if page.parent.name == "decisions")}


def test_the_options_of_the_pages_exist() -> None:
    known = {
        option
        for name in cli.list_commands(None)
        for parameter in cli.get_command(None, name).params
        for option in parameter.opts
    }
    named = set()
    for page in (README, *(page for page in PAGES if page.name not in HISTORY)):
        text = page.read_text(encoding="utf-8")
        ours = [span for span in re.findall(r"`([^`\n]+)`", text) if span.startswith(("--", "sec"))]
        ours += [" ".join(command) for command in commands(page)]
        options = set(
            re.findall(r"(?<![\w-])--[a-z][a-z-]+", text if page == README else str(ours))
        )
        assert options - NOT_OF_COMMANDS <= known, page.name
        named |= options
    assert len(named) > 60


def test_the_score_of_the_page_is_the_one_in_the_package() -> None:
    page = ROOT / "docs" / "own-score.md"
    (shown,) = (block for block in blocks(page, "python") if block.startswith("@importance"))
    source = (ROOT / "src/secateur/importance/fluctuation.py").read_text(encoding="utf-8")
    paper = '"https://arxiv.org/abs/2312.11983"'
    function = source[source.index('@importance("wifv"') :].replace("PAPER", paper)
    assert shown.split() == function.split()[: len(shown.split())]


def test_links_of_the_documentation_lead_somewhere() -> None:
    for page in (README, ROOT / "CONTRIBUTING.md", *PAGES):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
