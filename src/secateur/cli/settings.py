"""Command-line options made from the settings: one place says what there is."""

import textwrap
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click

from ..config import PruneConfig, read_toml
from ..errors import SecateurError

# Shown in this order and under the same names as the fields; `model` is an argument.
_FIELDS = {name: field for name, field in PruneConfig.model_fields.items() if name != "model"}


def settings_options(*without: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add one option for each setting but those `without`; an option not given is None."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(_FIELDS.items()):
            command = command if name in without else _option(name, field)(command)
        return command

    return add


def _option(name: str, field: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    default = "" if field.default is None else f"  [{field.default}]"
    flag = f"--{name.replace('_', '-')}"
    kind = _kind(field.annotation)
    if kind is bool:
        flag, kind = f"{flag}/--no-{name.replace('_', '-')}", None
    return click.option(
        flag,
        name,
        type=kind,
        default=None,
        metavar=None if kind is None else _metavar(field.annotation),
        help=f"{field.description}{default}",
    )


def listed(names: Iterable[str], indent: int = 13) -> str:
    """Names for a help text, in lines below one another."""
    lines = textwrap.wrap(", ".join(names), 78 - indent, break_on_hyphens=False)
    return f"\n{' ' * indent}".join(lines)


def given_settings(
    options: dict[str, Any], model: str | None, config: Path | None
) -> dict[str, Any]:
    """Settings from a `run.toml`, overridden by the options that were given.

    Raises:
        SecateurError: no model in either, or the file cannot be read.
    """
    settings = read_toml(config) if config else {}
    settings |= {name: options[name] for name in _FIELDS if options.get(name) is not None}
    if model is not None:
        settings["model"] = model
    if "model" not in settings:
        raise SecateurError(
            "No model given.\nType: secateur prune MODEL --method flap --ratio 0.2 --out small/"
        )
    return settings


def _kind(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is Literal:
        return str
    return annotation


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    return {int: "N", float: "X", str: "NAME"}.get(_kind(annotation), "VALUE")
