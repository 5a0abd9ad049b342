"""Settings in and out as TOML."""

from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel

from ..errors import SecateurError
from ..parsing import parse_toml, read_text


def to_toml(config: BaseModel, record: dict[str, Any]) -> str:
    """The settings as TOML, followed by tables of `record` that a later run does not read."""
    settings = {key: value for key, value in config.model_dump().items() if value is not None}
    text = tomli_w.dumps({"settings": settings, **record})
    return text.encode("utf-8", "replace").decode()  # a path may hold bytes that are no UTF-8


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a `run.toml` (its other tables are the record of that run).

    Raises:
        SecateurError: no such file, not TOML, no table [settings].
    """
    record = read_record(path)
    settings = record.get("settings")
    if not isinstance(settings, dict):
        raise SecateurError(f"{path} has no table [settings]: a pruned folder's run.toml has one.")
    if "versions" in record:  # a run's own record: of one that knew no --bos, this is what it did
        return {"bos": "document", **settings}
    return settings


def read_record(path: Path) -> dict[str, Any]:
    """All tables of a `run.toml`.

    Raises:
        SecateurError: no such file, or not TOML.
    """
    return parse_toml(read_text(path), lambda why: SecateurError(f"{path} is not TOML: {why}."))
