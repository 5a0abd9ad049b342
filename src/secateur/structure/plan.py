"""A plan says which units stay. It is data: print it, edit it, compare it, apply it again."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor

from ..errors import SecateurError
from ..parsing import parse_json
from .axis import Axis, Structure

T = TypeVar("T")

FORMAT = "secateur-plan-1"
# Of all axes together; the largest mixture of experts there is has 30 million channels.
_MOST_UNITS = 2**25


def format_ranges(indices: Iterable[int]) -> str:
    """Write ascending indices for people: `[0, 1, 2, 5]` becomes `"0-2,5"`."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def parse_ranges(text: str, *, what: str, size: int) -> tuple[int, ...]:
    """Read `"0-2,5"` as `(0, 1, 2, 5)`: ascending, each below `size`.

    Raises:
        SecateurError: not of that form, descending, repeated, or out of range.
    """
    indices: list[int] = []
    for part in text.replace(" ", "").split(",") if text.strip() else []:
        match = re.fullmatch(r"(\d{1,12})(?:-(\d{1,12}))?", part)
        if not match:
            raise SecateurError(f"{what}: {_short(part)} is not a number or a range like 4-29.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= size or (indices and first <= indices[-1]):
            raise SecateurError(
                f"{what}: {part!r} is out of range or order; expected ascending numbers"
                f" from 0 to {size - 1}, like 0-{size - 1}."
            )
        indices.extend(range(first, last + 1))
    return tuple(indices)


@dataclass(frozen=True)
class Plan:
    """Which units stay, for each axis by name; axes not named stay whole.

    `repair` and `calibration` are what applying the plan again needs; `settings` records how the
    plan came about and changes nothing. A plan that was read knows the `units` that each axis had.
    """

    keep: Mapping[str, tuple[int, ...]]
    architecture: str
    weights: str
    repair: str = "none"
    calibration: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict, compare=False)

    def kept(self, axis: Axis) -> tuple[int, ...]:
        """Units of `axis` that stay, ascending."""
        return self.keep.get(axis.name, tuple(range(axis.units)))

    def removed(self, axis: Axis) -> tuple[int, ...]:
        """Units of `axis` that go, ascending."""
        kept = set(self.kept(axis))
        return tuple(unit for unit in range(axis.units) if unit not in kept)

    def kept_tensor(self, axis: Axis) -> Int64[Tensor, " unit"]:
        """`kept` as a tensor of indices."""
        return torch.tensor(self.kept(axis), dtype=torch.int64)

    def removed_tensor(self, axis: Axis) -> Int64[Tensor, " unit"]:
        """`removed` as a tensor of indices."""
        return torch.tensor(self.removed(axis), dtype=torch.int64)

    def removed_cost(self, structure: Structure) -> int:
        """The costs of the removed units together, in parameters.

        Those leave (a bias added in repair is not set off), unless units of several granularities
        share some: `surgery.removed_parameters` counts each once.
        """
        return sum(len(self.removed(axis)) * axis.cost for axis in structure.axes)

    def check(self, structure: Structure) -> None:
        """Make sure that the plan can be applied to the model of `structure`.

        Raises:
            SecateurError: made for another architecture, an unknown axis, an axis left empty.
        """
        if self.architecture != structure.architecture:
            raise SecateurError(
                "The plan was made for a model of another architecture or size"
                f" ({self.architecture[:12]}, this model is {structure.architecture[:12]}).\n"
                "Make one for this model: secateur prune MODEL --ratio 0.2 --dry-run --out DIR"
            )
        for name, given in self.keep.items():
            units = _whole_numbers(name, given)
            axis = structure.by_name.get(name)
            if axis is None:
                raise SecateurError(f"The plan names {name!r}, which this model does not have.")
            if not units and axis.floor:
                raise SecateurError(
                    f"The plan keeps no unit of {name}: a layer without any loads in no engine.\n"
                    'Keep at least one, for example "keep": "0".'
                )
            _check_units(name, units, axis.units)
            per_group = axis.units // axis.groups
            counts = {sum(u // per_group == group for u in units) for group in range(axis.groups)}
            if len(counts) > 1 or min(counts) < axis.floor:
                raise SecateurError(
                    f"The plan keeps {min(counts)} to {max(counts)} units of each {per_group} of"
                    f" {name}; expected the same number of each, at least {axis.floor}."
                )

    def to_json(self, structure: Structure, removed: int | None = None) -> str:
        """The plan as JSON text: one line an axis, kept units as ranges.

        `removed` is the number of parameters that leave; by default the units' costs together.
        """
        removed = self.removed_cost(structure) if removed is None else removed
        head: dict[str, Any] = {
            "format": FORMAT,
            "architecture": self.architecture,
            "weights": self.weights,
            "prunable_parameters": structure.prunable,
            "removed_parameters": removed,
            "repair": self.repair,
            "calibration": dict(self.calibration),
            "settings": dict(self.settings),
        }
        axes = ",\n".join(
            "  "
            + json.dumps(
                {
                    "name": axis.name,
                    "units": axis.units,
                    "kept": len(self.kept(axis)),
                    "keep": format_ranges(self.kept(axis)),
                }
            )
            for axis in structure.axes
        )
        body = json.dumps(head, indent=1)
        return f'{body[:-2]},\n "axes": [\n{axes}\n ]\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read what `to_json` wrote, by hand edited or not (only `keep` counts, not `kept`).

        Raises:
            SecateurError: not a plan, one of another version, or ranges that make no sense.
        """
        return cls.from_raw(
            parse_json(text, lambda why: SecateurError(f"Not a plan: it is not JSON ({why})."))
        )

    @classmethod
    def from_raw(cls, raw: Any) -> "Plan":
        """Read the value of the JSON text that `to_json` wrote.

        Raises:
            SecateurError: as `from_json`.
        """
        if not isinstance(raw, Mapping) or raw.get("format") != FORMAT:
            raise SecateurError(
                f"Not a plan of format {FORMAT!r}: plan.json of a pruned folder is."
            )
        axes = _part(raw, "axes", list)
        keep: dict[str, tuple[int, ...]] = {}
        sizes: dict[str, int] = {}
        for axis in axes:
            name = _part(axis, "name", str)
            if name in keep:
                raise SecateurError(f"The plan names {name} twice; remove one of the two lines.")
            units, text = _part(axis, "units", int, name), _part(axis, "keep", str, name)
            if units < 0 or units + sum(sizes.values()) > _MOST_UNITS:
                raise SecateurError(f"The plan gives {name} {units:,} units; no model has so many.")
            keep[name] = parse_ranges(text, what=name, size=units)
            sizes[name] = units
        return cls(
            keep=keep,
            architecture=_part(raw, "architecture", str),
            weights=_part(raw, "weights", str),
            repair=_part(raw, "repair", str),
            calibration=_part(raw, "calibration", dict),
            settings=_part(raw, "settings", dict),
            units=sizes,
        )


def _whole_numbers(name: str, units: Any) -> tuple[int, ...]:
    """The units that a plan keeps, if they are whole numbers: programs make plans, too."""
    sound = isinstance(units, tuple) and all(type(unit) is int for unit in units)
    if not sound:
        raise SecateurError(
            f"The plan keeps {_short(units)} of {name}; expected a tuple of whole numbers, (0, 2)."
        )
    return units


def _check_units(name: str, units: tuple[int, ...], size: int) -> None:
    if units and max(units) >= size:
        raise SecateurError(f"The plan keeps unit {max(units)} of {name}, which has {size}.")
    if any(unit < 0 for unit in units) or list(units) != sorted(set(units)):
        raise SecateurError(
            f"The plan keeps {_short(units)} of {name}; expected ascending numbers from 0 to"
            f" {size - 1}."
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _part(raw: Any, key: str, kind: type[T], where: str = "it") -> T:
    """`raw[key]`, if it is there and a `kind`."""
    value = raw.get(key) if isinstance(raw, Mapping) else None
    if not isinstance(value, kind):
        names = {str: 'a text like "0-3,7"', int: "a number", list: "a list", dict: "an object"}
        raise SecateurError(
            f"Not a whole plan: {key!r} of {where} is missing or not {names[kind]}."
        )
    return value
