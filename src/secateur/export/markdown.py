"""Names in Markdown: shown as they are, whatever they hold, and without the place on a machine."""

import html
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..models import hub_name

_MARKS = re.compile(r"([\\`*\[\]|~])")


def inline(text: object) -> str:
    """`text` on one line, with no meaning in Markdown or HTML."""
    return _MARKS.sub(r"\\\1", html.escape(one_line(text), quote=False))


def one_line(text: object) -> str:
    """`text` on one line, without what cannot be seen."""
    line = " ".join(str(text).split())
    return "".join(letter for letter in line if letter.isprintable())


def row(cells: Iterable[object]) -> str:
    """One row of a table."""
    return f"| {' | '.join(inline(cell) for cell in cells)} |"


def without_place(value: Any) -> Any:
    """A path of this machine as the name of what lies there; everything else as it is."""
    if not isinstance(value, str) or not _is_path(value):
        return value
    try:
        path = Path(value).expanduser()
        return hub_name(path) or (path.name if path.name not in ("", "..") else path.resolve().name)
    except (OSError, RuntimeError, ValueError):  # a loop of links, ~nobody
        return Path(value).name


def without_places(text: str, settings: Mapping[str, Any]) -> str:
    """`text` with the paths among `settings` shortened to names."""
    paths = (value for value in settings.values() if isinstance(value, str) and _is_path(value))
    for path in sorted(paths, key=len, reverse=True):
        text = text.replace(path, str(without_place(path)))
    return text


def _is_path(value: str) -> bool:
    """Whether this is a place on this machine, and no name on the hub (or of a method)."""
    if value.startswith(("/", "./", "../", "~", ".\\")) or value in (".", ".."):
        return True
    try:
        return ("/" in value or "\\" in value) and Path(value).exists()
    except (OSError, ValueError):
        return False
