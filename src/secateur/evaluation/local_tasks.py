"""Tasks in local files: one question with its choices a line, as JSON.

    {"query": "Question: ...", "choices": ["...", "..."], "gold": 0}
    {"context_options": ["... Sarah", "... Maria"], "continuation": "always got ...", "gold": 1}

Of the first kind, a choice stands after the query; of the second (WinoGrande), what differs stands
before, and the same words are scored after it. A query whose last part begins with `Question:` is
answered after `Answer:` on a line of its own, as in the harness's own BoolQ, PIQA and ARC; every
other one after a space.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SecateurError
from ..parsing import parse_json, read_text
from ..paths import typed_path

# Where the layouts have the choices, and the other text.
_CHOICES, _BEFORE = ("choices", "query"), ("context_options", "continuation")
_QUESTION = re.compile(r"(^|\n)Question:")


@dataclass(frozen=True)
class LocalTask:
    """Rows of one layout; `before` says that choices stand before the text that is scored."""

    name: str
    rows: tuple[dict[str, Any], ...]
    before: bool


def is_local(name: str) -> bool:
    """Whether what was typed is a file or a folder, rather than the name of a task."""
    return "/" in name or name.endswith(".jsonl") or typed_path(name, "--tasks").is_dir()


def local_tasks(name: str) -> list[LocalTask]:
    """The task of a .jsonl file, or those of all such files in a folder, by the names of the files.

    Raises:
        SecateurError: there is none, or a line that is no question; the message has file and line.
    """
    place = typed_path(name, "--tasks")
    files = sorted(place.glob("[!.]*.jsonl")) if place.is_dir() else [place]
    if not files:
        raise SecateurError(f"{place} has no .jsonl file with a task in it (--tasks).")
    return [_task(file) for file in files]


def _task(file: Path) -> LocalTask:
    if not file.is_file() or file.suffix != ".jsonl":
        raise SecateurError(
            f"No such tasks: {file}.\n"
            "Type names (--tasks boolq,piqa), a .jsonl file, or a folder of such files."
        )
    rows = list(_rows(file))
    if len(rows) < 2:
        raise SecateurError(f"{file} has {len(rows)} questions; a standard error needs two.")
    before = _BEFORE[0] in rows[0][1]
    texts = _BEFORE if before else _CHOICES
    for line, row in rows:
        wrong = _wrong(row, *texts)
        if wrong:
            raise SecateurError(
                f"{file}, line {line}: {wrong}.\nExpected: "
                '{"query": "...", "choices": ["...", "..."], "gold": 0}, or context_options,'
                " continuation and gold."
            )
    return LocalTask(file.stem, tuple(_prompted(row) for _, row in rows), before)


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows with the numbers of their lines; empty lines are none."""
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if line.strip():
            yield number, _row(file, number, line)


def _row(file: Path, number: int, line: str) -> dict[str, Any]:
    def unsound(why: str) -> SecateurError:
        return SecateurError(f"{file}, line {number}: not JSON ({why.removeprefix('line 1, ')}).")

    row = parse_json(line, unsound)
    if not isinstance(row, dict):
        raise SecateurError(f"{file}, line {number}: not an object with a query and choices.")
    return row


def _wrong(row: dict[str, Any], choices: str, text: str) -> str:
    """What is wrong with a row; empty if nothing is."""
    missing = [name for name in (text, choices, "gold") if name not in row]
    if missing:
        return f"no {missing[0]!r}"
    options, gold = row[choices], row["gold"]
    sound = isinstance(options, list) and len(options) > 1
    if not sound or not all(isinstance(one, str) and one.strip() for one in options):
        return f"{choices!r} is not a list of two texts or more"
    if not isinstance(row[text], str) or not row[text].strip():
        return f"{text!r} is not a text"
    if type(gold) is not int or not 0 <= gold < len(options):
        return f"'gold' is not the number of a choice, from 0 to {len(options) - 1}"
    return ""


def _prompted(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the query as the model reads it, and nothing that no task asks for."""
    if _BEFORE[0] in row:
        return {name: row[name] for name in (*_BEFORE, "gold")}
    return {"query": _asked(row["query"]), "choices": row["choices"], "gold": row["gold"]}


def _asked(query: str) -> str:
    parts: Sequence[str] = _QUESTION.split(query)
    if len(parts) == 1 or "Answer:" in parts[-1]:
        return query
    return f"{query.rstrip()}\nAnswer:"
