"""Texts that Python code hands over in the place of names, kept beside the settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data import GIVEN, check_source, is_given

_SETTINGS = ("calibration", "evaluate", "data")


def named(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings with a name for every text, and the texts that have none.

    Raises:
        SecateurError: a text is of a kind that cannot be read, or what reads it is not installed.
    """
    names, texts = dict(settings), {}
    for name in _SETTINGS:
        value = names.get(name)
        if is_given(value):
            names[name], texts[name] = GIVEN, value
        elif isinstance(value, Path):
            names[name] = str(value)
        check_source(names.get(name))
    return names, texts
