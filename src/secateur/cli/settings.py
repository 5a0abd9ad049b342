"""Command-line options made from the settings: one place says what there is."""

import shlex
import types
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel

from ..data import EMBEDDED, HUB_SETS
from ..errors import SecateurError
from ..registry import choose

# What can be named where a text is wanted.
TEXTS = {
    "FILE": "A .txt, .jsonl, .json, .csv, .tsv or .parquet file (.gz or .zst too)",
    "FOLDER": "All such files in it",
    **{name: f"{one.path} on the hub" for name, one in HUB_SETS.items()},
    "OWNER/NAME": "A data set on the hub",
    "self": "What the model itself writes",
    EMBEDDED: "English text in this package",
}


def settings_options(
    model: type[BaseModel],
    only: Container[str] | None = None,
    without: Container[str] = (),
    default: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add one option for each setting in `model`, or in `only`, but for those `without`.

    An option not given is None; the setting `model` is an argument. `default` says what is taken
    where that is not the setting's own.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(model.model_fields.items()):
            if name != "model" and name not in without and (only is None or name in only):
                command = _option(name, field, default)(command)
        return command

    return add


def _option(
    name: str, field: Any, default: str | None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    about = field.description
    if default is not None:
        about = f"{about.split('; default')[0]}; default: {default}"
    elif field.default is not None and field.default is not False:
        about += f"  [{field.default}]"
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
        help=about,
    )


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
