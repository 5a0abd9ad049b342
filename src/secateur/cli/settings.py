"""Command-line options made from the settings: one place says what there is."""

import shlex
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel

from ..config import READING
from ..errors import SecateurError
from ..registry import choose


def settings_options(
    model: type[BaseModel], *without: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add one option for each setting in `model` but those `without`, in their order.

    An option not given is None; the setting `model` is an argument.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        fields = sorted(model.model_fields.items(), key=lambda item: item[0] in READING)
        for name, field in reversed(fields):
            command = command if name in ("model", *without) else _option(name, field)(command)
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
    kind: type[BaseModel],
    options: Mapping[str, Any],
    model: str | None,
    recorded: Mapping[str, Any],
    example: str,
) -> dict[str, Any]:
    """The settings `recorded` in a file, overridden by the options that were given.

    Raises:
        SecateurError: one that `kind` does not know, or no model in either; `example` is a command
            that names one.
    """
    for name in recorded:  # --force and the like are no settings
        choose("setting", name, kind.model_fields)
    given = {name: value for name, value in options.items() if value is not None}
    settings = {**recorded, **given}
    if model is not None:
        settings["model"] = model
    if "model" not in settings:
        raise SecateurError(f"No model given.\nType: {example}")
    return settings


def refuse_code(file: Path | None, recorded: Mapping[str, Any], given: str | None) -> None:
    """A file of settings is data: what it names as code runs only if the user names it, too.

    Raises:
        SecateurError: it names a Python file, and --use does not.
    """
    named = recorded.get("use")
    if named is not None and given is None:
        raise SecateurError(
            f"{file} names the Python file {str(named)!r}, which is not run unasked.\n"
            f"If you trust it, add --use {shlex.quote(str(named))}"
        )


def texts_of_file(
    file: Path | None, recorded: Mapping[str, Any], options: Mapping[str, Any]
) -> Iterator[str]:
    """What to tell the user of texts on this machine, or models elsewhere, that a file names."""
    for name in ("calibration", "evaluate", "data", "teacher"):
        value = recorded.get(name)
        if not isinstance(value, str) or options.get(name) is not None:
            continue
        if is_there(value) != (name == "teacher"):
            yield f"{value}, which {file} names as {name}, is read"


def is_there(value: str) -> bool:
    """Whether a name is that of something on this machine."""
    try:
        return Path(value).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


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
