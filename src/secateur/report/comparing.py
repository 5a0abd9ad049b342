"""What a comparison of methods says: who won at each ratio, and the plots of all of them."""

import math
from collections.abc import Sequence
from typing import Any

from .comparison import Trial, chart
from .plots import blend_plot, layers_in, lines_plot, share_removed
from .plotting import Plot, colour, layer, magnitude, number, spec, told
from .value import Report, Row

_FAIR, _TIED, _EVEN = 0.9, 1.02, 0.99
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")


def label(row: Row) -> str:
    """Method and repair."""
    return row.method if row.repair in ("", "none") else f"{row.method} + {row.repair}"


def labels(rows: Sequence[Row]) -> list[str]:
    """Those of all rows, once each."""
    return list(dict.fromkeys(map(label, rows)))


def ratios(report: Report) -> list[float]:
    """The ratios that were asked for, in order."""
    return list(dict.fromkeys(row.ratio for row in report.rows))


def winner(rows: Sequence[Row]) -> Row | None:
    """The row whose loss rose least for what it removed, of those that removed about as much.

    That is log(perplexity / dense) over the square of the share removed, of the rows with nine
    tenths of the most: units are whole, so that no two remove the same, and who removed less should
    not win by that. Losses rise with the share by a power between 1 and 2.
    """
    most = max((row.removed for row in rows), default=0.0)
    fair = [row for row in rows if row.removed >= _FAIR * most and row.perplexity]
    return min(fair, key=_rise, default=None)


def near_ties(rows: Sequence[Row]) -> list[Row]:
    """The rows that are no worse than the winner by more than a fiftieth of perplexity.

    One seed says nothing of so little.
    """
    best = winner(rows)
    if best is None or best.perplexity[0].after is None:
        return []
    most = _TIED * best.perplexity[0].after
    return [
        row for row in rows
        if row is not best and row.removed >= _EVEN * best.removed
        and row.perplexity and row.perplexity[0].after is not None
        and row.perplexity[0].after <= most
    ]  # fmt: skip


def _rise(row: Row) -> float:
    before, after = row.perplexity[0].before, row.perplexity[0].after
    if not before or not after:
        return math.inf
    return math.log(after / before) / max(row.removed, 1e-9) ** 2


def trials(report: Report) -> tuple[Trial, list[Trial]]:
    """The dense model and the rows as the static picture takes them."""
    first = report.rows[0]
    dense = {p.window: p.before if p.before is not None else float("nan") for p in first.perplexity}
    return Trial("dense", 0.0, 0.0, dense, 0.0, 0.0), [
        Trial(
            row.method,
            row.ratio,
            row.removed,
            {p.window: p.after if p.after is not None else float("nan") for p in row.perplexity},
            row.bytes / 1e6,
            row.seconds or 0.0,
            row.repair,
        )
        for row in report.rows
    ]


def quality_plot(report: Report, sentence: str, *, static: bool) -> Plot:
    """Perplexity over the share removed, a line a method."""
    names = labels(report.rows)
    window = report.rows[0].perplexity[0]
    rows: list[dict[str, Any]] = []
    for name in names:
        rows.append({"method": name, "removed": 0.0, "perplexity": window.before, "form": "dense"})
        rows += [
            {
                "method": name,
                "removed": row.removed,
                "perplexity": row.perplexity[0].after,
                "form": "stock" if row.stock else "custom",
            }
            for row in report.rows
            if label(row) == name
        ]
    marks = layer(
        [row for row in rows if row["perplexity"]],
        {"type": "line", "point": {"size": 60}, "strokeWidth": 2},
        x=number(
            "removed",
            "parameters of the linears removed, %",
            axis={"format": "%", "tickCount": 6},
        ),
        y=magnitude(
            "perplexity",
            "perplexity per token",
            [row["perplexity"] for row in rows],
        ),
        color=colour("method", names),
        shape={
            "field": "method",
            "type": "nominal",
            "scale": {"domain": names, "range": list(_SHAPES)},
        },
        tooltip=told(
            ("method", "method"), ("removed", "removed", ".1%"),
            ("perplexity", "perplexity", ",.2f"), ("form", "checkpoint"),
        ),
    )  # fmt: skip
    picture = chart(*trials(report), window.window) if static else ""
    return Plot(
        "quality-plot", "Perplexity by what went", sentence, spec([marks], height=330), picture
    )


def cut_plots(report: Report) -> list[Plot]:
    """How much each method takes out of each layer, a plot a ratio."""
    plots = []
    for place, ratio in enumerate(ratios(report)):
        here = [row for row in report.rows if row.ratio == ratio and row.cut]
        values = []
        for row in here:
            own = [one for one in row.cut if one.layer is not None]
            for number_ in range(layers_in(own) if own else 0):
                share = share_removed(one for one in own if one.layer == number_)
                values.append({"layer": number_, "units": label(row), "value": share})
        if values:
            count = 1 + max(int(str(value["layer"])) for value in values)
            y = number("value", "parameters removed, %", domain=[0, 1], axis={"format": "%"})
            plots.append(
                lines_plot(
                    f"cut-{place}",
                    f"Removed by layer at {ratio:.0%}",
                    "A flat line takes the same from every layer; a peak is a layer that the method"
                    " holds for dispensable.",
                    values,
                    y,
                    count,
                )
            )
    return plots


def blend_plots(report: Report) -> list[Plot]:
    """The blend of each method that fuses two scores and does not give all layers the same."""
    plots: list[Plot] = []
    seen: set[str] = set()
    for row in report.rows:
        shares = [one.coarse for one in row.blend if one.coarse is not None]
        if row.method in seen or not shares or max(shares) - min(shares) < 1e-6:
            continue
        seen.add(row.method)
        plots.append(blend_plot(f"blend-{len(plots)}", f"Blend of {row.method}", row.blend))
    return plots
