"""What a sweep runs over: models, methods, ratios, repairs, seeds; and settings of all its cells.

models = ["path/to/model"]
methods = ["flap", "magnitude"]
ratios = [0.2, 0.5]
seeds = [0, 1, 2]

[settings]
calibration = "text.txt"
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from ..arguments import shortened
from ..budgets import BUDGETS
from ..errors import SecateurError
from ..registry import choose
from .base import Settings
from .pruning import PruneConfig
from .toml import read_record

# Settings that would make all methods one, or that a run which writes no model has no use for.
NOT_COMPARED = (
    *("importance", "fusion", "format", "prompts"),
    *(name for name in BUDGETS if name != "ratio"),
    *("at_context", "at_batch"),
)
# By what each setting is called where there are several.
MANY = {
    "model": "models",
    "method": "methods",
    "ratio": "ratios",
    "repair": "repairs",
    "seed": "seeds",
}
_LIKE = {
    "models": '["path/to/model"]',
    "methods": '["flap", "magnitude"]',
    "ratios": "[0.2, 0.5]",
    "repairs": '["none", "refit"]',
    "seeds": "[0, 1, 2]",
}
_TABLE = 'Type: [settings] in a line of its own, and below it calibration = "text.txt"'
SHARED = tuple(
    name for name in PruneConfig.model_fields if name not in NOT_COMPARED and name not in MANY
)


class SweepConfig(Settings):
    """Every model with every method, ratio, repair and seed; `settings` are those of all."""

    models: Annotated[list[str], Field(min_length=1)]
    methods: Annotated[list[str], Field(min_length=1)]
    ratios: Annotated[list[float], Field(min_length=1)]
    # without any: each method's own
    repairs: Annotated[list[str], Field(min_length=1, default_factory=list)]
    seeds: Annotated[list[int], Field(min_length=1, default_factory=lambda: [0])]
    settings: Annotated[dict[str, Any], Field(default_factory=dict)]


def read_sweep(path: Path) -> SweepConfig:
    """The sweep in a sweep.toml.

    Raises:
        SecateurError: no such file, not TOML, or as `make_sweep`.
    """
    try:
        return make_sweep(read_record(path))
    except SecateurError as error:
        named = str(path) in str(error)
        raise error if named else SecateurError(f"{path}: {error}") from error


def make_sweep(raw: Mapping[str, Any]) -> SweepConfig:
    """Check what a sweep runs over; its settings are checked with each cell.

    Raises:
        SecateurError: an unknown key, a list that is empty or names something twice, another type.
    """
    for name in raw:
        _check_key(name)
    try:
        found = SweepConfig(**raw)
    except ValidationError as error:
        raise SecateurError(_explained(error)) from error
    for name in _LIKE:
        values = getattr(found, name)
        twice = [one for place, one in enumerate(values) if one in values[:place]]
        if twice:
            raise SecateurError(
                f"{name} names {shortened(twice[0])} twice.\nTake one of the two out."
            )
    for name in found.settings:
        _check_setting(name)
    return found


def _check_key(name: str) -> None:
    if name in MANY:
        raise SecateurError(
            f"A sweep takes {MANY[name]}, a list, not {name}.\nType: {MANY[name]} ="
            f" {_LIKE[MANY[name]]}"
        )
    if name in SHARED:
        raise SecateurError(
            f"{name} is a setting of all runs.\nMove it below a line that says [settings]"
        )
    choose("key", name, SweepConfig.model_fields)


def _check_setting(name: str) -> None:
    if name in MANY:
        raise SecateurError(
            f"[settings] has {name}, of which a sweep takes several.\nType above [settings]:"
            f" {MANY[name]} = {_LIKE[MANY[name]]}"
        )
    if name in NOT_COMPARED:
        raise SecateurError(
            f"[settings] has {name}, which is for prune: a sweep compares methods at ratios, and"
            " writes no model.\nTake it out."
        )
    choose("setting", name, dict.fromkeys(SHARED))


def _explained(error: ValidationError) -> str:
    """The first of pydantic's complaints, and what would do."""
    first = error.errors()[0]
    name, *inside = map(str, first["loc"])
    example = (
        f"Type: {name} = {_LIKE[name]}"
        if name in _LIKE
        else 'Type: [settings], and below it calibration = "text.txt"'
    )
    if first["type"] == "missing":
        return f"{name} is missing.\n{example}"
    if first["type"] == "too_short":
        more = ", or leave it out" if name in ("repairs", "seeds") else ""
        return f"{name} is an empty list.\n{example}{more}"
    what = f"{name}, entry {int(inside[0]) + 1}:" if inside and inside[0].isdigit() else name
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, SecateurError):
        return f"{cause}"
    return f"{what} {shortened(first['input'])} will not do: {first['msg']}.\n{example}"
