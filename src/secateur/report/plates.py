"""Tensors as rectangles with slices: what the units of one axis own, ready to be drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..structure import Axis, Member, Structure
from .structure_table import UNITS, Shapes, bias_of, by_tensor, percent, short_name, word

MOST = 8  # units that are all drawn; of more, the first ones and the last
FAN = 110.0  # pixels of the side of a matrix that units do not divide
STRIP, GAP, _THIN = 7.0, 18.0, 4.0  # a bias, units left out, the thinnest slice
_TIMES = " \N{MULTIPLICATION SIGN} "


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a plate's divided side: a unit's slice, units left out, or what no unit owns."""

    start: int
    end: int
    unit: int | None
    left_out: bool = False

    def length(self, scale: float) -> float:
        """In pixels."""
        if self.left_out:
            return GAP
        real = (self.end - self.start) * scale
        return max(real, _THIN) if self.unit is not None else min(max(real, _THIN), 80.0)


@dataclass(frozen=True, slots=True)
class Plate:
    """One tensor, of one expert where there are several.

    `rows` says that units are rows, one above the other; else columns. `flat` tensors have one
    dimension, `biased` ones a bias with the same units beside them. `copies` counts the experts.
    """

    name: str
    size: tuple[int, ...]
    rows: bool
    flat: bool
    biased: bool
    copies: int
    members: tuple[Member, ...]
    pieces: tuple[Piece, ...]
    word: tuple[str, str]

    @property
    def producer(self) -> bool:
        """Whether it writes the units."""
        return self.members[0].role == "producer"

    @property
    def described(self) -> str:
        """Its size, whether it is stored the other way round than a linear, and how often."""
        size = _TIMES.join(f"{n:,}" for n in self.size)
        turned = not self.flat and self.rows != self.producer
        times = f",{_TIMES}{self.copies} experts" if self.copies > 1 else ""
        return f"{size}{', transposed' * turned}{times}"

    def width_of(self, unit: int) -> int:
        """How many indices a unit owns."""
        return sum(p.end - p.start for p in self.pieces if p.unit == unit)

    def length(self, scale: float) -> float:
        """The divided side in pixels."""
        return sum(piece.length(scale) for piece in self.pieces)

    def box(self, scale: float) -> tuple[float, float]:
        """(width, height) in pixels, biases beside it not counted."""
        fan = 2 * STRIP if self.flat else fan_of(self.size[1 if self.rows else 0])
        length = self.length(scale)
        return (fan, length) if self.rows else (length, fan)


def fan_of(size: int) -> float:
    """The undivided side in pixels: all alike but for that of small tensors (norms of a head)."""
    return FAN if size >= 32 else max(2 * STRIP, FAN * size / 48)


def drawn_units(count: int) -> list[int]:
    """The units that are drawn, of `count`."""
    return list(range(count)) if count <= MOST else [*range(MOST - 2), count - 1]


def plates_of(axis: Axis, shapes: Shapes) -> list[Plate]:
    """The tensors that the units of `axis` own parts of, producers first."""
    units = axis.units // axis.groups if in_experts(axis) else axis.units
    tensors = by_tensor(axis.members)
    biased = {bias_of(members, axis.members) for members in tensors}
    return [
        _plate(members, units, shapes, members[0] in biased)
        for members in tensors
        if bias_of(members, axis.members) is None
    ]


def in_experts(axis: Axis) -> bool:
    """Whether the units are channels of several experts, whose tensors have a dimension more."""
    return len(axis.consumer.dims) > 1


def _plate(members: Sequence[Member], units: int, shapes: Shapes, biased: bool) -> Plate:
    one = members[0]
    shape = shapes[one.tensor]
    outside = len(one.dims) - 1
    size = shape[outside:]
    return Plate(
        name=short_name(one),
        size=size,
        rows=one.dim - outside == 0,
        flat=len(size) == 1,
        biased=biased,
        copies=shape[0] if outside else 1,
        members=tuple(members),
        pieces=tuple(_pieces(members, units, shape[one.dim])),
        word=(word(one, shapes, 1), word(one, shapes, 2)),
    )


def _pieces(members: Sequence[Member], units: int, size: int) -> list[Piece]:
    drawn = set(drawn_units(units))
    slices: list[Piece] = []
    for member in members:
        starts = member.blocks.indices(torch.arange(units))[:, 0].tolist()
        slices += [
            Piece(start, start + member.blocks.width, unit, left_out=unit not in drawn)
            for unit, start in enumerate(starts)
        ]
    pieces: list[Piece] = []
    for piece in [*sorted(slices, key=lambda piece: piece.start), Piece(size, size, None)]:
        last = pieces[-1].end if pieces else 0
        if piece.start > last:
            pieces.append(Piece(last, piece.start, None))
        if piece.left_out and pieces and pieces[-1].left_out:
            pieces[-1] = Piece(pieces[-1].start, piece.end, None, left_out=True)
        elif piece.end > piece.start:
            pieces.append(
                piece if not piece.left_out else Piece(piece.start, piece.end, None, True)
            )
    return pieces


def removal_sentence(axis: Axis, plates: Sequence[Plate], structure: Structure, unit: int) -> str:
    """Removing this KV group takes 16 rows of q_proj, 8 of k_proj ...: 2,304 parameters."""
    parts: list[str] = []
    last = ""
    for plate in plates:
        count = plate.width_of(unit)
        what = plate.word[0 if count == 1 else 1]
        bias = " with their biases" if plate.biased and count > 1 else " with its bias"
        kind = "" if what == last else f" {what}"
        parts.append(f"{count:,}{kind} of {plate.name}{bias if plate.biased else ''}")
        last = what
    several = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    where = f" in one of the {plates[-1].copies} experts" if in_experts(axis) else ""
    share = percent(axis.cost / structure.parameters)
    sentence = (
        f"Removing this {UNITS[axis.granularity]} takes {several}{where}: {axis.cost:,} parameters"
        f" ({share} of the model)."
    )
    if axis.groups > 1:
        each = "expert" if in_experts(axis) else "KV group"
        sentence += f" The same number has to go from each {each}."
    return sentence
