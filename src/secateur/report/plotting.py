"""Plots in Vega-Lite's words: what all of them have in common, and the marks that they are made of.

Colours are names of the page's own variables, so that a plot follows light and dark by itself. The
layers of a model are a continuous axis: it can be zoomed (Ctrl and the wheel) and dragged.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]

COLOURS = 8
# The page's own: what is measured has to be what is shown.
FONT = 'system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif'
_HEIGHT = 260
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
_ZOOM = {
    "name": "zoom",
    "bind": "scales",
    "select": {
        "type": "interval",
        "encodings": ["x"],
        "zoom": "wheel![event.ctrlKey]",
        "translate": "[pointerdown[event.pointerType == 'mouse'], window:pointerup]"
        " > window:pointermove!",
    },
}
_CONFIG: Spec = {
    "background": "transparent",
    "font": FONT,
    "view": {"stroke": None},
    "range": {"category": [f"var(--c{n})" for n in range(1, COLOURS + 1)]},
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--ink)",
        "titleFontWeight": 500,
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "gridColor": "var(--line)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "labelOverlap": True,
    },
    "legend": {
        "orient": "top",
        "layout": {"top": {"anchor": "start", "bounds": "full"}},
        "direction": "vertical",
        "columns": 2,
        "title": None,
        "labelColor": "var(--ink)",
        "labelFontSize": 12,
        "labelLimit": 170,
        "symbolSize": 90,
        "symbolOpacity": 1,
    },
}


@dataclass(frozen=True)
class Plot:
    """A plot and the sentence that says what to see; `static` is a picture of it, SVG text."""

    name: str
    title: str
    sentence: str
    spec: Spec
    static: str = ""


def spec(layers: Sequence[Spec], *, zoom: bool = True, height: int = _HEIGHT) -> Spec:
    """Marks on one another, as wide as the page lets them be."""
    first, *rest = layers
    if zoom:
        first = {**first, "params": [_ZOOM]}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": height,
        "autosize": {"type": "fit", "contains": "padding", "resize": True},
        "config": _CONFIG,
        "layer": [first, *rest],
    }


def layer(rows: Rows, mark: str | Spec, **encoding: Any) -> Spec:
    """One kind of mark for each of `rows`."""
    return {"data": {"values": list(rows)}, "mark": mark, "encoding": encoding}


def number(field: str, title: str | None = None, **scale: Any) -> Spec:
    """A quantity on an axis; without a title, the axis of another."""
    out: Spec = {"field": field, "type": "quantitative"}
    if title is not None:
        out["title"] = title
    if axis := scale.pop("axis", None):
        out["axis"] = axis
    if "domain" in scale:
        scale["nice"] = False
    if scale:
        out["scale"] = scale
    return out


def log_ticks(values: Iterable[float | None]) -> list[float]:
    """Where a logarithmic axis of these values has its marks: decades, or 1, 2, 5 in them."""
    sound = [value for value in values if value is not None and value > 0]
    if not sound:
        return []
    low, high = (math.log10(end(sound)) for end in (min, max))
    decades = range(math.floor(low) - 1, math.ceil(high) + 2)
    steps = (1.0,) if high - low > 3 else (1.0, 2.0, 5.0)
    marks = [step * 10.0**decade for decade in decades for step in steps]
    inside = [mark for mark in marks if low - 0.35 <= math.log10(mark) <= high + 0.35]
    return inside[:: -(-len(inside) // 8)]


def magnitude(field: str, title: str, values: Iterable[float | None], **scale: Any) -> Spec:
    """A quantity on a logarithmic axis; on an even one where some `values` are not above 0."""
    values = list(values)
    sound = [value for value in values if value is not None]
    if not all(value > 0 for value in sound):
        return number(field, title, axis={"format": "~g", "tickCount": 5}, **scale)
    axis = {"values": log_ticks(sound), "format": "~g"}
    if sound and "domain" not in scale:
        scale["domain"] = [min(sound) / 1.15, max(sound) * 1.15]
    return number(field, f"{title} (log scale)", axis=axis, type="log", **scale)


def layers_axis(field: str, count: int) -> Spec:
    """The decoder layers, as whole numbers."""
    step = max(1, -(-count // 12))
    return number(
        field,
        "decoder layer, from 0",
        domain=[-0.6, count - 0.4],
        axis={"values": list(range(0, count, step)), "format": "d", "grid": False},
    )


def colour(field: str, order: Sequence[str], range_: Sequence[str] | None = None) -> Spec:
    """A colour for each name, in this order."""
    scale: Spec = {"domain": list(order)}
    if range_ is not None:
        scale["range"] = list(range_)
    return {"field": field, "type": "nominal", "scale": scale}


def shapes(field: str, order: Sequence[str]) -> Spec:
    """A shape for each name, in this order, where colours alone would repeat."""
    return {
        "field": field,
        "type": "nominal",
        "scale": {"domain": list(order), "range": list(_SHAPES)},
    }


def told(*fields: tuple[str, str] | tuple[str, str, str]) -> list[Spec]:
    """What a pointer is told: (field, title) as it stands, or (field, title, format)."""
    return [
        {"field": field, "title": title, "type": "quantitative" if more else "nominal"}
        | ({"format": more[0]} if more else {})
        for field, title, *more in fields
    ]


def beside(index: int, count: int, width: float = 0.8) -> tuple[float, float]:
    """The left and the right end of one of several bars that stand around a whole number."""
    each = width / count
    return index * each - width / 2 + 0.02, (index + 1) * each - width / 2 - 0.02
