"""What the README and the pages of docs/ tell people to type, and a desk to type it at."""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from secateur.cli.main import run
from secateur.config import LOSSES
from secateur.importance import IMPORTANCE
from secateur.methods import METHODS
from secateur.search import SEARCHES

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def blocks(page: Path, kind: str) -> list[str]:
    """The code blocks of a kind on a page."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The commands of this package that a page shows, each split as a shell would split it."""
    lines = [
        line.removeprefix("$ ")
        for block in blocks(page, "console")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("secateur ")]


@pytest.fixture
def desk(
    request: pytest.FixtureRequest, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder with the files that the pages name; `path/to/model` is a tiny random one."""
    folder = text_file.parent
    dense = request.getfixturevalue("tiny_folder")()
    (folder / "path" / "to").mkdir(parents=True)
    dense.rename(folder / "path" / "to" / "model")
    request.getfixturevalue("baichuan")()[1].rename(folder / "path" / "to" / "baichuan")
    text_file.rename(folder / "text.txt")
    (folder / "heldout.txt").write_text((folder / "text.txt").read_text())
    for page in ("own-score.md", "own-search.md"):
        (code, *_) = blocks(ROOT / "docs" / page, "python")
        name = code[3:].partition(":")[0]  # its first line says what the file is called
        (folder / name).write_text(code)
    shutil.copytree(folder / "path" / "to" / "model", folder / "path" / "to" / "larger")
    (sweep,) = blocks(ROOT / "docs" / "sweep.md", "toml")
    (folder / "sweep.toml").write_text(sweep)
    # in other fields than Alpaca's, whose words alone fill the context of a toy
    rows = [{"prompt": f"Add {n} and 1.", "completion": str(n + 1)} for n in range(20)]
    (folder / "alpaca.json").write_text(json.dumps(rows))
    (folder / "tasks").mkdir()
    question = {"query": "Question: A tree?", "choices": ["oak", "stone"], "gold": 0}
    (folder / "tasks" / "trees.jsonl").write_text(f"{json.dumps(question)}\n" * 3)
    for name, loss in LOSSES.items():  # as many steps as a toy can take
        monkeypatch.setitem(LOSSES, name, replace(loss, steps=2))
    monkeypatch.chdir(folder)
    known: tuple[dict[str, Any], ...] = (IMPORTANCE, METHODS, SEARCHES)
    before = [dict(one) for one in known]
    yield folder
    for one, was in zip(known, before, strict=True):
        one.clear()
        one.update(was)


def type_at(
    desk: Path, command: list[str], more: Callable[[list[str]], list[str]] = lambda command: []
) -> int:
    """Type a command of a page at the desk, with `more` options behind it; gives the exit code.

    What an earlier command wrote is replaced; minutes to train are more than a test has.
    """
    command = shlex.split(re.sub(r" --minutes \d+", "", shlex.join(command)))
    if "other/" in command and not (desk / "other").exists():
        shutil.copytree(desk / "plan", desk / "other")
    out = command[command.index("--out") + 1] if "--out" in command else ""
    replaces = out and (desk / out).exists() and command[1] != "sweep"  # which goes on there
    force = ["--force"] if replaces else []
    return run([*command[1:], *more(command), *force])
