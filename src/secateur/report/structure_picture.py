"""The coupled structures of one layer as a picture: what would be removed together.

Everything drawn comes from the axes' members and the tensors' shapes. A matrix is a `Plate`: its
units are slices along one side, to scale; where there are many, the middle ones are left out.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..structure import Axis, Structure
from .plates import (
    FAN,
    GAP,
    MOST,
    STRIP,
    Piece,
    Plate,
    drawn_units,
    fan_of,
    in_experts,
    plates_of,
    removal_sentence,
)
from .structure_table import UNITS, Shapes
from .svg import Drawing, Point, through

_LENGTH = 300.0  # about the most pixels that the divided sides of a stack of matrices take
_WIDE = 400.0  # the same where they are columns
_BOX, _BOX_WIDTH, _PRODUCERS_X, _LABEL = 25.0, 128.0, 150.0, 38.0
_TO = "\N{EN DASH}"

_INK, _SOFT, _LINE = "#1c2420", "#5a6661", "#8a9691"
_HIGH, _HIGH_INK = "#d9480f", "#a33508"
_TINTS = ("#d5e6dc", "#b9d5c5")
_SHARED = "#e6e6e3"


@dataclass(frozen=True, slots=True)
class Placed:
    """A plate with the place of its upper left corner."""

    plate: Plate
    x: float
    y: float
    scale: float

    @property
    def right(self) -> float:
        """Right edge, a bias included."""
        strip = STRIP + 3 if self.plate.biased and self.plate.rows else 0
        return self.x + self.plate.box(self.scale)[0] + strip

    @property
    def bottom(self) -> float:
        """Lower edge, a bias included."""
        strip = STRIP + 3 if self.plate.biased and not self.plate.rows else 0
        return self.y + self.plate.box(self.scale)[1] + strip

    def spans(self) -> list[tuple[Piece, float, float]]:
        """Each piece with where it begins and ends along the divided side."""
        place = self.y if self.plate.rows else self.x
        spans = []
        for piece in self.plate.pieces:
            spans.append((piece, place, place + piece.length(self.scale)))
            place = spans[-1][2]
        return spans


@dataclass(frozen=True, slots=True)
class Band:
    """The flow of one axis: stream, producers, units, consumers, stream.

    `boxes` are the upper edges of the units' boxes; the result is added at `least_plus_x` or on.
    """

    axis: Axis
    producers: tuple[Placed, ...]
    boxes: Mapping[int, float]
    boxes_x: float
    consumers: tuple[Placed, ...]
    least_plus_x: float = 0.0

    @property
    def plus_x(self) -> float:
        """Where the result is added to the stream: right of everything written there."""
        words = [
            place[0] + 8.2 * len(text)
            for placed in self.consumers
            for text, place, anchor in callouts(placed, self.strong)
            if anchor == "start"
        ]
        names = [placed.x + 7.2 * len(placed.plate.described) for placed in self.consumers]
        edges = [placed.right for placed in self.consumers]
        heading = self.consumers[0].x + 145
        return max(self.least_plus_x, max(*words, *names, *edges, heading) + 30)

    @property
    def right(self) -> float:
        """Right edge."""
        return self.plus_x + 70

    @property
    def bottom(self) -> float:
        """Lower edge of what is drawn."""
        named = [placed.bottom + (0 if placed.plate.rows else 44) for placed in self.consumers]
        return max(
            max(self.boxes.values()) + _BOX, *named, *(p.bottom + 24 for p in self.producers)
        )

    @property
    def strong(self) -> int:
        """The unit that stands out."""
        return 1 if len(self.boxes) > 1 else 0


def band_of(axis: Axis, shapes: Shapes, top: float, boxes_x: float = 0.0) -> Band:
    """Place everything that belongs to `axis` below `top`, the units' boxes at `boxes_x` or on."""
    plates = plates_of(axis, shapes)
    makers = [plate for plate in plates if plate.producer]
    makers.sort(key=lambda plate: plate.flat or fan_of(plate.size[1 if plate.rows else 0]) < FAN)
    readers = [plate for plate in plates if not plate.producer]
    scale = _scale(makers)
    producers: list[Placed] = []
    y = top
    for plate in makers:
        y += _LABEL + 10 * (plate.copies > 1)
        producers.append(Placed(plate, _PRODUCERS_X, y, scale))
        y = producers[-1].bottom + 12
    stacked = [placed for placed in producers if not placed.plate.rows]
    units = drawn_units(axis.units // axis.groups if in_experts(axis) else axis.units)
    step = _BOX + 5
    middle = (top + _LABEL + y) / 2
    first = max(top + _LABEL, middle - len(units) * step / 2)
    if stacked:
        slices = max(len(placed.plate.members) for placed in stacked)
        first = max(first, max(placed.bottom for placed in stacked) + 4 + 16 * slices)
    boxes = {
        unit: first + step * n + (GAP if len(units) == MOST - 1 and n == len(units) - 1 else 0)
        for n, unit in enumerate(units)
    }
    boxes_x = max(boxes_x, *(placed.right + 150 for placed in producers))
    consumers: list[Placed] = []
    strong = boxes[units[min(1, len(units) - 1)]] + _BOX / 2
    for plate in readers:
        height = plate.box(scale)[1]
        least = top + _LABEL + 10 * (plate.copies > 1)
        y = max(least, middle - height / 2) if plate.rows else strong + 62
        consumers.append(Placed(plate, boxes_x + _BOX_WIDTH + 110, y, scale))
    return Band(axis, tuple(producers), boxes, boxes_x, tuple(consumers))


def _scale(plates: Sequence[Plate]) -> float:
    """Pixels an index, such that a stack of rows (or the longest columns) is not too long."""
    low, high = 0.0, 46 / max(_widest(plates))
    for _ in range(40):
        scale = (low + high) / 2
        stack = sum(plate.length(scale) for plate in plates if plate.rows)
        longest = max((plate.length(scale) for plate in plates if not plate.rows), default=0)
        low, high = (scale, high) if stack <= _LENGTH and longest <= _WIDE else (low, scale)
    return low


def _widest(plates: Sequence[Plate]) -> Iterator[int]:
    for plate in plates:
        yield from (member.blocks.width for member in plate.members)


def structure_picture(structure: Structure, shapes: Shapes, layer: int) -> str:
    """The default units of one layer as SVG text; one unit of each kind stands out."""
    axes = [axis for axis in structure.select().axes if axis.layer == layer]
    drawing = Drawing()
    title = f"{structure.family}, layer {layer}: what is removed together"
    drawing.text(40, 50, title, size=26, weight="bold")
    drawing.text(40, 78, _INTRODUCTION, size=15, fill=_SOFT)
    boxes_x = max(band_of(axis, shapes, 0).boxes_x for axis in axes)
    plus_x = max(910.0, *(band_of(axis, shapes, 0, boxes_x).plus_x for axis in axes))
    y, right = 108.0, 0.0
    for axis in axes:
        rail = y + 78
        band = replace(band_of(axis, shapes, rail + 40, boxes_x), least_plus_x=plus_x)
        right = band.right
        _draw_title(drawing, axis, y, right)
        _draw_stream(drawing, band, rail)
        _draw_flow(drawing, band, rail + 32)
        sentence = removal_sentence(axis, plates_of(axis, shapes), structure, band.strong)
        y = _draw_sentence(drawing, sentence, band.bottom + 40, right)
    for line in textwrap.wrap(_footnote(shapes, axes), int(right / 6.6)):
        drawing.text(40, y, line, size=13, fill=_SOFT)
        y += 19
    return drawing.render(right + 30, y + 10, title)


_INTRODUCTION = (
    "Each rectangle is a weight matrix, each band in it the slice of one unit. The marked slices"
    " are of one unit: they go together."
)


def _draw_title(drawing: Drawing, axis: Axis, y: float, right: float) -> None:
    drawing.path(through(((40, y), (right, y))), stroke="#dde3e0", stroke_width=1)
    head = _BLOCKS.get(axis.kind, axis.kind)
    drawing.text(40, y + 34, head, size=19, weight="bold", more=_count(axis))


def _draw_flow(drawing: Drawing, band: Band, y: float) -> None:
    """Headings at `y`, then matrices, units and what leads from one to the other."""
    _draw_headings(drawing, band, y)
    for placed in (*band.producers, *band.consumers):
        _draw_plate(drawing, placed, band.strong)
    for placed in (*band.producers, *band.consumers):
        _draw_ribbons(drawing, placed, band)
    _draw_boxes(drawing, band)
    for placed in (*band.producers, *band.consumers):
        for words, place, anchor in callouts(placed, band.strong):
            drawing.text(
                *place, words, size=13, fill=_HIGH_INK, weight="bold", anchor=anchor, halo=True
            )


def _draw_sentence(drawing: Drawing, sentence: str, y: float, right: float) -> float:
    """What the marked slices are, from baseline `y` on; give where it ends."""
    lines = textwrap.wrap(sentence, int((right - 110) / 8.8))
    drawing.rect(40, y - 24, right - 40, 21 * len(lines) + 15, rx=6, fill="#fdf0ea")
    drawing.rect(54, y - 12, 14, 14, rx=2, fill=_HIGH)
    for line in lines:
        drawing.text(80, y, line, size=16)
        y += 21
    return y + 22


_BLOCKS = {"attention": "Attention", "mlp": "MLP"}


def _count(axis: Axis) -> str:
    """How many units there are, in words."""
    noun = UNITS[axis.granularity]
    if in_experts(axis):
        return (
            f"{axis.units // axis.groups:,} {noun}s in each of {axis.groups} experts; one expert"
            " is drawn"
        )
    each = ""
    if axis.granularity == "kv_group":
        each = ", each one query head with its KV head"
    if axis.per_unit > 1:
        each = f", each of {axis.per_unit} query heads that share one KV head"
    return f"{axis.units:,} {noun}{'s' * (axis.units != 1)}{each}"


def _draw_stream(drawing: Drawing, band: Band, rail: float) -> None:
    """The residual stream, what branches off and what comes back."""
    reader = band.consumers[0]
    width = reader.plate.size[0 if not reader.plate.rows else 1]
    drawing.arrow((40, rail), (band.right, rail), stroke=_LINE, stroke_width=3)
    drawing.text(40, rail - 9, f"residual stream, {width:,} channels", size=13, fill=_SOFT)
    ends = [
        placed.y + placed.plate.box(placed.scale)[1] / 2
        for placed in band.producers
        if not placed.plate.flat and width in placed.plate.size
    ]
    x = 92.0
    drawing.add("circle", cx=x, cy=rail, r=4.5, fill=_LINE)
    for end in ends:
        drawing.arrow((x, rail), (x, end), (_PRODUCERS_X - 4, end), stroke=_LINE, stroke_width=1.5)
    for placed in band.consumers:
        middle = placed.y + placed.plate.box(placed.scale)[1] / 2
        drawing.arrow(
            (placed.right + 4, middle), (band.plus_x, middle), (band.plus_x, rail + 13),
            stroke=_LINE, stroke_width=1.5,
        )  # fmt: skip
    drawing.add("circle", cx=band.plus_x, cy=rail, r=11, fill="#ffffff", stroke=_LINE,
                stroke_width=1.5)  # fmt: skip
    drawing.path(
        through(((band.plus_x - 6, rail), (band.plus_x + 6, rail)))
        + through(((band.plus_x, rail - 6), (band.plus_x, rail + 6))),
        stroke=_INK,
        stroke_width=1.5,
    )


def _draw_headings(drawing: Drawing, band: Band, y: float) -> None:
    for x, words in (
        (_PRODUCERS_X, "weights that write the units"),
        (band.boxes_x, "units"),
        (band.consumers[0].x, "weights that read them"),
    ):
        drawing.text(x, y, words, size=13, fill=_SOFT)


def _draw_plate(drawing: Drawing, placed: Placed, strong: int) -> None:
    plate, x, y = placed.plate, placed.x, placed.y
    width, height = plate.box(placed.scale)
    if plate.copies > 1:
        for shift in (10, 5):
            drawing.rect(x + shift, y - shift, width, height, fill="#ffffff", stroke=_LINE)
    for piece, start, end in placed.spans():
        sides = (
            [(x, start, width, end - start)] if plate.rows else [(start, y, end - start, height)]
        )
        if plate.biased:
            strip = (x + width + 3, start, STRIP, end - start)
            sides.append(strip if plate.rows else (start, y + height + 3, end - start, STRIP))
        for side in sides:
            _draw_piece(drawing, piece, side, strong, dots=side is sides[0], rows=plate.rows)
    for place in _seams(placed):
        line = ((x, place), (x + width, place)) if plate.rows else ((place, y), (place, y + height))
        drawing.path(through(line), stroke=_SOFT, stroke_width=1.2)
    drawing.rect(x, y, width, height, fill="none", stroke=_SOFT, stroke_width=1)
    below = not plate.producer and not plate.rows
    base = placed.bottom + 20 if below else y - 22 - 10 * (plate.copies > 1)
    drawing.text(x, base, plate.name + " + bias" * plate.biased, size=15, weight="bold")
    drawing.text(x, base + 15, plate.described, size=12.5, fill=_SOFT)


def _seams(placed: Placed) -> list[float]:
    """Where the units of a fused matrix begin anew."""
    return [
        start
        for piece, start, _ in placed.spans()[1:]
        if piece.unit == 0 or (piece.unit is None and not piece.left_out)
    ]


def _draw_piece(
    drawing: Drawing,
    piece: Piece,
    side: tuple[float, float, float, float],
    strong: int,
    *,
    dots: bool,
    rows: bool,
) -> None:
    if piece.left_out:
        x, y, width, height = side
        drawing.rect(*side, fill="#ffffff")
        for n in (-1, 0, 1) if dots else ():
            shift = n * 4.5
            centre = (x + width / 2, y + height / 2)
            drawing.add(
                "circle", r=1.4, fill=_SOFT,
                cx=centre[0] + (0 if rows else shift), cy=centre[1] + (shift if rows else 0),
            )  # fmt: skip
        return
    colour = _SHARED if piece.unit is None else _TINTS[piece.unit % 2]
    drawing.rect(*side, fill=_HIGH if piece.unit == strong else colour)


def _strong_spans(placed: Placed, strong: int) -> list[tuple[Piece, float, float]]:
    return [span for span in placed.spans() if span[0].unit == strong]


def _draw_ribbons(drawing: Drawing, placed: Placed, band: Band) -> None:
    """From the slices of the strong unit to its box, or from the box to them."""
    top = band.boxes[band.strong]
    rows, producer = placed.plate.rows, placed.plate.producer
    box_x = band.boxes_x if producer else band.boxes_x + _BOX_WIDTH
    for _, start, end in _strong_spans(placed, band.strong):
        if rows:
            x = placed.right if producer else placed.x
            one, other = (x, start), (x, end)
        else:
            y = placed.bottom if producer else placed.y
            one, other = (end, y), (start, y)
        commands = _ribbon(one, other, (box_x, top), (box_x, top + _BOX), rows)
        drawing.path(commands, fill=_HIGH, fill_opacity=0.2)


def _ribbon(one: Point, other: Point, box_one: Point, box_other: Point, rows: bool) -> str:
    """A closed shape between a slice's edge and a box's; `rows`: it meets the slice sidewards."""

    def bends(place: Point, box: Point) -> tuple[Point, Point]:
        middle = (place[0] + box[0]) / 2 if rows else place[0]
        return (middle, place[1] if rows else box[1]), (middle, box[1])

    def at(*points: Point) -> str:
        return " ".join(f"{x:.1f} {y:.1f}" for x, y in points)

    there, back = bends(one, box_one), bends(other, box_other)
    return f"M{at(one)} C{at(*there, box_one)} L{at(box_other)} C{at(*reversed(back), other)} Z"


def _draw_boxes(drawing: Drawing, band: Band) -> None:
    noun = UNITS[band.axis.granularity]
    places = sorted(band.boxes.items())
    for unit, y in places:
        strong = unit == band.strong
        drawing.rect(
            band.boxes_x, y, _BOX_WIDTH, _BOX, rx=4, fill=_HIGH if strong else _TINTS[unit % 2]
        )
        drawing.text(
            band.boxes_x + _BOX_WIDTH / 2, y + 17, f"{noun} {unit:,}", size=13.5, anchor="middle",
            fill="#ffffff" if strong else _INK, weight="bold" if strong else None,
        )  # fmt: skip
    if places[-1][0] != len(places) - 1:
        for n in (-1, 0, 1):
            drawing.add(
                "circle", cx=band.boxes_x + _BOX_WIDTH / 2, cy=places[-1][1] - 12 + n * 5, r=1.6,
                fill=_SOFT,
            )  # fmt: skip


def callouts(placed: Placed, strong: int) -> list[tuple[str, Point, str]]:
    """Which indices the strong unit owns, beside each of its slices: text, place, anchor."""
    plate = placed.plate
    behind = 10 * (plate.copies > 1)
    found = []
    for number, (piece, start, end) in enumerate(_strong_spans(placed, strong)):
        count = piece.end - piece.start
        which = f"{piece.start:,}" if count == 1 else f"{piece.start:,}{_TO}{piece.end - 1:,}"
        words = f"{plate.word[0 if count == 1 else 1]} {which}"
        middle = (start + end) / 2
        if plate.rows and plate.producer:
            place, anchor = (placed.right + 8 + behind, middle + 4.5), "start"
        elif plate.rows:
            place, anchor = (placed.x - 8, middle + 4.5), "end"
        elif plate.producer:
            place, anchor = (middle + 4, placed.bottom + 17 + 16 * number), "start"
        else:
            place, anchor = (end + 7, placed.y - 7 - behind), "start"
        found.append((words, place, anchor))
    return found


def _footnote(shapes: Shapes, axes: Sequence[Axis]) -> str:
    """What of the layer is in no unit, and how to read what is left out."""
    parts = []
    place = f"{axes[0].consumer.tensor.partition(f'.{axes[0].layer}.')[0]}.{axes[0].layer}."
    owned = {member.module for axis in axes for member in axis.members}
    rest = dict.fromkeys(
        name.removeprefix(place).split(".")[-2:][0]
        for name in shapes
        if name.startswith(place) and name.rpartition(".")[0] not in owned
    )
    if rest:
        parts.append(f"In no unit, and not cut: {', '.join(rest)}.")
    if any(axis.units // axis.groups > MOST for axis in axes):
        parts.append("Dots stand for the units between.")
    if any(p.unit is None and not p.left_out for axis in axes for plate in plates_of(axis, shapes)
           for p in plate.pieces):  # fmt: skip
        parts.append("What is grey is shared by all units and stays.")
    return " ".join(parts)
