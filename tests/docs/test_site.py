"""The site builds without a warning, its links lead somewhere, and its commands can be typed."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from documentation import PAGES, README, ROOT, commands, type_at
from secateur.cli.main import cli
from secateur.data.sources import embedded_folder
from secateur.deployment import DESTINATIONS

WITH_COMMANDS = [page for page in (README, *PAGES) if commands(page)]
# What pages name and a machine without a network, a GPU or an hour has something smaller for.
SMALLER = {
    r"HuggingFaceTB/SmolLM2-135M|mistralai/Mistral-7B-v0.1": "path/to/model",
    r"--(calibration|data|evaluate) (c4|wikitext2|alpaca-cleaned)": r"--\1 text.txt",
    r"--search-minutes \d+": "--search-rounds 1",
    r"--tasks zero-shot": "--tasks tasks/",
    r"--device cuda": "--device cpu",
    r"5\.4B": "2.5M",
    r"12GB": "5MB",
    r"--at-context \d+": "--at-context 256",
}
# Enough for a command to do all that it does.
FEW = {
    "prune": "--prompts 0 --samples 16 --length 32 --evaluate-tokens 500",
    "compare": "--samples 16 --length 32 --evaluate-tokens 500",
    "apply": "--evaluate-tokens 500",
    "evaluate": "--evaluate-tokens 500 --limit 2 --new-tokens 2",
    "recover": "--samples 20 --length 32 --batch 2 --evaluate-tokens 500",
    "bench": "--seconds 1 --contexts 16",
}


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=names)
def test_the_commands_of_a_page_parse(page: Path) -> None:
    for command in commands(page):
        if command[1:] not in (["--version"], ["--help"]):
            known = cli.get_command(None, command[1])
            assert known is not None, command
            known.make_context(command[1], command[2:])


def test_most_pages_have_commands() -> None:
    assert len(WITH_COMMANDS) > 15
    assert sum(len(commands(page)) for page in WITH_COMMANDS) > 50


def smaller(command: list[str]) -> list[str]:
    line = shlex.join(command)
    for large, small in SMALLER.items():
        line = re.sub(large, small, line)
    return shlex.split(line)


def few(command: list[str]) -> list[str]:
    given = shlex.split(FEW.get(command[1], ""))
    if command[1] == "evaluate" and "--evaluate" not in command:
        given += ["--evaluate", "heldout.txt"]
    return given


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=names)
def test_the_commands_of_a_page_run_on_the_embedded_model(
    page: Path, desk: Path, capsys: Any
) -> None:
    if any("--tasks" in command for command in commands(page)):
        pytest.importorskip("lm_eval")
    shutil.rmtree(desk / "path" / "to" / "model")
    shutil.copytree(embedded_folder(), desk / "path" / "to" / "model")
    for name, text in (("text.txt", "calibration.txt"), ("heldout.txt", "heldout.txt")):
        (desk / name).write_text((embedded_folder() / text).read_text("utf-8")[:40_000], "utf-8")
    first = "secateur prune path/to/model --method flap --calibration text.txt --out small/"
    for command in (shlex.split(first), *commands(page)):
        if command[1] == "export" and not has_packages(command):
            continue
        assert type_at(desk, smaller(command), few) == 0, (command, capsys.readouterr().err)


def has_packages(command: list[str]) -> bool:
    """Whether what a target needs is installed: engines are not, unless they are tested."""
    needs = DESTINATIONS[command[command.index("--to") + 1]].needs
    return all(find_spec(name) is not None for name in needs)


def check_site() -> Any:
    spec = spec_from_file_location("check_site", ROOT / "scripts" / "check_site.py")
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize(
    ("html", "said"),
    [
        ('<a href="other.html#there">', None),
        ('<a href="#here"><p id="here">', None),
        ('<a href="https://example.org/gone">', None),
        ('<link rel="canonical" href="https://example.org/">', None),
        ('<a href="gone.html">', "there is no such file"),
        ('<a href="other.html#gone">', "there is no such place"),
        ('<img src="gone.png">', "there is no such file"),
        ('<script src="https://example.org/x.js">', "<script> fetches"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "<link> fetches"),
    ],
)
def test_a_broken_link_is_found(html: str, said: str | None, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(html)
    (tmp_path / "other.html").write_text('<h2 id="there">')
    found = list(check_site().broken(tmp_path))
    assert len(found) == (said is not None)
    assert all(str(said) in one for one in found)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_no_link_is_broken(tmp_path: Path) -> None:
    if find_spec("mkdocs") is None or find_spec("mkdocstrings") is None:
        pytest.skip('the extra docs is not installed: pip install -e ".[docs]"')
    site = tmp_path / "site"
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    told = subprocess.run(
        build,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    assert "WARNING" not in told.stderr
    assert list(check_site().broken(site)) == []
    pages = {page.relative_to(site).with_suffix(".md") for page in site.rglob("*.html")}
    assert {page.relative_to(ROOT / "docs") for page in PAGES} <= pages
    assert "nothing was written" in (site / "reference" / "api.html").read_text("utf-8")
