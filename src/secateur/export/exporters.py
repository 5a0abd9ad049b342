"""The registry of exporters: by the name of a format, what writes a `Form` in it."""

from collections.abc import Callable
from pathlib import Path

from ..registry import Function, entered
from .form import Form

# Writes weights and config into a folder, file by file; returns the bytes of the weights.
Exporter = Callable[[Path, Form], int]

EXPORTERS: dict[str, Exporter] = {}


def exporter(name: str) -> Callable[[Function], Function]:
    """Register the decorated function as what writes the format `name`.

    The folder that it gets is a temporary one: what it leaves there when it fails goes with it.
    Files that belong to the model (tokenizer, licence), plan, settings and card are not its.
    """
    return entered("format", name, EXPORTERS, lambda function, _: function)
